"""Prompts and settings to requests: encoded, checked against the model, with all that their answers will need."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from ...data.chat import end_of_turn_ids, prompt_ids, text_ids
from ...data.errors import UserError
from ...data.formats import Dialogue
from ...data.long_text import TooManyTokens
from ...data.seq2seq.encoding import source_ids
from ...data.seq2seq.languages import known_language, writes_languages
from ...data.surrogates import refuse_surrogates
from ..constraints.build import build_constraints
from ..constraints.forced_words import check_words, forced_ids
from ..constraints.pinned import Layout, laid_out
from ..filters.filter_trial import try_filters
from ..filters.pipeline import check_filters
from ..filters.word_ids import breaker_ids, word_ids
from ..requests.params import Unsaid
from ..requests.request import Guidance, Request
from ..requests.strategy import Host
from ..runners.architecture import refuse_masking_under_window, transformers_model
from ..runners.contract import Runner
from ..runners.paradigm import diffusion_of
from ..strategies.assistants import check_assistant
from ..strategies.guidance import guidance_of, with_plausibility
from ..strategies.registry import check, check_paradigm, refuse_looking_back
from ..strategies.spec import StrategySpec
from ..text.spans import positions_to_mask
from ..text.vocabulary import check_ids, known_ids
from .checkpoint_settings import blamed_on, checkpoint_params
from .params import SamplingParams
from .sources import Shown, before_prefix, refuse_of_encoder_decoders, shown_ids, with_first

Prompt = str | list[dict] | Dialogue | list[int]  # a text to continue, messages (with tools) to answer, or ids
Params = SamplingParams | None | Sequence[SamplingParams | None]  # for all prompts or one for each; None: the checkpoint's own


def new_requests(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    params: Params,
    host: Host,
    traced: bool = False,
    literal: bool | None = None,
) -> list[Request]:
    """Return the requests of all prompts; raises UserError, before anything is computed, for one that is wrong."""
    if literal not in (None, True, False):
        raise UserError(f"literal must be True, False or None, got {literal!r}")
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise UserError(f"prompts must be a list of prompts, got {type(prompts).__name__}: put the one prompt in a list")
    each = list(params) if isinstance(params, Sequence) else [params] * len(prompts)
    of_checkpoint = checkpoint_params(model) if any(own is None for own in each) else None
    if of_checkpoint is not None:
        each = [of_checkpoint if own is None else own for own in each]
    if wrong := [own for own in each if not isinstance(own, SamplingParams)]:
        raise UserError(f"params must be SamplingParams, one for all or a list of one a prompt, or None, got {wrong[0]!r}")
    if len(each) != len(prompts):
        raise UserError(f"{len(each)} params for {len(prompts)} prompts: give one for all or one a prompt")
    ends = end_ids(model, tokenizer)
    template_ends = frozenset(end_of_turn_ids(tokenizer)) if any(map(is_dialogue, prompts)) else frozenset()
    requests = []
    for index, (prompt, own) in enumerate(zip(prompts, each)):
        stops = ends | template_ends if is_dialogue(prompt) else ends
        with blamed_on(own) if own is of_checkpoint else nullcontext():
            requests.append(new_request(index, prompt, own, tokenizer, host, frozenset() if own.ignore_eos else stops, traced, literal))
    try_filters(requests, host.runner)
    return requests


def new_request(
    index: int,
    prompt: Prompt,
    params: SamplingParams,
    tokenizer: PreTrainedTokenizerBase,
    host: Host,
    ends: frozenset[int],
    traced: bool = False,
    literal: bool | None = None,
) -> Request:
    """Encode and check one prompt, and return its request with what the settings ask for; `ends` are the model's own end ids.

    Raises UserError for what the strategy, the model or the other settings do not allow.
    """
    runner, name = host.runner, f"prompt {index + 1}"
    has_source = runner.model.config.is_encoder_decoder
    strategy = check(params, runner.capabilities, has_source, diffusion_of(runner.model.config))
    check_paradigm(strategy, params, runner.model.config)
    strategy.suits(params, runner)
    source_ids, shown = encoded(tokenizer, prompt, params, runner, name, literal)
    ids, first = shown.ids, ()
    if has_source:
        params = with_first(params, runner.model, tokenizer, shown)
    if params.prefix and strategy.left_to_right:  # a forced first token stands before it
        first = before_prefix(params, tokenizer, shown) if has_source else [id for id in (params.forced_bos_token_id,) if id is not None]
        params = replace(params, forced_bos_token_id=None)
    layout = None if params.template is None else laid_out(tokenizer, params.template)
    sized = params if layout is None else as_long(layout, params, len(ids), runner.limit, name)
    params, written = with_ids(within_length(sized, len(ids), runner.limit, name), tokenizer), params
    refuse_looking_back(params, strategy, written)
    known = tokenizer_ids(tokenizer, runner)
    check_filters(params, runner.config.vocab_size, known)
    breakers = breaker_ids(tokenizer, params.dry_sequence_breakers) if params.dry_multiplier else frozenset()
    masked = masked_positions(tokenizer, prompt, ids, params, runner, name)
    refuse_prompt_logprobs(params, runner, has_source, bool(masked))
    mask = None if strategy.left_to_right else diffusion_of(runner.model.config).mask_token_id
    constraints = build_constraints(params, tokenizer, ids, ends, is_dialogue(prompt), has_source, mask, layout, first)
    check_words(params, constraints.prefix_ids, ends, known or runner.config.vocab_size)
    guidance = encoded_guidance(params, strategy, constraints.prompt_ids, tokenizer, host, name, literal)
    check_assistant(params, host, tokenizer, source_ids, masked, name)
    text = prompt if isinstance(prompt, str) else tokenizer.decode(source_ids or ids)
    return Request(
        index=index,
        prompt_ids=constraints.prompt_ids,
        params=params,
        seed=secrets.randbits(32) if params.seed is None else params.seed,
        end_ids=ends,
        new_text=constraints.new_text,
        strategy=strategy,
        source_ids=source_ids,
        breaker_ids=breakers,
        masked_positions=masked,
        prefix_ids=constraints.prefix_ids,
        pinned=constraints.pinned,
        new_constraints=with_plausibility(constraints.new_constraints, params),
        guidance=guidance,
        select=strategy.select and strategy.select(params, text, len(constraints.prefix_ids)),
        prefix_cache=None if masked else host.prefix_cache,
        tokenizer=tokenizer,
        known_ids=known,
        traced=traced,
    )


def encoded(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, params: SamplingParams, runner: Runner, name: str, literal: bool | None
) -> tuple[list[int] | None, Shown]:
    """Return the ids that an encoder reads, None for a decoder, and those before the answer; raises UserError for a prompt that the model cannot read."""
    if not runner.model.config.is_encoder_decoder:
        refuse_of_encoder_decoders(params, runner.model.config.model_type)
        try:
            ids = encode(tokenizer, prompt, name, runner.config.vocab_size, literal, runner.limit)
        except TooManyTokens as found:
            raise beyond_positions(str(found), params.max_new_tokens, runner.limit, name) from None
        return None, Shown(ids, len(ids))
    shown = shown_ids(runner.model, tokenizer, params)
    try:
        source_ids = encode_source(tokenizer, prompt, name, runner.source_vocab, literal, runner.source_limit, params.source_lang, params.target_lang)
    except TooManyTokens as found:
        raise beyond_encoder(str(found), runner.source_limit, name) from None
    check_source(len(source_ids), runner.source_limit, name)
    return source_ids, shown


def encode_source(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    name: str,
    vocab_size: int,
    literal: bool | None = None,
    most: int | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
) -> list[int]:
    """Return what an encoder reads of a prompt: of a text or messages with what the tokenizer puts around a source, ids as they are.

    Raises UserError as `encode` does, and for a language that cannot be said; TooManyTokens.
    """
    if not (isinstance(prompt, str) or is_dialogue(prompt)):
        for setting, code in (("source_lang", source_lang), ("target_lang", None if writes_languages(tokenizer) else target_lang)):
            if code:
                known_language(tokenizer, setting, code)
                raise UserError(f"{setting}={code!r}: {name} is in ids, which the encoder reads as they are: leave it out, or put the language's id among them")
        return encode(tokenizer, prompt, name, vocab_size, most=most)
    refuse_more_parts(prompt, most)
    refuse_surrogates(texts_of(prompt), name)
    try:
        ids = source_ids(tokenizer, prompt, literal, most, source_lang, target_lang)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    known = known_ids(tokenizer, vocab_size)
    check_ids(ids, known, name, "model" if known == vocab_size else "tokenizer")
    return ids


def tokenizer_ids(tokenizer: PreTrainedTokenizerBase, runner: Runner) -> int | None:
    """Return how many ids the tokenizer knows of what the model says; None where they are an encoder's alone."""
    apart = runner.model.config.is_encoder_decoder and runner.source_vocab != runner.target_vocab
    return None if apart else known_ids(tokenizer, runner.config.vocab_size)


