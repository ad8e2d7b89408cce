"""Prompts and settings to requests: encoded, checked against the model, with all that their rows will need."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import nn
from transformers import PreTrainedTokenizerBase

from ...data.chat import end_of_turn_ids, prompt_ids, text_ids
from ...data.errors import UserError
from ...data.formats import Dialogue
from ..constraints.build import new_text, apply_constraints
from ..constraints.forced_words import check_words, forced_ids
from ..filters.pipeline import check_filters
from ..filters.word_ids import breaker_ids, word_ids
from ..requests.params import SamplingParams
from ..requests.request import Request
from ..runners.architecture import refuse_hidden_under_window, transformers_model
from ..runners.encoder_decoder import decoder_start
from ..strategies.assistants import check_assistant
from ..strategies.guidance import with_guidance, guidance_of
from ..strategies.registry import check
from ..strategies.selection import selection_of
from ..text.spans import hidden_positions
from ..text.vocabulary import check_ids, known_ids
from .core import Engine

Prompt = str | list[dict] | Dialogue | list[int]  # a text to continue, messages (with tools) to answer, or ids


def new_requests(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    params: SamplingParams | Sequence[SamplingParams],
    engine: Engine,
    traced: bool = False,
) -> list[Request]:
    """Encode and check every prompt; raises UserError before anything is computed."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise UserError(f"prompts must be a list of prompts, got {type(prompts).__name__}: put the one prompt in a list")
    each = list(params) if isinstance(params, Sequence) else [params] * len(prompts)
    if wrong := [own for own in each if not isinstance(own, SamplingParams)]:
        raise UserError(f"params must be SamplingParams, one for all or a list of one a prompt, got {wrong[0]!r}")
    if len(each) != len(prompts):
        raise UserError(f"{len(each)} params for {len(prompts)} prompts: give one for all or one a prompt")
    ends = end_ids(model, tokenizer)
    template_ends = frozenset(end_of_turn_ids(tokenizer)) if any(map(is_dialogue, prompts)) else frozenset()
    requests = []
    for index, (prompt, own) in enumerate(zip(prompts, each)):
        stops = ends | template_ends if is_dialogue(prompt) else ends
        request = new_request(index, prompt, own, tokenizer, engine, frozenset() if own.ignore_eos else stops)
        request.traced = traced
        requests.append(request)
    return requests


def new_request(
    index: int, prompt: Prompt, params: SamplingParams, tokenizer: PreTrainedTokenizerBase, engine: Engine, ends: frozenset[int]
) -> Request:
    """Encode and check one prompt, and give its request what the settings ask for."""
    runner, name = engine.runner, f"prompt {index + 1}"
    encoder_decoder = runner.model.config.is_encoder_decoder
    kind = check(params, runner.capabilities, encoder_decoder)
    kind.suits(params, runner)
    ids = encode(tokenizer, prompt, name, runner.source_vocab if encoder_decoder else runner.config.vocab_size)
    source = None
    if encoder_decoder:
        check_source(len(ids), runner.source_limit, name)
        source, ids = ids, decoder_start(runner.model)
    params = with_ids(within_length(params, len(ids), runner.limit, name), tokenizer)
    vocab = runner.config.vocab_size
    apart = encoder_decoder and runner.source_vocab != runner.target_vocab  # the tokenizer's ids are then the source's alone
    known = None if apart else known_ids(tokenizer, vocab)
    check_filters(params, vocab, known)
    seed = secrets.randbits(32) if params.seed is None else params.seed
    request = Request(
        index, ids, params, seed, ends, partial(new_text, tokenizer, params), source_ids=source, tokenizer=tokenizer, known_ids=known
    )
    if params.dry_multiplier:
        request.breaker_ids = breaker_ids(tokenizer, params.dry_sequence_breakers)
    if params.hide or params.attention_mask is not None:
        refuse_hidden(runner)
        request.masked_positions = hidden_positions(tokenizer, prompt, ids, params.hide, params.attention_mask, name)
    apply_constraints(request, tokenizer, is_dialogue(prompt))
    check_words(request, known or vocab)
    request.prefix_cache = None if request.masked_positions else engine.prefix_cache
    add_guidance(request, tokenizer, engine)
    check_assistant(request, engine, tokenizer)
    request.select = selection_of(params, kind.name, prompt if isinstance(prompt, str) else tokenizer.decode(source or ids))
    return request


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a text by the model's generation_config or the tokenizer."""
    declared = getattr(getattr(transformers_model(model), "generation_config", None), "eos_token_id", None)
    declared = declared if isinstance(declared, list) else [declared]
    return frozenset(id for id in [*declared, tokenizer.eos_token_id] if id is not None)


