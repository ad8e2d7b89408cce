"""The forward pass of many rows for architectures whose attention cannot be replaced (Bloom, Falcon, GPT-J, MPT).

The same calls as the ragged runner, through the model's own attention and a padded cache. A step of the same rows as
before appends to their cache; when rows join or leave, what they have is laid out anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from .architecture import Capabilities, Passed, context_limit, evaluating, refuse_unsupported, transformers_model
from .batched import BatchedRows


@dataclass(eq=False)
class Batch:
    """Rows that ran together: row i's past ends at the same place as all others' and begins after its padding."""

    cache: DynamicCache
    padding: list[int]
    width: int


class PaddedRunner(BatchedRows):
    """Runs rows of their own length through a model with padding on the left. See `RaggedRunner` for the calls."""

    capabilities = Capabilities(hidden_states=True)

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = transformers_model(model)
        refuse_unsupported(self.model)
        self.config = self.model.config.get_text_config()
        self.limit = context_limit(self.model)
        self._accepts = inspect.signature(type(self.model).forward).parameters

    def row(self) -> int:
        return self._add()

    def _alike(self, row: int, new: Sequence[int]) -> int:
        # padding within a row would shift the distances that ALiBi counts, so only a new row may have it
        return len(new) if self._lengths[row] else 0

    def _run(self, rows: list[int], ids: list[Sequence[int]], keep: list[int], layers: Sequence[int]) -> list[Passed]:
        """One pass of the model over rows that are all new, or bring equally many tokens."""
        batch = self._together(rows)
        device = self.model.get_input_embeddings().weight.device
        longest = max(map(len, ids))
        padding = [pad + longest - len(new) for pad, new in zip(batch.padding, ids)]
        width = batch.width + longest
        places = torch.arange(width, device=device) - torch.tensor(padding, device=device)[:, None]  # [rows, width]
        inputs = {
            "input_ids": torch.tensor([[0] * (longest - len(new)) + list(new) for new in ids], device=device),
            "attention_mask": (places >= 0).long(),
            "past_key_values": batch.cache,
            "use_cache": True,
            "output_hidden_states": bool(layers),
        }
        if "position_ids" in self._accepts:
            inputs["position_ids"] = places[:, -longest:].clamp(min=0)
        if "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = max(*keep, 1)
        with evaluating(self.model):
            out = self.model(**inputs)
        batch.padding, batch.width = padding, width
        self._ran(batch, rows, ids)
        return [
            Passed(part[part.shape[0] - k :], {layer: out.hidden_states[layer][i, longest - len(new) :] for layer in layers})
            for i, (part, k, new) in enumerate(zip(out.logits, keep, ids))
        ]

    def _together(self, rows: list[int]) -> Batch:
        """Return a batch of just these rows: the one that they are in already, or a new one."""
        if not any(self._lengths[row] for row in rows):
            return Batch(DynamicCache(), [0] * len(rows), 0)
        batch = self._home[rows[0]][0]
        tight = all(batch.width - pad == self._lengths[row] for pad, row in zip(batch.padding, rows))
        if tight and self._at_home(rows, batch, len(batch.padding)):
            return batch
        width = max(self._lengths[row] for row in rows)
        padding = [width - self._lengths[row] for row in rows]
        cache = DynamicCache()
        for layer in range(len(batch.cache.layers)):
            cache.update(*(torch.cat([F.pad(x, (0, 0, width - x.shape[2], 0)) for x in past]) for past in self._held(rows, layer)), layer)
        return Batch(cache, padding, width)

    def _held(self, rows: list[int], layer: int) -> tuple[list[Tensor], list[Tensor]]:
        """Each row's keys and each row's values in a layer: [1, kv_heads, length, d]."""
        keys, values = [], []
        for row in rows:
            batch, i = self._home[row]
            begin = batch.padding[i]
            span = slice(begin, begin + self._lengths[row])
            keys.append(batch.cache.layers[layer].keys[i : i + 1, :, span])
            values.append(batch.cache.layers[layer].values[i : i + 1, :, span])
        return keys, values