def masked_positions(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, ids: list[int], params: SamplingParams, runner: Runner, name: str
) -> tuple[int, ...]:
    """Return the positions of the prompt that no token may see; raises UserError where the model cannot leave them out, or there are none such."""
    if not params.hide and params.attention_mask is None:
        return ()
    refuse_masking(runner)
    return positions_to_mask(tokenizer, prompt, ids, params.hide, params.attention_mask, name)


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
    if any(isinstance(token, str) for token in params.logit_bias or ()):
        params = with_biased_ids(params, tokenizer)
    return params


def with_biased_ids(params: SamplingParams, tokenizer: PreTrainedTokenizerBase) -> SamplingParams:
    """Return the settings with the texts of `logit_bias` in ids: those of one token there, those of several in `sequence_bias`."""
    single, several = {}, dict(params.sequence_bias or {})
    for token, bias in params.logit_bias.items():
        spelled = word_ids(tokenizer, [token]) if isinstance(token, str) else [[token]]
        if not spelled:
            raise UserError(f"the tokenizer has no tokens for logit_bias {token!r}: give another text, or ids")
        for ids in spelled:
            kept, key = (single, ids[0]) if len(ids) == 1 else (several, tuple(ids))
            kept[key] = kept.get(key, 0) + bias
    return replace(params, logit_bias=single or None, sequence_bias=several or None)


