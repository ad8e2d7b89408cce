"""The filters that a caller brings along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ...data.errors import UserError
from ..requests.options import option, settings
from ..requests.rules import both, listed, worst
from ..requests.sequence import TokenSequence
from ..requests.user_functions import called, name_of
from .spec import FilterSpec, row_by_row

# a function (logits [1, vocab], ids [1, n]) -> logits [1, vocab], or a transformers LogitsProcessor (or a list of them), which is
# called in its own order, the ids first
UserFilter = Callable[[Tensor, Tensor], Tensor] | LogitsProcessor | LogitsProcessorList


def apply_own(sequence: TokenSequence, logits: Tensor) -> Tensor:
    """Apply a request's own filters, one after the other, to [1, vocab]; raises UserError as `call_own` does."""
    history = sequence.history().to(logits.device)[None]
    for own in sequence.request.params.filters:
        logits = call_own(own, logits.clone(), history)
    return logits


def call_own(own: UserFilter, logits: Tensor, history: Tensor) -> Tensor:
    """Apply one filter of the caller's to logits [1, vocab] and history [1, n].

    Raises UserError, with the filter's name, for what it raises, and for anything but finite logits of that shape with a token left.
    """
    filtered = called("the filter", own, *((history, logits) if takes_ids_first(own) else (logits, history)))
    name = name_of(own)
    if not isinstance(filtered, Tensor) or filtered.shape != logits.shape:
        got = tuple(filtered.shape) if isinstance(filtered, Tensor) else type(filtered).__name__
        raise UserError(f"the filter {name} must return logits of shape {tuple(logits.shape)}, got {got}")
    if not filtered.is_floating_point():
        raise UserError(f"the filter {name} must return logits, floating-point numbers, got {str(filtered.dtype).removeprefix('torch.')}")
    if not bool((filtered < float("inf")).all()):
        raise UserError(f"the filter {name} returned nan or infinity after {history.shape[1]} tokens: dropped ones come as -inf")
    if not bool((filtered > -float("inf")).any()):
        raise UserError(f"the filter {name} left no token to choose after {history.shape[1]} tokens")
    return filtered


def takes_ids_first(own: UserFilter) -> bool:
    """Whether a filter is of transformers' kind, called with (input_ids, scores)."""
    return isinstance(own, LogitsProcessor | LogitsProcessorList)


def can_be_called(name: str, value: Any) -> str | None:
    """The rule that each of the filters can be called."""
    return worst(value, callable, lambda each: f"a filter must be a function or a LogitsProcessor, got {each!r}")


@settings
class OwnFilters:
    filters: Sequence[UserFilter] = option(
        (),
        "The caller's own filters: functions of (logits [1, vocab], ids [1, n]), or transformers' LogitsProcessors, called as (ids, logits).",
        both(listed, can_be_called),
        example=(lambda logits, history: logits,),
        command=False,
    )


OWN = FilterSpec("filters", "own", apply_own, OwnFilters, row_by_row(apply_own))
