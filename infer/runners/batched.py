"""What runners keep of their rows; and rows whose past lies in batches of rows that ran together."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from .architecture import Passed, check_cut, check_pass


class Rows:
    """What a runner without a cache of its own making keeps of its rows: how long each is, and `_home`, where its past lies.

    `passes` and `positions` count what was computed.
    """

    def __init__(self):
        self.passes = self.positions = 0
        self._lengths: dict[int, int] = {}
        self._home: dict[int, Any] = {}
        self._next = 0

    @property
    def live(self) -> int:
        return len(self._lengths)

    @property
    def vocab_size(self) -> int:
        """How many ids a row's tokens can have."""
        return self.config.vocab_size

    def length(self, row: int) -> int:
        return self._lengths[row]

    def fork(self, rows: Sequence[int]) -> list[int]:
        forks = [self._add() for _ in rows]
        for row, fork in zip(rows, forks):
            self.copy(row, fork)
        return forks

    def copy(self, source: int, target: int, first: int = 0) -> None:
        """Give `target` the past of `source`, of which it has the first `first` positions already; nothing is moved before it runs."""
        self._lengths[target] = self._lengths[source]
        self._home.pop(target, None)
        if source in self._home:
            self._home[target] = self._home[source]

    def release(self, rows: Sequence[int]) -> None:
        for row in rows:
            del self._lengths[row]
            self._home.pop(row, None)

    def refresh(self, keep: Collection[int] = ()) -> None:
        self.release([row for row in self._lengths if row not in keep])

    def _add(self) -> int:
        row, self._next = self._next, self._next + 1
        self._lengths[row] = 0
        return row


class BatchedRows(Rows):
    """Rows whose past is a batch and a place there.

    A batch's past is only ever appended to, so rows may share a place: a row's past is the first `length` positions of it.
    A runner says by `_alike` which rows can go together, and by `_run` how they do.
    """

    def truncate(self, row: int, length: int) -> None:
        check_cut(row, length, self._lengths[row])
        self._lengths[row] = length

    def forward(self, rows: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int]) -> Tensor:
        """As the ragged runner; rows that are not alike take a pass of the model each kind."""
        return self.observe(rows, ids, keep, ()).logits

    @torch.no_grad()
    def observe(self, rows: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int], layers: Sequence[int]) -> Passed:
        check_pass(rows, ids, keep, self.vocab_size)
        groups: dict[Hashable, list[int]] = {}
        for i, (row, new) in enumerate(zip(rows, ids)):
            groups.setdefault(self._alike(row, new), []).append(i)
        passed: list[Passed | None] = [None] * len(rows)
        for group in groups.values():
            group.sort(key=lambda i: self._home[rows[i]][1] if rows[i] in self._home else 0)  # as they lie, nothing has to move
            parts = self._run([rows[i] for i in group], [ids[i] for i in group], [keep[i] for i in group], layers)
            for i, part in zip(group, parts):
                passed[i] = part
        states = {layer: torch.cat([part.states[layer] for part in passed]) for layer in layers}
        return Passed(torch.cat([part.logits for part in passed]), states)

    @torch.no_grad()
    def head(self, states: Tensor) -> Tensor:
        """Return what the language model head makes of hidden states, [n, hidden] to [n, vocab]."""
        return self.model.get_output_embeddings()(states)

    def _alike(self, row: int, new: Sequence[int]) -> Hashable:
        """Return a key that rows share when they may run together."""
        raise NotImplementedError

    def _run(self, rows: list[int], ids: list[Sequence[int]], keep: list[int], layers: Sequence[int]) -> list[Passed]:
        """Run rows that are alike in one pass of the model; return what each gets of it."""
        raise NotImplementedError

    def _ran(self, batch: Any, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """Take note of a pass of the model that appended `ids[i]` to row i, all rows of this batch, in its order."""
        for place, (row, new) in enumerate(zip(rows, ids)):
            self._home[row] = (batch, place)
            self._lengths[row] += len(new)
        self.passes += 1
        self.positions += sum(map(len, ids))

    def _at_home(self, rows: Sequence[int], batch: Any, places: int) -> bool:
        """Whether these rows, in this order, are all that the batch holds."""
        return [self._home.get(row) for row in rows] == [(batch, i) for i in range(places)]
