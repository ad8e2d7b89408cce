"""The forward pass of many slots for architectures whose attention cannot be replaced (Bloom, Falcon, GPT-J, MPT).

Through the model's own attention and a padded cache. A step of the same slots as
before appends to their cache; when slots join or leave, what they have is laid out anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from .architecture import Capabilities, ModelOutput, evaluating, memory_name
from .batched import BatchedRunner, OfDecoder


@dataclass(eq=False)
class Batch:
    """Slots that ran together: slot i's past ends at the same place as all others' and begins after its padding."""

    cache: DynamicCache
    padding: list[int]
    width: int

    def __len__(self) -> int:
        return len(self.padding)


class PaddedRunner(OfDecoder, BatchedRunner):
    """Runs slots of their own length through a model with padding on the left, as a `Runner`."""

    capabilities = Capabilities(hidden_states=True)

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self._memory = memory_name(self.model)

    def _alike(self, slot: int, new: Sequence[int]) -> int:
        # padding within a slot would shift the distances that ALiBi counts, so only a new slot may have it
        return len(new) if self._lengths[slot] else 0

    def _run(self, slots: list[int], ids: list[Sequence[int]], keep: list[int], layers: Sequence[int]) -> list[ModelOutput]:
        """One pass of the model over slots that are all new, or bring equally many tokens."""
        batch = self._together(slots)
        device = self.model.get_input_embeddings().weight.device
        longest = max(map(len, ids))
        padding = [pad + longest - len(new) for pad, new in zip(batch.padding, ids)]
        width = batch.width + longest
        positions = torch.arange(width, device=device) - torch.tensor(padding, device=device)[:, None]  # [rows, width]
        inputs = {
            "input_ids": torch.tensor([[0] * (longest - len(new)) + list(new) for new in ids], device=device),
            "attention_mask": (positions >= 0).long(),
            self._memory: batch.cache,
            "use_cache": True,
            "output_hidden_states": bool(layers),
        }
        if "position_ids" in self._accepts:
            inputs["position_ids"] = positions[:, -longest:].clamp(min=0)
        if "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = max(*keep, 1)
        with evaluating(self.model):
            out = self.model(**inputs)
        batch.padding, batch.width = padding, width
        self._ran(batch, slots, ids)
        return [
            ModelOutput(part[part.shape[0] - k :], {layer: out.hidden_states[layer][i, longest - len(new) :] for layer in layers})
            for i, (part, k, new) in enumerate(zip(out.logits, keep, ids))
        ]

    def _together(self, slots: list[int]) -> Batch:
        """Return a batch of just these slots: the one that they are in already, or a new one."""
        if not any(self._lengths[slot] for slot in slots):
            return Batch(DynamicCache(), [0] * len(slots), 0)
        batch = self._home[slots[0]][0]
        tight = all(batch.width - pad == self._lengths[slot] for pad, slot in zip(batch.padding, slots))
        if tight and self._are_all_of(slots, batch, len(batch.padding)):
            return batch
        width = max(self._lengths[slot] for slot in slots)
        padding = [width - self._lengths[slot] for slot in slots]
        cache = DynamicCache()
        for layer in range(len(batch.cache.layers)):
            cache.update(*(torch.cat([F.pad(x, (0, 0, width - x.shape[2], 0)) for x in past]) for past in self._pasts(slots, layer)), layer)
        return Batch(cache, padding, width)

    def _pasts(self, slots: list[int], layer: int) -> tuple[list[Tensor], list[Tensor]]:
        """Each slot's keys and each slot's values in a layer: [1, kv_heads, length, d]."""
        keys, values = [], []
        for slot in slots:
            batch, i = self._home[slot]
            begin = batch.padding[i]
            span = slice(begin, begin + self._lengths[slot])
            keys.append(batch.cache.layers[layer].keys[i : i + 1, :, span])
            values.append(batch.cache.layers[layer].values[i : i + 1, :, span])
        return keys, values
