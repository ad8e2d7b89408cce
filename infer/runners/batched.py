"""What runners keep of their slots; and slots whose past lies in batches of slots that ran together."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...data.errors import UserError
from ..kernels.held import held_bytes
from ..kernels.low_rank import Adapter
from .architecture import ModelOutput, check_cut, check_pass, decoding_limit, refuse_source, refuse_unsupported, transformers_model

TRIED = 8  # positions: what a slot takes is learnt from one of so many and one of twice as many


class CacheSlots:
    """What a runner without a cache of its own making keeps of its slots: how long each is, and `_home`, where its past lies.

    `passes` and `positions` count what was computed. `spare` is how many times what a slot holds its memory may come to while it is written.
    """

    spare = 2  # a layer's memory, or a batch's, is there twice while it grows

    def __init__(self):
        self.passes = self.positions = 0
        self._lengths: dict[int, int] = {}
        self._home: dict[int, Any] = {}
        self._next = 0

    @property
    def live(self) -> int:
        """How many slots are allocated."""
        return len(self._lengths)

    @property
    def vocab_size(self) -> int:
        """How many ids a slot's tokens can have."""
        return self.config.vocab_size

    @property
    def memory(self) -> int:
        """How many bytes the slots' pasts take now."""
        return held_bytes(self._home.values())

    def bytes_for(self, positions: int, source: int = 0) -> int:
        """Return at most how many bytes a slot of so many positions comes to take; the first call runs two short passes to learn it."""
        fixed, each = self._costs
        return self.spare * (fixed + positions * each)

    def length(self, slot: int) -> int:
        """Return how many positions of the slot are in the cache."""
        return self._lengths[slot]

    def fork(self, slots: Sequence[int]) -> list[int]:
        """Return a new slot for each of these, with the same past."""
        forks = [self._add() for _ in slots]
        for slot, fork in zip(slots, forks):
            self.copy(slot, fork)
        return forks

    def copy(self, source: int, target: int, first: int = 0, length: int | None = None) -> None:
        """Give `target` the past of `source`, or its first `length` positions, whatever it has already; nothing is moved before it runs."""
        length = self._lengths[source] if length is None else length
        check_cut(source, length, self._lengths[source])
        self._lengths[target] = length
        self._home.pop(target, None)
        if source in self._home:
            self._home[target] = self._home[source]

    def mask(self, slot: int, positions: Sequence[int]) -> None:
        """Raise UserError: where past and padding lie together, nothing can be left out between."""
        raise UserError(f"{self.config.model_type} cannot leave out a part of its prompt: drop hide and attention_mask")

    def adapt(self, slot: int, adapter: Adapter | None) -> None:
        """Raise UserError for an adapter, which goes with rows that lie end to end."""
        if adapter is not None:
            raise UserError(f"{self.config.model_type} runs no adapters beside its weights: merge {adapter.name} into a model of its own (seodang export)")

    def attend_both_ways(self, slot: int, on: bool, after: int = 0) -> None:
        """Raise UserError for both ways: the attention is the architecture's own, and looks back."""
        if on:
            remedy = "use an architecture whose attention can be replaced (Llama, Qwen)"
            raise UserError(f"{self.config.model_type} lets no position see those that follow it: {remedy}")

    def rewrite(self, slot: int, at: int) -> None:
        """Raise UserError: a past is only ever appended to."""
        raise UserError(f"{self.config.model_type} cannot read a part of slot {slot} anew, from position {at} on: cut it there and read all behind it")

    def forward(self, slots: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int]) -> Tensor:
        """Append `ids[i]` to slot i and return the logits of its newest `keep[i]` positions, [sum(keep), vocab]; each kind of slots is a pass."""
        return self.observe(slots, ids, keep, ()).logits

    def shelve(self, slots: Sequence[int]) -> None:
        """Nothing: slots that do not run lie by themselves already."""

    def release(self, slots: Sequence[int]) -> None:
        """Give back the slots and their memory."""
        for slot in slots:
            del self._lengths[slot]
            self._home.pop(slot, None)

    def refresh(self, keep: Collection[int] = ()) -> None:
        """Release every slot that is not kept."""
        self.release([slot for slot in self._lengths if slot not in keep])

    @cached_property
    def _costs(self) -> tuple[int, int]:
        """What a slot takes whatever its length, and each position of it."""
        short, long = (self._tried(length) for length in (TRIED, 2 * TRIED))
        each = -(-(long - short) // TRIED)
        return max(short - TRIED * each, 0), each

    def _tried(self, length: int) -> int:
        """What a slot of so many positions takes, of a runner beside this one."""
        trial = self._blank()
        trial.forward([trial.allocate()], [[0] * length], [1])
        return trial.memory

    def _blank(self) -> Self:
        """Return a runner of the same model without slots."""
        blank = copy.copy(self)
        CacheSlots.__init__(blank)
        return blank

    def _refuse_states(self, layers: Sequence[int]) -> None:
        """Raise UserError where hidden states are asked for, which these architectures do not hand out alike."""
        if layers:
            raise UserError(f"Seodang does not read the hidden states of {self.config.model_type}: use a strategy that asks for none")

    def _add(self) -> int:
        slot, self._next = self._next, self._next + 1
        self._lengths[slot] = 0
        return slot


class OfDecoder:
    """Put before `CacheSlots` or what derives from it: what a runner of a decoder reads of its model, and slots that have no source."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = transformers_model(model)
        refuse_unsupported(self.model)
        self.config = self.model.config.get_text_config()
        self.limit = decoding_limit(self.model)
        self._accepts = inspect.signature(type(self.model).forward).parameters

    def allocate(self, source_ids: Sequence[int] = ()) -> int:
        """Return a new slot without a past; raises UserError for a source, which a decoder does not read."""
        refuse_source(self.config, source_ids)
        return self._add()


class BatchedRunner(CacheSlots):
    """Slots whose past is a batch and an index there.

    A batch's past is only ever appended to, so slots may share an index: a slot's past is the first `length` positions of it.
    A runner says by `_alike` which slots can go together, by `_together` how they are laid in one batch, and by `_run` how they run.
    """

    spare = 3  # a batch is laid anew beside the old one, of whose slots up to half may have been released

    def release(self, slots: Sequence[int]) -> None:
        """Give back the slots and their memory; what is left of a batch of which most has gone is laid anew."""
        left = {id(home[0]): home[0] for slot in slots if (home := self._home.get(slot)) is not None}
        super().release(slots)
        stay = Counter(id(batch) for batch, _ in self._home.values())
        self._lay_apart([batch for key, batch in left.items() if 2 * stay[key] <= len(batch)])

    def truncate(self, slot: int, length: int) -> None:
        """Keep the first `length` positions of the slot; raises UserError for more than it has."""
        check_cut(slot, length, self._lengths[slot])
        self._lengths[slot] = length

    @torch.no_grad()
    def observe(self, slots: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int], layers: Sequence[int]) -> ModelOutput:
        """As `forward`, with the hidden states of these layers at every new position, [sum(len(ids)), hidden] each."""
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
        left = {id(home[0]): home[0] for slot in slots if (home := self._home.get(slot)) is not None and home[0] is not batch}
        for index, (slot, new) in enumerate(zip(slots, ids)):
            self._home[slot] = (batch, index)
            self._lengths[slot] += len(new)
        self._lay_apart(list(left.values()))
        self.passes += 1
        self.positions += sum(map(len, ids))

    def _lay_apart(self, left: Sequence[Any]) -> None:
        """Lay each slot by itself that is still in one of these batches, which others have left: it would hold the memory of all."""
        if left:
            own = {id(batch) for batch in left}
            for slot in [slot for slot, (batch, _) in self._home.items() if id(batch) in own]:
                self._home[slot] = (self._together([slot]), 0)

    def _together(self, slots: list[int]) -> Any:
        """Return a batch of just these slots, as many as its len: the one that they are in already, or a new one."""
        raise NotImplementedError

    def _are_all_of(self, slots: Sequence[int], batch: Any, size: int) -> bool:
        """Whether these slots, in this order, are all that a batch of this size holds."""
        return [self._home.get(slot) for slot in slots] == [(batch, i) for i in range(size)]
