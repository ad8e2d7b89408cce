"""The filters that a set of rows asks for, in their order, with the arguments stacked once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ..data.refusal import UserError
from . import logits as f
from .params import SamplingParams, UserFilter
from .row import Row

# after the penalty and the caller's own filters, as in transformers; the value that leaves a row as it is
WARPERS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "temperature": (f.temperature, 1.0),
    "top_k": (f.top_k, 0),
    "top_p": (f.top_p, 1.0),
    "min_p": (f.min_p, 0.0),
}


def setting(params: SamplingParams, name: str, neutral: float) -> float:
    """Return a row's value for a filter, the neutral one where it asks for none; greedy rows are not warped."""
    value = getattr(params, name)
    return neutral if value is None or (name in WARPERS and not params.samples) else value


class Filters:
    """Filters a fixed set of rows together: repetition penalty, the callers' own, temperature, top_k, top_p, min_p.

    A filter that no row asks for costs nothing.
    """

    def __init__(self, rows: Sequence[Row]):
        self.rows = list(rows)
        self._arguments = {name: self._column(name, neutral) for name, (_, neutral) in WARPERS.items()}
        self._penalty = self._column("repetition_penalty", 1.0)
        self._own = [(i, row) for i, row in enumerate(self.rows) if row.request.params.filters]

    def _column(self, name: str, neutral: float) -> Tensor | None:
        """[rows, 1], or None where every row has the neutral value."""
        values = [setting(row.request.params, name, neutral) for row in self.rows]
        return None if all(value == neutral for value in values) else torch.tensor(values, dtype=torch.float64)[:, None]

    def __call__(self, logits: Tensor) -> Tensor:
        """[rows, vocab] to [rows, vocab], in the order of the rows given; float32 at least."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self._penalty is not None:
            logits = f.repetition_penalty(logits, self._penalty, [row.history() for row in self.rows])
        for i, row in self._own:
            logits = torch.cat([logits[:i], apply_own(row, logits[i : i + 1]), logits[i + 1 :]])
        for name, (warp, _) in WARPERS.items():
            if (argument := self._arguments[name]) is not None:
                dtype = torch.long if name == "top_k" else logits.dtype
                logits = warp(logits, argument.to(device=logits.device, dtype=dtype))
        return logits


def apply_own(row: Row, logits: Tensor) -> Tensor:
    """Apply a request's own filters: functions of (logits [1, vocab], history [1, n]), or LogitsProcessors."""
    history = row.history().to(logits.device)[None]
    for own in row.request.params.filters:
        logits = call_own(own, logits.clone(), history)
    return logits


def call_own(own: UserFilter, logits: Tensor, history: Tensor) -> Tensor:
    """Apply one filter of the caller's and check what it returns."""
    filtered = own(history, logits) if isinstance(own, LogitsProcessor) else own(logits, history)
    name = getattr(own, "__name__", type(own).__name__)
    if not isinstance(filtered, Tensor) or filtered.shape != logits.shape:
        got = tuple(filtered.shape) if isinstance(filtered, Tensor) else type(filtered).__name__
        raise UserError(f"the filter {name} must return logits of shape {tuple(logits.shape)}, got {got}")
    if not bool((filtered > -torch.inf).any()):
        raise UserError(f"the filter {name} left no token to choose after {history.shape[1]} tokens")
    return filtered
