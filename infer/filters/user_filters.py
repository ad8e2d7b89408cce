"""The filters that a caller brings along."""

from __future__ import annotations

from torch import Tensor
from transformers import LogitsProcessor

from ...data.errors import UserError
from ..requests.params import UserFilter
from ..requests.sequence import TokenSequence
from ..requests.user_functions import called, name_of


def apply_own(sequence: TokenSequence, logits: Tensor) -> Tensor:
    """Apply a request's own filters: functions of (logits [1, vocab], history [1, n]), or LogitsProcessors."""
    history = sequence.history().to(logits.device)[None]
    for own in sequence.request.params.filters:
        logits = call_own(own, logits.clone(), history)
    return logits


def call_own(own: UserFilter, logits: Tensor, history: Tensor) -> Tensor:
    """Apply one filter of the caller's and check what it returns."""
    filtered = called("the filter", own, *((history, logits) if isinstance(own, LogitsProcessor) else (logits, history)))
    name = name_of(own)
    if not isinstance(filtered, Tensor) or filtered.shape != logits.shape:
        got = tuple(filtered.shape) if isinstance(filtered, Tensor) else type(filtered).__name__
        raise UserError(f"the filter {name} must return logits of shape {tuple(logits.shape)}, got {got}")
    if not bool((filtered < float("inf")).all()):
        raise UserError(f"the filter {name} returned nan or infinity after {history.shape[1]} tokens: dropped ones come as -inf")
    if not bool((filtered > -float("inf")).any()):
        raise UserError(f"the filter {name} left no token to choose after {history.shape[1]} tokens")
    return filtered
