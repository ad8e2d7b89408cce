"""The forward pass for architectures with layers that carry a state instead of keys and values (Mamba, RWKV, hybrids).

A state has no positions that could be padded, masked or cut away, so each slot runs by
itself, with the memory that the architecture makes for it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...data.errors import UserError
from .architecture import Capabilities, ModelOutput, check_pass, evaluating, memory_name
from .batched import CacheSlots, OfDecoder


class NeverCut:
    """Put before `CacheSlots` or what derives from it: slots whose past is a state, which is had as a whole or not at all."""

    def copy(self, source: int, target: int, first: int = 0, length: int | None = None) -> None:
        """Give `target` the state of `source`; raises UserError for a first part of it."""
        if length not in (None, self._lengths[source]):
            self._refuse_cut()
        super().copy(source, target)

    def truncate(self, slot: int, length: int) -> None:
        """A state cannot be cut: raises UserError unless nothing is to be forgotten, or everything."""
        if not length:
            self._lengths[slot] = 0
            self._home.pop(slot, None)
        elif length != self._lengths[slot]:
            self._refuse_cut()

    def _refuse_cut(self) -> None:
        raise UserError(f"{self.config.model_type} carries a state, which cannot take back tokens: use a strategy without drafts")


class StatefulRunner(NeverCut, OfDecoder, CacheSlots):
    """Runs slots one by one, each with its own state, as a `Runner`."""

    capabilities = Capabilities(truncate=False)

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self._memory = memory_name(self.model)

    def copy(self, source: int, target: int, first: int = 0, length: int | None = None) -> None:
        """As `NeverCut`: a copy goes on by itself, for the architecture writes its state in place."""
        super().copy(source, target, first, length)
        if source in self._home:
            self._home[target] = copy.deepcopy(self._home[source])

    @torch.no_grad()
    def observe(self, slots: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int], layers: Sequence[int]) -> ModelOutput:
        """Append `ids[i]` to slot i and return the logits of its newest `keep[i]` positions, [sum(keep), vocab]; raises UserError for hidden states.

        Slot by slot; behind a past token by token, for many architectures can only step singly there.
        """
        check_pass(slots, ids, keep, self.vocab_size)
        self._refuse_states(layers)
        logits = []
        with evaluating(self.model):
            for slot, new, kept in zip(slots, ids, keep):
                pieces = [[id] for id in new] if self._lengths[slot] else [list(new)]
                whole = torch.cat([self._run(slot, piece) for piece in pieces])
                logits.append(whole[len(whole) - kept :])
        return ModelOutput(torch.cat(logits), {})

    def head(self, states: Tensor) -> Tensor:
        """Raise UserError: where no hidden states, [n, hidden], are read, the head has nothing to work on."""
        self._refuse_states([-1])

    def _run(self, slot: int, ids: list[int]) -> Tensor:
        """One pass of the model: logits, [ids, vocab]."""
        device = self.model.get_input_embeddings().weight.device
        past = self._lengths[slot]
        inputs = {"input_ids": torch.tensor([ids], device=device), "use_cache": True}
        if past:
            inputs[self._memory] = self._home[slot]
        if "position_ids" in self._accepts:
            inputs["position_ids"] = torch.arange(past, past + len(ids), device=device)[None]
        output = self.model(**inputs)
        self._home[slot] = getattr(output, self._memory, None)
        if self._home[slot] is None:  # RecurrentGemma keeps it inside its layers, one for all slots
            raise UserError(f"{self.config.model_type} does not hand out its state, so slots cannot be kept apart: use another architecture")
        self._lengths[slot] += len(ids)
        self.passes += 1
        self.positions += len(ids)
        return output.logits[0]
