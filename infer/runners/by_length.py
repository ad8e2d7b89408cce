"""Rotary positions that hang on the length of the whole (longrope, dynamic NTK), for each slot by its own length.

The model turns all rows of a pass by the longest of them. Here slots that turn alike go through it together, and a slot that
comes to turn otherwise is read anew: each logit is that of the model's own forward pass of just what stands before it.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple, Self

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...data.errors import UserError
from .architecture import ModelOutput, check_pass, rope_settings
from .contract import Runner
from .model_lock import locked
from .padded import PaddedRunner
from .ragged import RaggedRunner
from .ragged_attention import Stretch
from .recomputing import RecomputingRunner
from .stateful import StatefulRunner


class Piece(NamedTuple):
    """New ids of a slot that one rotation is for, and of how many the logits are wanted."""

    ids: Sequence[int]
    keep: int
    turn: Hashable


class TurnsByLength:
    """Put before a runner's class, it keeps of each slot the ids that it has read, and how they were turned."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.capabilities = replace(self.capabilities, parts=False, rewrites=False)  # what turns otherwise would have all before it read anew
        self._read: dict[int, list[int]] = {}
        self._wholes: dict[int, list[slice]] = {}  # where positions were read that see one another
        self._turns: dict[int, Hashable] = {}
        self._anew: set[int] = set()  # slots of the pass under way that read all again
        self._warned = False

    def allocate(self, source_ids: Sequence[int] = ()) -> int:
        """Return a new slot without a past."""
        slot = super().allocate(source_ids)
        self._read[slot], self._wholes[slot] = [], []
        return slot

    def fork(self, slots: Sequence[int]) -> list[int]:
        """Return a new slot for each of these, with the same past."""
        forks = super().fork(slots)
        for slot, fork in zip(slots, forks):
            self._note(slot, fork)
        return forks

    def copy(self, source: int, target: int, first: int = 0, length: int | None = None) -> None:
        """Give `target` the past of `source`, or its first `length` positions; what both have already counts only where it was turned alike."""
        super().copy(source, target, first if self._turns.get(source) == self._turns.get(target) else 0, length)
        self._note(source, target, length)

    def attend_both_ways(self, slot: int, on: bool, after: int = 0) -> None:
        """As any runner's, but that none of the ids of a pass looks back where others do not: they may be turned by other lengths."""
        if on and after:
            raise UserError(f"{self.config.model_type} turns its positions by the length of the whole: read the first {after} ids of slot {slot} by themselves")
        super().attend_both_ways(slot, on)

    def rewrite(self, slot: int, at: int) -> None:
        """Raise UserError: what stands behind would be turned by another length."""
        raise UserError(f"{self.config.model_type} turns its positions by the length of the whole, so none is read anew in the midst of slot {slot}, at {at}")

    def truncate(self, slot: int, length: int) -> None:
        """Keep the slot's first `length` positions."""
        super().truncate(slot, length)
        del self._read[slot][length:]
        self._wholes[slot] = cut(self._wholes[slot], length)

    def release(self, slots: Sequence[int]) -> None:
        """Give back the slots, and forget what they have read."""
        super().release(slots)
        for slot in slots:
            del self._read[slot], self._wholes[slot]
            self._turns.pop(slot, None)

    def refresh(self, keep: Collection[int] = ()) -> None:
        """Release every slot that is not kept."""
        self.release([slot for slot in self._read if slot not in keep])
        super().refresh(keep)

    def observe(self, slots: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int], layers: Sequence[int]) -> ModelOutput:
        """As the runner's own, a pass for each rotation; hidden states are those of the pass that brought their ids."""
        check_pass(slots, ids, keep, self.vocab_size)
        waiting = {slot: self._pieces(slot, new, kept) for slot, new, kept in zip(slots, ids, keep)}
        done: dict[int, list[ModelOutput]] = {slot: [] for slot in slots}
        while left := [slot for slot in slots if waiting[slot]]:
            alike = [slot for slot in left if waiting[slot][0].turn == waiting[left[0]][0].turn]
            for slot, part in zip(alike, self._turned(alike, [waiting[slot].pop(0) for slot in alike], layers)):
                done[slot].append(part)
        parts = [part for slot in slots for part in done[slot]]
        states = {layer: torch.cat([part.states[layer] for part in parts]) for layer in layers}
        return ModelOutput(torch.cat([part.logits for part in parts]), states)

    def _blank(self) -> Self:
        """Return a runner of the same model without slots."""
        blank = super()._blank()
        blank._read, blank._wholes, blank._turns, blank._anew = {}, {}, {}, set()
        return blank

    def _pieces(self, slot: int, ids: Sequence[int], keep: int) -> list[Piece]:
        """Cut a slot's new ids where those whose logits are wanted turn otherwise than the ones before; what sees one another turns as its last."""
        turns = [turn_of(self.config, position + 1) for position in self._upcoming(slot, len(ids))]
        if self._sees_both_ways(slot):
            return [Piece(ids, keep, turns[-1])]
        pieces, begin = [], 0
        for turn, group in groupby(range(len(ids) - max(keep, 1), len(ids)), key=turns.__getitem__):
            end = 1 + max(own := list(group))
            pieces.append(Piece(ids[begin:end], len(own) if keep else 0, turn))
            begin = end
        return pieces

    def _turned(self, slots: list[int], pieces: list[Piece], layers: Sequence[int]) -> list[ModelOutput]:
        """Run pieces of one rotation in one pass; return what each gets of it."""
        runs = []
        for slot, piece in zip(slots, pieces):
            anew = bool(self._read[slot]) and self._turns[slot] != piece.turn
            if anew:
                self._warn(piece.turn)
                super().truncate(slot, 0)
                self._anew.add(slot)
            runs.append([*self._read[slot], *piece.ids] if anew else piece.ids)
        with locked(self.model), unturned(self.model):
            out = super().observe(slots, runs, [piece.keep for piece in pieces], layers)
        self._anew.clear()
        for slot, piece in zip(slots, pieces):
            if self._sees_both_ways(slot):
                self._wholes[slot].append(slice(len(self._read[slot]), len(self._read[slot]) + len(piece.ids)))
            self._read[slot] += piece.ids
            self._turns[slot] = piece.turn
        logits = out.logits.split([piece.keep for piece in pieces])
        states = {layer: hidden.split([len(run) for run in runs]) for layer, hidden in out.states.items()}
        return [ModelOutput(logits[i], {layer: states[layer][i][-len(piece.ids) :] for layer in layers}) for i, piece in enumerate(pieces)]

    def _sees_both_ways(self, slot: int) -> bool:
        """Whether the slot's new positions see one another."""
        return False

    def _upcoming(self, slot: int, count: int) -> Sequence[int]:
        """Return the positions of the slot's next tokens."""
        return range(self.length(slot), self.length(slot) + count)

    def _note(self, source: int, target: int, length: int | None = None) -> None:
        self._read[target] = self._read[source][:length]
        self._wholes[target] = cut(self._wholes[source], len(self._read[target]))
        self._turns.pop(target, None)
        if source in self._turns:
            self._turns[target] = self._turns[source]

    def _warn(self, turn: Hashable) -> None:
        """Say once what a rotation costs that is another one at every length."""
        if not self._warned and any(type(part) is int and part for part in turn):
            self._warned = True
            where = f"beyond {self.config.max_position_embeddings} tokens each costs a pass over all"
            warnings.warn(f"{self.config.model_type} turns its positions by the length of the whole (dynamic): {where}", stacklevel=2)