def check_source(tokens: int, limit: int | None, name: str) -> None:
    """Raise UserError for an encoder's input beyond its positions."""
    if limit is not None and tokens > limit:
        raise beyond_encoder(f"{tokens} tokens", limit, name)


def beyond_encoder(told: str, limit: int, name: str) -> UserError:
    """What is raised for an encoder's input of as many tokens as is told."""
    return UserError(f"{name} has {told}, more than the {limit} positions of the encoder: shorten it")


def encoded_guidance(
    params: SamplingParams,
    strategy: StrategySpec,
    prompt_ids: list[int],
    tokenizer: PreTrainedTokenizerBase,
    host: Host,
    name: str,
    literal: bool | None,
) -> Guidance | None:
    """Return the guidance that a request's scale or amateur asks for, None where it asks for none; raises UserError where it cannot run."""
    negative, vocab = params.negative_prompt, host.runner.config.vocab_size
    name = f"the guidance of {name}" if negative is None else f"the negative prompt of {name}"
    if not isinstance(negative, str | list | tuple | Dialogue | None):
        raise UserError(f"negative_prompt must be a text, messages or ids, got {negative!r}")
    try:
        negative_ids = None if negative is None else encode(tokenizer, negative, name, vocab, literal, host.runner.limit)
    except TooManyTokens as found:
        raise beyond_positions(str(found), params.max_new_tokens, host.runner.limit, name) from None
    guidance = guidance_of(params, strategy, prompt_ids, negative_ids, host)
    if guidance is not None:
        check_length(len(guidance.prompt_ids), params.max_new_tokens, (guidance.runner or host.runner).limit, name)
    return guidance


def refuse_prompt_logprobs(params: SamplingParams, runner: Runner, has_source: bool, masked: bool) -> None:
    """Raise UserError where nothing says how likely a prompt's tokens are: an encoder predicts none, and nothing sees hidden ones."""
    if params.prompt_logprobs is None:
        return
    if has_source:
        raise UserError(f"prompt_logprobs={params.prompt_logprobs}: the encoder of {runner.config.model_type} predicts no token of a prompt: drop it")
    if masked:
        raise UserError(f"prompt_logprobs={params.prompt_logprobs} tells of all tokens of the prompt, of which some are hidden: drop one of them")