def with_ids(params: SamplingParams, tokenizer: PreTrainedTokenizerBase) -> SamplingParams:
    """Return the settings with what is given as texts in ids too."""
    if params.bad_words:
        params = replace(params, bad_words_ids=[*params.bad_words_ids, *word_ids(tokenizer, params.bad_words)])
    if params.force_words:
        params = replace(params, force_words=(), force_words_ids=forced_ids(params, tokenizer))
    return params


def check_source(tokens: int, limit: int | None, name: str) -> None:
    """Raise UserError for an encoder's input beyond its positions."""
    if limit is not None and tokens > limit:
        raise UserError(f"{name} has {tokens} tokens, more than the {limit} positions of the encoder: shorten it")


def add_guidance(request: Request, tokenizer: PreTrainedTokenizerBase, engine: Engine) -> None:
    """Give the request the guidance that its scale or its amateur asks for."""
    params, negative = request.params, request.params.negative_prompt
    vocab = engine.runner.config.vocab_size
    name = f"the guidance of prompt {request.index + 1}" if negative is None else f"the negative prompt of prompt {request.index + 1}"
    if not isinstance(negative, str | list | tuple | Dialogue | None):
        raise UserError(f"negative_prompt must be a text, messages or ids, got {negative!r}")
    guidance = guidance_of(params, request.prompt_ids, None if negative is None else encode(tokenizer, negative, name, vocab), engine)
    if guidance is not None:
        check_length(len(guidance[1]), params.max_new_tokens, (guidance[0] or engine.runner).limit, name)
    with_guidance(request, guidance)


def refuse_hidden(runner) -> None:
    """Raise UserError where the model cannot leave out a part of its past."""
    if not runner.capabilities.mask_holes:
        raise UserError(f"{runner.config.model_type} cannot leave out a part of its prompt: drop hide and attention_mask")
    refuse_hidden_under_window(runner.config)


def within_length(params: SamplingParams, tokens: int, limit: int | None, name: str) -> SamplingParams:
    """Return the settings with `max_length` turned into `max_new_tokens`; raises UserError where the model has too few positions."""
    if params.max_length is not None:
        room = params.max_length - tokens
        if room < 1:
            raise UserError(f"{name} has {tokens} tokens, which leaves nothing of max_length={params.max_length}: raise it, or shorten the prompt")
        params = replace(params, max_new_tokens=min(room, params.max_new_tokens))
    for option, least in (("min_new_tokens", params.min_new_tokens or 0), ("min_length", (params.min_length or 0) - tokens)):
        if least > params.max_new_tokens:
            asked = f"{option}={getattr(params, option)}"
            raise UserError(f"{asked} leaves no room: {name} may have {params.max_new_tokens} new tokens, so lower it or raise max_new_tokens")
    check_length(tokens, params.max_new_tokens, limit, name)
    return params


def is_dialogue(prompt: Prompt) -> bool:
    """Whether the prompt is messages, which go through the chat template."""
    return isinstance(prompt, Dialogue) or isinstance(prompt, list | tuple) and len(prompt) > 0 and isinstance(prompt[0], dict)


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, name: str = "the prompt", vocab_size: int | None = None) -> list[int]:
    """Return a prompt's ids; raises UserError for one that is empty, of another type, or of ids beyond the tokenizer or the model's vocabulary."""
    if isinstance(prompt, Dialogue):
        ids = prompt_ids(tokenizer, prompt.messages, prompt.tools)
    elif is_dialogue(prompt):
        ids = prompt_ids(tokenizer, prompt)
    elif isinstance(prompt, str):
        ids = text_ids(tokenizer, prompt)
    else:
        ids = whole_numbers(prompt, f"{name} must be a text, a list of messages or a list of ids")
    if not ids:
        raise UserError(f"{name} is empty: give at least one token to continue")
    known = len(tokenizer) if vocab_size is None else known_ids(tokenizer, vocab_size)
    check_ids(ids, known, name, "model" if known == vocab_size else "tokenizer")
    return ids


def whole_numbers(ids: Sequence[int], wanted: str) -> list[int]:
    """Return ids as a list of int; raises UserError, which begins with `wanted`, for anything else."""
    try:
        return [operator.index(id) for id in ids]
    except TypeError:
        raise UserError(f"{wanted}, got {ids!r}") from None


def check_length(tokens: int, new: int, limit: int | None, name: str) -> None:
    """Raise UserError where prompt and answer together would pass the end of the model's positions."""
    if limit is not None and tokens + new > limit:
        raise UserError(
            f"{name} has {tokens} tokens, which with max_new_tokens={new} is more than the {limit} positions of the model: "
            "shorten the prompt or lower max_new_tokens"
        )
