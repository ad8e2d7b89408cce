"""The forward pass of many slots for encoder-decoders whose decoder carries a state (an LSTM) in place of keys and values.

Such a model says so (`_is_stateful`). What its decoder goes on from, the trunk's `first_past(encoder_outputs)` and `past_key_values`, is a tuple of tensors whose
rows come first, and no pass changes one: slots that were forked share it, and slots of any length run together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from .architecture import Capabilities, ModelOutput
from .encoder_decoder import EncoderDecoderRunner, Source, padded
from .stateful import NeverCut

State = tuple[Tensor, ...]


@dataclass(eq=False)
class ReadSource(Source):
    """A source with what the decoder goes on from before any token, once it was read."""

    first: State | None = None


class RecurrentRunner(NeverCut, EncoderDecoderRunner):
    """Runs slots of their own length, each over a source of its own length and with a state of its own, as a `Runner`."""

    capabilities = Capabilities(truncate=False, hidden_states=True)

    def allocate(self, source_ids: Sequence[int] = ()) -> int:
        """As `EncoderDecoderRunner`."""
        slot = super().allocate(source_ids)
        self._sources[slot] = ReadSource(list(source_ids))
        return slot

    def _alike(self, slot: int, new: Sequence[int]) -> int:
        return len(new)  # padding behind them would go into the state

    def _encode(self, sources: list[ReadSource]) -> BaseModelOutput:
        """As `EncoderDecoderRunner`; each source keeps what the decoder goes on from as well."""
        out = super()._encode(sources)
        first = self.model.base_model.first_past(out)
        for i, source in enumerate(sources):
            source.first = row_of(first, i)
        return out

    def _run(self, slots: list[int], ids: list[Sequence[int]], keep: list[int], layers: Sequence[int]) -> list[ModelOutput]:
        """One pass of the decoder over slots that bring equally many ids."""
        sources = [self._sources[slot] for slot in slots]
        pasts = [self._home[slot][0] if self._lengths[slot] else source.first for slot, source in zip(slots, sources)]
        states, mask = padded(sources)
        out = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=torch.tensor(ids, device=states.device),
            past_key_values=tuple(torch.cat(parts) for parts in zip(*pasts)),
            output_hidden_states=bool(layers),
        )
        for i, (slot, new) in enumerate(zip(slots, ids)):
            self._home[slot] = (row_of(out.past_key_values, i), 0)
            self._lengths[slot] += len(new)
        self.passes += 1
        self.positions += sum(map(len, ids))
        return [
            ModelOutput(logits[len(logits) - k :], {layer: out.decoder_hidden_states[layer][i] for layer in layers})
            for i, (logits, k) in enumerate(zip(out.logits, keep))
        ]

    def _together(self, slots: list[int]) -> State:
        """A slot's state lies by itself already."""
        return self._home[slots[0]][0]


def row_of(state: State, i: int) -> State:
    """One slot's own, a row of each tensor."""
    return tuple(part[i : i + 1].clone() for part in state)