class RaggedByLength(TurnsByLength, RaggedRunner):
    """A RaggedRunner whose slots turn each by its own length."""

    def _upcoming(self, slot: int, count: int) -> Sequence[int]:
        return self.cache.positions(slot, count)

    def _sees_both_ways(self, slot: int) -> bool:
        return slot in self.cache.both_ways

    def _stretches(self, slot: int, count: int) -> list[Stretch]:
        if slot not in self._anew:
            return super()._stretches(slot, count)
        stretches, at, read = [], 0, len(self._read[slot])
        for whole in self._wholes[slot]:  # as they were read then
            stretches += [Stretch(whole.start - at, True), Stretch(whole.stop - whole.start, False)]
            at = whole.stop
        stretches += [Stretch(read - at, True), *super()._stretches(slot, count - read)]
        return [each for each in stretches if each.count]


class PaddedByLength(TurnsByLength, PaddedRunner):
    """A PaddedRunner whose slots turn each by its own length."""


class StatefulByLength(TurnsByLength, StatefulRunner):
    """A StatefulRunner whose slots turn each by its own length."""


class RecomputingByLength(TurnsByLength, RecomputingRunner):
    """A RecomputingRunner whose slots turn each by its own length."""


BY_LENGTH: dict[type[Runner], type[Runner]] = {
    RaggedRunner: RaggedByLength, PaddedRunner: PaddedByLength, StatefulRunner: StatefulByLength, RecomputingRunner: RecomputingByLength,
}  # fmt: skip


def cut(stretches: Sequence[slice], length: int) -> list[slice]:
    """Return what lies of stretches within the first `length` positions."""
    return [slice(each.start, min(each.stop, length)) for each in stretches if each.start < length]


def hangs_on_length(config: PreTrainedConfig) -> bool:
    """Whether some length turns positions otherwise than another."""
    return bool(turn_of(config, 1))


def turn_of(config: PreTrainedConfig, length: int) -> tuple[int, ...]:
    """Return what the rotation of a sequence of so many positions hangs on, of each kind of layer where it hangs on the length at all.

    Under longrope whether it is longer than the model was first trained with, under dynamic scaling the length itself where it is.
    """
    turns = []
    for rope in rope_settings(config):
        if rope["rope_type"] == "longrope":
            turns.append(length > rope["original_max_position_embeddings"])
        elif "dynamic" in rope["rope_type"]:
            turns.append(length if length > config.max_position_embeddings else 0)
    return tuple(turns)


@contextmanager
def unturned(model: PreTrainedModel) -> Iterator[None]:
    """Have the model's rotary modules begin as they were made, for they remember the longest pass so far; put back what they were."""
    modules = [module for module in model.modules() if hasattr(module, "rope_type")]
    before = [(dict(module._buffers), dict(vars(module))) for module in modules]
    try:
        for module in modules:
            for name, buffer in list(module._buffers.items()):
                original = getattr(module, name.replace("inv_freq", "original_inv_freq"), None) if "original" not in name else None
                if original is not None:
                    module._buffers[name] = original.to(buffer.device, copy=True)  # a pass writes into it
            for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
                setattr(module, name, module.original_max_seq_len)
        yield
    finally:
        for module, (buffers, attributes) in zip(modules, before):
            module._buffers.clear()
            module._buffers.update(buffers)
            vars(module).update(attributes)
