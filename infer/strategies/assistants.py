"""Who guesses for a request: checked before anything is computed, and opened when the request begins."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ..requests.options import CONFIG, Command, option, options_of, settings
from ..requests.params import RequestParams
from ..requests.request import Request
from ..requests.rules import fraction, must_be, of, whole
from ..requests.sequence import TokenSequence
from ..requests.strategy import Forward, Host
from ..runners.contract import Runner
from ..runners.paradigm import diffusion_of
from .canvas_drafts import CanvasDrafts, check_canvas_drafts
from .drafts import ModelDrafts, Translation, UniversalDrafts
from .lookup import LONGEST_NGRAM, Lookup
from .sampling import check_sampling
from .speculation import Guess

LONGER = 4  # times: letters of a script that the draft's tokenizer does not know are split into bytes


class Drafts(Protocol):
    """Guesses for sequences: a generator of the passes that it needs, which returns a guess a sequence."""

    def guess(self, sequences: Sequence[TokenSequence]) -> Generator[Forward, Tensor, list[Guess]]:
        """Return what may follow each sequence, perhaps nothing."""

    def learn(self, sequence: TokenSequence, guess: Guess, came: Sequence[int]) -> None:
        """Take note of the tokens that came after a guess."""

    def release(self, sequences: Sequence[TokenSequence]) -> None:
        """Give back what is held for sequences that are finished."""


def assistant(request: Request, host: Host) -> tuple[Hashable, Callable[[], Drafts]]:
    """Return the key that requests with the same assistant share, and what makes their drafts."""
    params, vocab = request.params, host.runner.config.vocab_size
    if params.prompt_lookup_num_tokens:
        return "lookup", Lookup
    if params.assistant_early_exit:
        return ("layers", params.assistant_early_exit), partial(ModelDrafts, host.first_layers(params.assistant_early_exit), vocab)
    runner, other = host.runner_of(params.assistant_model), params.assistant_tokenizer
    if other is None:
        return ("model", id(runner)), partial(ModelDrafts if diffusion_of(runner.model.config) is None else CanvasDrafts, runner, vocab)
    return ("text", id(runner), id(other)), partial(UniversalDrafts, runner, vocab, Translation(request.tokenizer, other))


def draft_slots(request: Request, host: Host) -> tuple[Runner, int, int] | None:
    """Return the runner that drafts for each of a request's sequences, and how many positions its slot has at most: of the prompt, of the answer.

    None where no model drafts. In another tokenizer's ids the answer is taken for at most `LONGER` times as long.
    """
    params, answer = request.params, max(request.params.max_new_tokens, len(request.prefix_ids))
    if request.strategy.name != "assisted" or params.prompt_lookup_num_tokens:
        return None
    if params.assistant_early_exit:
        return host.first_layers(params.assistant_early_exit), len(request.prompt_ids), answer
    runner, other = host.runner_of(params.assistant_model), params.assistant_tokenizer
    if other is None:
        return runner, len(request.prompt_ids), answer
    return runner, len(Translation(request.tokenizer, other).there(request.prompt_ids)), LONGER * answer


def check_assisted(params: RequestParams) -> None:
    """Raise UserError unless exactly one assistant is named, with no option of another."""
    assistants = [name for name in ("assistant_model", "assistant_early_exit", "prompt_lookup_num_tokens") if getattr(params, name)]
    if len(assistants) != 1:
        found = " and ".join(assistants) or "none of them"
        raise UserError(f"assisted decoding takes one of assistant_model, assistant_early_exit and prompt_lookup_num_tokens, got {found}")
    strange = MODEL_OPTIONS if assistants == ["prompt_lookup_num_tokens"] else LOOKUP_OPTIONS
    for name in strange:
        if name in params.given:
            raise UserError(f"{name} says nothing about {assistants[0]}: drop one of them")
    if params.assistant_tokenizer is not None and assistants != ["assistant_model"]:
        raise UserError("assistant_tokenizer is that of an assistant_model: give both, or neither")
    check_sampling(params)


def check_assistant(
    params: RequestParams,
    host: Host,
    tokenizer: PreTrainedTokenizerBase,
    source_ids: Sequence[int] | None,
    masked_positions: Sequence[int],
    name: str,
) -> None:
    """Raise UserError where the assistant cannot work for this model, or with this prompt, which errors call `name`."""
    runner = host.runner
    if params.assistant_early_exit:
        host.first_layers(params.assistant_early_exit)
    if params.assistant_model is None:
        return
    draft = host.runner_of(params.assistant_model)
    both = f"the assistant ({draft.config.model_type}) and the model ({runner.config.model_type})"
    if not (draft.capabilities.truncate and draft.capabilities.fork):
        raise UserError(f"the assistant ({draft.config.model_type}) has a state that keeps every guess: use one of attention alone")
    if (diffusion := diffusion_of(draft.model.config)) is not None:
        check_canvas_drafts(draft, diffusion, params.assistant_tokenizer is not None)
    if draft.model.config.is_encoder_decoder != runner.model.config.is_encoder_decoder:
        raise UserError(f"{both} must both be encoder-decoders, or neither")
    source = len(source_ids or ())
    if source and draft.source_limit is not None and source > draft.source_limit:
        reads = f"the assistant's encoder reads {draft.source_limit} at most"
        raise UserError(f"{name} has {source} tokens, {reads}: drop the assistant, or shorten the prompt")
    if params.assistant_tokenizer is not None:
        check_translation(params.assistant_tokenizer, draft, runner, masked_positions)
        return
    sizes = draft.config.vocab_size, runner.config.vocab_size
    if sizes[0] != sizes[1] and min(sizes) < len(tokenizer):  # beyond the tokenizer there is only padding
        raise UserError(
            f"{both} have vocabularies of {sizes[0]} and {sizes[1]}, with a tokenizer of {len(tokenizer)}: give assistant_tokenizer, "
            "or an assistant with the model's own tokenizer"
        )
    if masked_positions and not draft.capabilities.mask_holes:
        raise UserError(f"the assistant ({draft.config.model_type}) cannot leave out a part of the prompt: drop hide, or the assistant")


def check_translation(tokenizer: PreTrainedTokenizerBase, draft: Runner, runner: Runner, masked_positions: Sequence[int]) -> None:
    """Raise UserError where drafts in another tokenizer's ids cannot be had or read."""
    if not callable(getattr(tokenizer, "decode", None)):
        raise UserError(f"assistant_tokenizer must be a tokenizer, got {type(tokenizer).__name__}")
    if runner.model.config.is_encoder_decoder:
        raise UserError("assistant_tokenizer is not made for encoder-decoder models: use an assistant with the model's own tokenizer")
    if len(tokenizer) > draft.config.vocab_size:
        sizes = f"{len(tokenizer)} ids, more than the {draft.config.vocab_size} of the assistant"
        raise UserError(f"assistant_tokenizer has {sizes}: give the assistant's own")
    if masked_positions:
        raise UserError("an assistant with another tokenizer would read what hide leaves out: drop one of them")


