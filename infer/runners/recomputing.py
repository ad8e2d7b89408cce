"""The forward pass for architectures without a memory that fits (OpenAI GPT, XLNet): each pass reads every slot's whole sequence anew."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from .architecture import Capabilities, ModelOutput, evaluating
from .batched import BatchedRunner, OfDecoder

ID = 8  # bytes of an id in a list


class RecomputingRunner(OfDecoder, BatchedRunner):
    """Runs whole sequences without a cache, those of equal length together, as a `Runner`; of a slot's past it keeps the ids."""

    capabilities = Capabilities(parts=False)

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self._options = {"use_cache": False} if "use_cache" in self._accepts else {}

    @property
    def memory(self) -> int:
        """How many bytes the slots' ids take now."""
        return sum(self._lengths.values()) * ID

    def bytes_for(self, positions: int, source: int = 0) -> int:
        """Return at most how many bytes a slot of so many positions comes to take: of its past it keeps the ids."""
        return self.spare * positions * ID

    def _alike(self, slot: int, new: Sequence[int]) -> Hashable:
        return self._lengths[slot] + len(new)

    def _run(self, slots: list[int], ids: list[Sequence[int]], keep: list[int], layers: Sequence[int]) -> list[ModelOutput]:
        """One pass of the model over the whole of slots that are equally long."""
        self._refuse_states(layers)
        whole = [[*self._past(slot), *new] for slot, new in zip(slots, ids)]
        device = self.model.get_input_embeddings().weight.device
        with evaluating(self.model):
            out = self.model(input_ids=torch.tensor(whole, device=device), **self._options)
        self._ran(whole, slots, ids)
        self.positions += sum(len(own) - len(new) for own, new in zip(whole, ids))
        return [ModelOutput(logits[len(logits) - k :], {}) for logits, k in zip(out.logits, keep)]

    def head(self, states: Tensor) -> Tensor:
        """Raise UserError: where no hidden states, [n, hidden], are read, the head has nothing to work on."""
        self._refuse_states([-1])

    def _lay_apart(self, left: Sequence[list[list[int]]]) -> None:
        """Nothing: ids are little."""

    def _past(self, slot: int) -> list[int]:
        """The ids that a slot has seen."""
        if not self._lengths[slot]:
            return []
        batch, index = self._home[slot]
        return batch[index][: self._lengths[slot]]