def refuse_masking(runner: Runner) -> None:
    """Raise UserError where the model cannot leave out a part of its past."""
    if not runner.capabilities.mask_holes:
        raise UserError(f"{runner.config.model_type} cannot leave out a part of its prompt: drop hide and attention_mask")
    refuse_masking_under_window(runner.config)


def as_long(layout: Layout, params: SamplingParams, tokens: int, limit: int | None, name: str) -> SamplingParams:
    """Return the settings with a template's length as that of the answer; raises UserError where another is given, or it passes the model's positions."""
    most = params.max_new_tokens
    if not isinstance(most, Unsaid) and most != layout.length:
        raise UserError(f"max_new_tokens={most} disagrees with template, which has {layout.length} tokens, its gaps counted: drop it, or change the gaps")
    for told, room in ((f"max_length={params.max_length}", params.max_length), (f"the {limit} positions of the model", limit)):
        if room is not None and tokens + layout.length > room:
            raise UserError(f"template has {layout.length} tokens, which with the {tokens} of {name} is more than {told}: shorten its gaps")
    return replace(params, max_new_tokens=layout.length)


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


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    name: str = "the prompt",
    vocab_size: int | None = None,
    literal: bool | None = None,
    most: int | None = None,
) -> list[int]:
    """Return a prompt's ids; with `literal` what looks like a control token in it is text: without a word that of messages, not a text's.

    Raises UserError for one that is empty, of another type, with half a character, or of ids beyond the model's; TooManyTokens where it is seen before
    all of it is encoded that it has more than `most`.
    """
    refuse_more_parts(prompt, most)
    refuse_surrogates(texts_of(prompt), name)
    if isinstance(prompt, Dialogue):
        ids = prompt_ids(tokenizer, prompt.messages, prompt.tools, literal=literal is not False, most=most, **prompt.template_kwargs)
    elif is_dialogue(prompt):
        ids = prompt_ids(tokenizer, prompt, literal=literal is not False, most=most)
    elif isinstance(prompt, str):
        ids = text_ids(tokenizer, prompt, literal=literal is True, most=most)
    else:
        ids = whole_numbers(prompt, f"{name} must be a text, a list of messages or a list of ids")
    if not ids:
        raise UserError(f"{name} is empty: give at least one token to continue")
    known = len(tokenizer) if vocab_size is None else known_ids(tokenizer, vocab_size)
    check_ids(ids, known, name, "model" if known == vocab_size else "tokenizer")
    return ids


def refuse_more_parts(prompt: Prompt, most: int | None) -> None:
    """Raise TooManyTokens for more ids than `most`, and for more messages, which the template writes at least a token of each for."""
    if most is None or isinstance(prompt, str):
        return
    parts = prompt.messages if isinstance(prompt, Dialogue) else prompt
    if isinstance(parts, Sequence) and len(parts) > most:
        raise TooManyTokens(f"{len(parts)} messages of at least a token each" if is_dialogue(prompt) else f"{len(parts)} tokens")


def texts_of(prompt: Prompt) -> Prompt | dict:
    """A prompt with names for its parts."""
    return vars(prompt) if isinstance(prompt, Dialogue) else {"messages": prompt} if is_dialogue(prompt) else prompt


def whole_numbers(ids: Sequence[int], wanted: str) -> list[int]:
    """Return ids as a list of int; raises UserError, which begins with `wanted`, for anything else."""
    try:
        return [operator.index(id) for id in ids]
    except TypeError:
        raise UserError(f"{wanted}, got {ids!r}") from None


def check_length(tokens: int, new: int, limit: int | None, name: str) -> None:
    """Raise UserError where prompt and answer together would pass the end of the model's positions."""
    if limit is not None and tokens + new > limit:
        raise beyond_positions(f"{tokens} tokens", new, limit, name)


def beyond_positions(told: str, new: int, limit: int, name: str) -> UserError:
    """What is raised for a prompt of as many tokens as is told."""
    asked = f"which with max_new_tokens={new} is more than the {limit} positions of the model"
    return UserError(f"{name} has {told}, {asked}: shorten the prompt or lower max_new_tokens")
