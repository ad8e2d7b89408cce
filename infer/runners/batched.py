"""What runners keep of their slots; and slots whose past lies in batches of slots that ran together."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from .architecture import ModelOutput, check_cut, check_pass


class CacheSlots:
    """What a runner without a cache of its own making keeps of its slots: how long each is, and `_home`, where its past lies.

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
        """How many ids a slot's tokens can have."""
        return self.config.vocab_size

    def length(self, slot: int) -> int:
        return self._lengths[slot]

    def fork(self, slots: Sequence[int]) -> list[int]:
        forks = [self._add() for _ in slots]
        for slot, fork in zip(slots, forks):
            self.copy(slot, fork)
        return forks

    def copy(self, source: int, target: int, first: int = 0) -> None:
        """Give `target` the past of `source`, of which it has the first `first` positions already; nothing is moved before it runs."""
        self._lengths[target] = self._lengths[source]
        self._home.pop(target, None)
        if source in self._home:
            self._home[target] = self._home[source]

    def release(self, slots: Sequence[int]) -> None:
        for slot in slots:
            del self._lengths[slot]
            self._home.pop(slot, None)

    def refresh(self, keep: Collection[int] = ()) -> None:
        self.release([slot for slot in self._lengths if slot not in keep])

    def _add(self) -> int:
        slot, self._next = self._next, self._next + 1
        self._lengths[slot] = 0
        return slot


class BatchedRunner(CacheSlots):
    """Slots whose past is a batch and a place there.

    A batch's past is only ever appended to, so slots may share a place: a slot's past is the first `length` positions of it.
    A runner says by `_alike` which slots can go together, and by `_run` how they do.
    """

    def truncate(self, slot: int, length: int) -> None:
        check_cut(slot, length, self._lengths[slot])
        self._lengths[slot] = length

    def forward(self, slots: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int]) -> Tensor:
        """As the ragged runner; slots that are not alike take a pass of the model each kind."""
        return self.observe(slots, ids, keep, ()).logits

    @torch.no_grad()
    def observe(self, slots: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int], layers: Sequence[int]) -> ModelOutput:
        check_pass(slots, ids, keep, self.vocab_size)
        groups: dict[Hashable, list[int]] = {}
        for i, (slot, new) in enumerate(zip(slots, ids)):
            groups.setdefault(self._alike(slot, new), []).append(i)
        passed: list[ModelOutput | None] = [None] * len(slots)
        for group in groups.values():
            group.sort(key=lambda i: self._home[slots[i]][1] if slots[i] in self._home else 0)  # as they lie, nothing has to move
            parts = self._run([slots[i] for i in group], [ids[i] for i in group], [keep[i] for i in group], layers)
            for i, part in zip(group, parts):
                passed[i] = part
        states = {layer: torch.cat([part.states[layer] for part in passed]) for layer in layers}
        return ModelOutput(torch.cat([part.logits for part in passed]), states)

    @torch.no_grad()
    def head(self, states: Tensor) -> Tensor:
        """Return what the language model head makes of hidden states, [n, hidden] to [n, vocab]."""
        return self.model.get_output_embeddings()(states)

    def _alike(self, slot: int, new: Sequence[int]) -> Hashable:
        """Return a key that slots share when they may run together."""
        raise NotImplementedError

    def _run(self, slots: list[int], ids: list[Sequence[int]], keep: list[int], layers: Sequence[int]) -> list[ModelOutput]:
        """Run slots that are alike in one pass of the model; return what each gets of it."""
        raise NotImplementedError

    def _ran(self, batch: Any, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """Take note of a pass of the model that appended `ids[i]` to slot i, all slots of this batch, in its order."""
        for place, (slot, new) in enumerate(zip(slots, ids)):
            self._home[slot] = (batch, place)
            self._lengths[slot] += len(new)
        self.passes += 1
        self.positions += sum(map(len, ids))

    def _at_home(self, slots: Sequence[int], batch: Any, places: int) -> bool:
        """Whether these slots, in this order, are all that the batch holds."""
        return [self._home.get(slot) for slot in slots] == [(batch, i) for i in range(places)]
