"""Which texts are nearest to a query, by cosine, exactly: whatever number of texts, a block of their vectors at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.errors import UserError


class Hit(NamedTuple):
    """A text that was found: its cosine with the query, its place among all that were looked at, and what was said of it."""

    score: float
    place: int
    told: Any


class Nearest:
    """The `top_k` texts nearest to each of some queries, of all that `add` has been shown; of equally near ones the first comes first.

    `queries` are their vectors, [n, size]. Raises UserError for no room for a text.
    """

    def __init__(self, queries: Tensor, top_k: int):
        if top_k < 1:
            raise UserError(f"top_k must be at least 1, got {top_k}")
        self._queries, self._top_k = F.normalize(queries, dim=-1), top_k
        self._scores = queries.new_zeros(len(queries), 0)
        self._hits: list[list[tuple[int, Any]]] = [[] for _ in range(len(queries))]
        self.seen = 0

    def add(self, vectors: Tensor, told: Sequence[Any]) -> None:
        """Look at some more texts: their vectors, [m, size], and of each what a `Hit` is to say."""
        scores = torch.cat([self._scores, self._queries @ F.normalize(vectors, dim=-1).T], dim=1)
        kept = min(self._top_k, scores.shape[1])
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, :kept]
        self._scores = scores.gather(1, order)
        for row, places in enumerate(order.tolist()):
            before = self._hits[row]
            self._hits[row] = [before[at] if at < len(before) else (self.seen + at - len(before), told[at - len(before)]) for at in places]
        self.seen += len(told)

    def hits(self) -> list[list[Hit]]:
        """Of each query what was found, the nearest first."""
        return [[Hit(score, *hit) for score, hit in zip(scores, hits)] for scores, hits in zip(self._scores.tolist(), self._hits)]
