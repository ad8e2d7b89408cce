"""Bans and forced tokens that hang on where in the answer a sequence is, each with its settings.

Each is a function of a sequence to the ids that it bans, or forces, at the next step; `bans.ban` and `bans.force` do it, to -inf.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from ...data.errors import UserError
from ..requests.options import CONFIG, VLLM, option, settings
from ..requests.rules import function, listed, must_be, whole
from ..requests.sequence import TokenSequence
from ..requests.user_functions import called
from .bans import allow, ban, force
from .spec import Apply, FilterSpec, Make, nothing, other_than, row_by_row


def banning(banned: Callable[[TokenSequence], Collection[int]]) -> Make:
    """A filter that drops what `banned` says of a sequence at a step."""

    def make(sequences: Sequence[TokenSequence]) -> Apply:
        def apply(scores: Tensor) -> Tensor:
            ids = [banned(sequence) for sequence in sequences]
            return ban(scores, ids) if any(map(len, ids)) else scores

        return apply

    return make


def forcing(forced: Callable[[TokenSequence], Sequence[int] | None]) -> Make:
    """A filter that leaves nothing but what `forced` says of a sequence at a step."""

    def make(sequences: Sequence[TokenSequence]) -> Apply:
        def apply(scores: Tensor) -> Tensor:
            ids = [forced(sequence) for sequence in sequences]
            return scores if all(each is None for each in ids) else force(scores, ids)

        return apply

    return make


def too_short(sequence: TokenSequence) -> frozenset[int]:
    """What ends the sequence, while prompt and answer together are shorter than `min_length`."""
    request = sequence.request
    short = len(request.prompt_ids) + sequence.position < request.params.min_length
    return request.ends if short and not must_end(sequence) else frozenset()


def answer_too_short(sequence: TokenSequence) -> frozenset[int]:
    """What ends the sequence, while its answer is shorter than `min_new_tokens`."""
    return sequence.request.ends if sequence.position < sequence.request.params.min_new_tokens and not must_end(sequence) else frozenset()


def must_end(sequence: TokenSequence) -> bool:
    """Whether what the answer may be (a grammar, a trie) leaves nothing but its end."""
    return any(constraint.must_end for constraint in sequence.constraints)


@settings
class MinLength:
    min_length: int | None = option(
        None, "It does not end before prompt and answer have so many tokens.", whole(0), example=2, same_in=(CONFIG,), off=0
    )


@settings
class MinNewTokens:
    min_new_tokens: int | None = option(
        None, "The answer does not end before.", whole(0), example=2, same_in=(CONFIG,), aliases={VLLM: ("min_tokens",)}, off=0,
    )


MIN_LENGTH = FilterSpec("min_length", "ban", too_short, MinLength, banning(too_short), looks_back=nothing)
MIN_NEW_TOKENS = FilterSpec("min_new_tokens", "ban", answer_too_short, MinNewTokens, banning(answer_too_short), looks_back=nothing)


def only_allowed(sequence: TokenSequence, scores: Tensor) -> Tensor:
    """What `prefix_allowed_tokens_fn` leaves of a sequence's scores, [1, vocab]; raises UserError where it returns anything but ids.

    Source: De Cao et al. 2021, Autoregressive entity retrieval.
    """
    vocab = scores.shape[-1]
    told = called("prefix_allowed_tokens_fn", sequence.request.params.prefix_allowed_tokens_fn, list(sequence.ids))
    try:
        ids = [int(id) for id in told]
    except Exception:  # whatever it returned
        raise UserError(f"prefix_allowed_tokens_fn must return a list of ids, got {told!r}") from None
    if wrong := [id for id in ids if not 0 <= id < vocab]:
        raise UserError(f"prefix_allowed_tokens_fn allowed the id {wrong[0]}, but the model's {vocab} ids begin at 0")
    return allow(scores, [ids])


class Always:
    """The same ids at every step, as what `prefix_allowed_tokens_fn` takes: it needs no beginning."""

    def __init__(self, ids: Sequence[int]):
        self._ids = ids

    def __call__(self, ids: Sequence[int]) -> Sequence[int]:
        return self._ids


@settings
class AllowedTokens:
    prefix_allowed_tokens_fn: Callable[[list[int]], Sequence[int]] | None = option(
        None, "A function of the ids so far that says which may follow.", function, example=list, command=False
    )


ALLOWED_TOKENS = FilterSpec(
    "prefix_allowed_tokens_fn", "ban", only_allowed, AllowedTokens, row_by_row(only_allowed),
    looks_back=lambda params: [] if isinstance(params.prefix_allowed_tokens_fn, Always) else ["prefix_allowed_tokens_fn"],
)  # fmt: skip


def first(sequence: TokenSequence) -> list[int] | None:
    """The forced first token of the answer, at its place."""
    return [sequence.request.params.forced_bos_token_id] if sequence.position == 0 else None


def last(sequence: TokenSequence) -> Sequence[int] | None:
    """The forced last tokens of the answer, at its longest."""
    params = sequence.request.params
    return one_or_more(params.forced_eos_token_id) if sequence.position >= params.max_new_tokens - 1 else None


def one_or_more(ids: int | Sequence[int] | None) -> Sequence[int]:
    """An id, several or none, as several."""
    return () if ids is None else (ids,) if isinstance(ids, int) else ids


@settings
class ForcedFirst:
    forced_bos_token_id: int | None = option(
        None, "The id that the answer begins with.", whole(0), example=5, same_in=(CONFIG,), ids=one_or_more
    )


@settings
class ForcedLast:
    forced_eos_token_id: int | Sequence[int] | None = option(
        None, "The id, or one of the ids, that the answer ends with at its longest.",
        must_be("an id or a list of ids", lambda value: isinstance(value, int | list | tuple)), example=5, same_in=(CONFIG,), command=False,
        ids=one_or_more,
    )  # fmt: skip


FORCED_FIRST = FilterSpec(
    "forced_bos_token_id", "ban", first, ForcedFirst, forcing(first), asks=other_than("forced_bos_token_id", None), looks_back=nothing
)
FORCED_LAST = FilterSpec(
    "forced_eos_token_id", "ban", last, ForcedLast, forcing(last), asks=lambda params: params.forced_eos_token_id not in (None, (), []),
    looks_back=nothing,
)  # fmt: skip


def suppressed(sequence: TokenSequence) -> Sequence[int]:
    """What is suppressed all along."""
    return sequence.request.params.suppress_tokens


def at_the_beginning(sequence: TokenSequence) -> Sequence[int]:
    """What is suppressed at the first token, or at the second where the first is forced."""
    params = sequence.request.params
    return params.begin_suppress_tokens if sequence.position == (params.forced_bos_token_id is not None) else ()


@settings
class SuppressTokens:
    suppress_tokens: Sequence[int] = option((), "Ids that do not come.", listed, example=(5,), same_in=(CONFIG,), ids=tuple)


@settings
class BeginSuppressTokens:
    begin_suppress_tokens: Sequence[int] = option(
        (), "Ids that the answer does not begin with.", listed, example=(5,), same_in=(CONFIG,), command=False, ids=tuple
    )


SUPPRESS_TOKENS = FilterSpec("suppress_tokens", "ban", suppressed, SuppressTokens, banning(suppressed), memoryless=True)
BEGIN_SUPPRESS_TOKENS = FilterSpec(
    "begin_suppress_tokens", "ban", at_the_beginning, BeginSuppressTokens, banning(at_the_beginning), looks_back=nothing
)