@settings
class ModelAssistant:
    assistant_model: nn.Module | None = option(
        None, "A smaller model that drafts, or one of diffusion, in a single pass; the answer stays the same.", example=nn.Identity(), command=Command(str | None)
    )
    assistant_tokenizer: Any = option(
        None, "The assistant reads and writes by its own tokenizer, not the model's.",
        command=Command(bool, False, lambda asked: asked or None),
    )  # fmt: skip
    assistant_early_exit: int | None = option(None, "The first so many layers draft.", whole(1), example=1, same_in=(CONFIG,), off=0)
    num_assistant_tokens: int = option(5, "Tokens of the first draft.", whole(1), example=2, same_in=(CONFIG,))
    assistant_confidence_threshold: float = option(0.4, "A draft ends below this probability.", fraction, example=0.0, same_in=(CONFIG,))


@settings
class PromptLookup:
    prompt_lookup_num_tokens: int | None = option(
        None, "Drafts of so many tokens are copied from the text so far.", whole(1), example=4, same_in=(CONFIG,)
    )
    max_matching_ngram_size: int = option(
        2, "They follow what the newest tokens, at most so many, followed before.",
        must_be(f"a whole number in [1, {LONGEST_NGRAM}]", of(int, lambda n: 1 <= n <= LONGEST_NGRAM)), example=3, same_in=(CONFIG,),
    )


@settings
class Assistants(ModelAssistant, PromptLookup):
    num_assistant_tokens_schedule: str = option(
        "heuristic", "Length of later drafts: heuristic (by success) or constant.",
        must_be("heuristic or constant", lambda value: value in ("heuristic", "constant")), example="constant", same_in=(CONFIG,),
        # transformers' third adapts the length within one request, as ours does in any case
        from_json=lambda value: "heuristic" if value == "heuristic_transient" else value,
    )  # fmt: skip


MODEL_OPTIONS, LOOKUP_OPTIONS = tuple(options_of(ModelAssistant)), tuple(options_of(PromptLookup))
ASSISTED_OPTIONS = tuple(options_of(Assistants))
