"""The forward pass of many slots for architectures that read with an encoder and answer with a decoder, over the transformers model as it is.

What the families of `encoder_decoder_layers` do otherwise stands in `direct_encoder_decoder`. A slot is opened on its source. The encoder reads a source once, at the first pass of
its first slot; forks share what it made of it. Some decoders count their positions themselves, so slots of equal length run together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ...data.errors import UserError
from ..kernels.held import held_bytes
from ..text.vocabulary import check_ids
from .architecture import Capabilities, ModelOutput, evaluating, memory_name, transformers_model
from .batched import TRIED, BatchedRunner
from .encoder_decoder_layers import output_scale

MAX_POSITIONS = 16_384  # source positions, padding included, that the encoder reads at a time
HIDDEN_HEADS = ("encoder-decoder", "fsmt")  # of which get_output_embeddings() is not all
ONE_BY_ONE = ("fsmt",)  # whose decoders take a single new position over a cache


@dataclass(eq=False)
class Source:
    """What a slot answers to, and the encoder's states of it, [len(ids), hidden], once it was read."""

    ids: list[int]
    states: Tensor | None = None


@dataclass(eq=False)
class Batch:
    """Slots that ran together, over sources padded on the right."""

    cache: EncoderDecoderCache
    sources: list[Source]
    states: Tensor  # [rows, longest source, hidden]
    mask: Tensor  # [rows, longest source]

    def __len__(self) -> int:
        return len(self.sources)


class EncoderDecoderRunner(BatchedRunner):
    """Runs slots of their own length, each over a source of its own length, as a `Runner`."""

    capabilities = Capabilities(hidden_states=True)

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = transformers_model(model)
        refuse_unfit(self.model)
        self.config = self.model.config.get_text_config(decoder=True)
        self.limit, self.source_limit = position_limit(self.model, "decoder"), position_limit(self.model, "encoder")
        self.source_vocab = self.model.get_input_embeddings().weight.shape[0]
        self.target_vocab = self.model.get_output_embeddings().weight.shape[0]
        self._memory = memory_name(self.model)
        self._sources: dict[int, Source] = {}

    @property
    def vocab_size(self) -> int:
        """How many ids the decoder's tokens can have."""
        return self.target_vocab

    def allocate(self, source_ids: Sequence[int] = ()) -> int:
        """Return a new slot without a past, which answers to this source; raises UserError for one that is empty, too long or of unknown ids."""
        n = len(source_ids)
        if not n:
            raise UserError("the source is empty: give the encoder at least one token to read")
        if self.source_limit is not None and n > self.source_limit:
            raise UserError(f"the source has {n} tokens, more than the {self.source_limit} positions of the encoder: shorten it")
        check_ids(source_ids, self.source_vocab, "the source")
        slot = self._add()
        self._sources[slot] = Source(list(source_ids))
        return slot

    @property
    def memory(self) -> int:
        """How many bytes the slots' pasts and what was read of their sources take now."""
        return held_bytes([self._home, self._sources])

    def bytes_for(self, positions: int, source: int = 0) -> int:
        """Return at most how many bytes a slot of so many positions over a source of so many ids comes to take."""
        fixed, each, read = self._costs
        return self.spare * (fixed + positions * each + source * read)

    @cached_property
    def _costs(self) -> tuple[int, int, int]:
        """What a slot takes in any case, each position of it, and each id of its source."""
        least, longer, wider = (self._tried(*lengths) for lengths in ((TRIED, TRIED), (2 * TRIED, TRIED), (TRIED, 2 * TRIED)))
        each, read = -(-(longer - least) // TRIED), -(-(wider - least) // TRIED)
        return max(least - TRIED * (each + read), 0), each, read

    def _tried(self, length: int, source: int = TRIED) -> int:
        trial = self._blank()
        trial.forward([trial.allocate([0] * source)], [[0] * length], [1])
        return trial.memory

    def _blank(self) -> Self:
        blank = super()._blank()
        blank._sources = {}
        return blank

    def copy(self, source: int, target: int, first: int = 0, length: int | None = None) -> None:
        """Give slot `target` the source of slot `source`, and its past or its first `length` positions."""
        super().copy(source, target, first, length)
        self._sources[target] = self._sources[source]

    def release(self, slots: Sequence[int]) -> None:
        """Give back the slots, their memory and their sources."""
        super().release(slots)
        for slot in slots:
            del self._sources[slot]

    @torch.no_grad()
    def observe(self, slots: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int], layers: Sequence[int]) -> ModelOutput:
        """As `BatchedRunner`, with the sources read that no pass has read yet."""
        with evaluating(self.model):
            self._read({id(source): source for slot in slots if (source := self._sources[slot]).states is None}.values())
            return super().observe(slots, ids, keep, layers)

    def head(self, states: Tensor) -> Tensor:
        """Return the logits of hidden states, [n, hidden] to [n, vocab]; some scale what goes in, or bend what comes out. Raises UserError where it cannot."""
        config = self.config
        if (kind := self.model.config.model_type) in HIDDEN_HEADS:
            raise UserError(f"the head of the {kind} model cannot be asked for by itself: use a strategy that reads no inner layers")
        logits = super().head(states * output_scale(config)) + getattr(self.model, "final_logits_bias", 0.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _alike(self, slot: int, new: Sequence[int]) -> tuple[int, int]:
        length = self._lengths[slot]
        if length or self.config.model_type in ONE_BY_ONE:
            return length, len(new)
        return 0, -len(new).bit_length()  # new slots may be padded behind their ids, up to twice their number

    def _read(self, sources: Sequence[Source]) -> None:
        """Run the encoder over sources, those of about the same length together."""
        together: list[Source] = []
        for source in sorted(sources, key=lambda source: len(source.ids), reverse=True):
            longest = len(together[0].ids) if together else 0
            if longest * (len(together) + 1) > MAX_POSITIONS or longest > 2 * len(source.ids):
                self._encode(together)
                together = []
            together.append(source)
        if together:
            self._encode(together)

    def _encode(self, sources: list[Source]) -> BaseModelOutput:
        """One pass of the encoder, whose output is returned, padded; each source keeps its own states."""
        device = self.model.get_input_embeddings().weight.device
        ids = [torch.tensor(source.ids, device=device) for source in sources]
        padding = getattr(self.config, "pad_token_id", None)
        out = self.model.get_encoder()(
            input_ids=pad_sequence(ids, batch_first=True, padding_value=padding or 0),
            attention_mask=pad_sequence([torch.ones_like(own) for own in ids], batch_first=True),
        )
        self._encoded = type(out)
        for source, own in zip(sources, out.last_hidden_state):
            source.states = own[: len(source.ids)].clone()  # or one slot would hold the memory of all
        self.positions += sum(map(len, ids))
        return out

    def _run(self, slots: list[int], ids: list[Sequence[int]], keep: list[int], layers: Sequence[int]) -> list[ModelOutput]:
        """Run the decoder over slots of one length."""
        if len(ids[0]) == 1 or self.config.model_type not in ONE_BY_ONE:
            return self._step(slots, ids, keep, layers)
        steps = [self._step(slots, [[id] for id in new], [1] * len(slots), layers) for new in zip(*ids)]
        return [
            ModelOutput(torch.cat([own.logits for own in part])[len(part) - k :], {n: torch.cat([own.states[n] for own in part]) for n in layers})
            for part, k in zip(zip(*steps), keep)
        ]

    def _step(self, slots: list[int], ids: list[Sequence[int]], keep: list[int], layers: Sequence[int]) -> list[ModelOutput]:
        """One pass of the decoder over slots of one length; no token sees the padding behind it."""
        longest = max(map(len, ids))
        batch = self._together(slots)
        out = self.model(
            encoder_outputs=self._encoded(last_hidden_state=batch.states),
            attention_mask=batch.mask,
            decoder_input_ids=torch.tensor([[*new, *[0] * (longest - len(new))] for new in ids], device=batch.mask.device),
            use_cache=True,
            output_hidden_states=bool(layers),
            **{self._memory: batch.cache},
        )
        self._ran(batch, slots, ids)
        return [
            ModelOutput(logits[len(new) - k : len(new)], {layer: out.decoder_hidden_states[layer][i, : len(new)] for layer in layers})
            for i, (logits, new, k) in enumerate(zip(out.logits, ids, keep))
        ]

    def _together(self, slots: list[int]) -> Batch:
        """Return a batch of just these slots: the one that they are in already, or a new one."""
        sources, length = [self._sources[slot] for slot in slots], self._lengths[slots[0]]
        if not length:
            return Batch(EncoderDecoderCache(DynamicCache(), DynamicCache()), sources, *padded(sources))
        homes = [self._home[slot] for slot in slots]
        first = homes[0][0]
        if first.cache.get_seq_length() == length and self._are_all_of(slots, first, len(first.sources)):
            return first
        past = joined([(batch.cache.self_attention_cache, i) for batch, i in homes], length)
        if all(batch is first for batch, _ in homes) and sources == first.sources:  # beams that were reordered
            return Batch(EncoderDecoderCache(past, first.cache.cross_attention_cache), sources, first.states, first.mask)
        states, mask = padded(sources)
        read = joined([(batch.cache.cross_attention_cache, i) for batch, i in homes], mask.shape[1])
        return Batch(EncoderDecoderCache(past, read), sources, states, mask)


def padded(sources: list[Source]) -> tuple[Tensor, Tensor]:
    """Lay the states of sources side by side, [rows, longest, hidden], and mark what is not padding, [rows, longest]."""
    marks = [own.states.new_ones(len(own.ids), dtype=torch.long) for own in sources]
    return pad_sequence([own.states for own in sources], batch_first=True), pad_sequence(marks, batch_first=True)


def joined(pasts: list[tuple[DynamicCache, int]], width: int) -> DynamicCache:
    """Return a cache of `width` positions with one slot, (cache, index), from each of these; what one lacks is zeros."""
    cache = DynamicCache()
    for layer in range(len(pasts[0][0])):
        layers = [(past.layers[layer], i) for past, i in pasts]
        keys, values = ([(getattr(own, name), i) for own, i in layers] for name in ("keys", "values"))
        cache.update(picked(keys, width), picked(values, width), layer)
    return cache


def picked(parts: list[tuple[Tensor, int]], width: int) -> Tensor:
    """Return a slot of each tensor, [.., heads, n, d], cut or padded with zeros to [rows, heads, width, d]."""
    first = parts[0][0]
    if all(tensor is first for tensor, _ in parts):
        return F.pad(first[[i for _, i in parts], :, :width], (0, 0, 0, max(width - first.shape[2], 0)))
    return torch.stack([F.pad(tensor[i, :, :width], (0, 0, 0, max(width - tensor.shape[2], 0))) for tensor, i in parts])


def decoder_start(model: nn.Module) -> list[int]:
    """Return the ids that the decoder is shown before any of the answer; raises UserError where the checkpoint names none."""
    model = transformers_model(model)
    configs = [model.generation_config, model.config, model.config.get_text_config(decoder=True)]
    for name in ("decoder_start_token_id", "bos_token_id"):
        for config in configs:
            if isinstance(start := getattr(config, name, None), int):
                return [start]
    kind = model.config.model_type
    raise UserError(f"the {kind} checkpoint does not say how an answer begins: set decoder_start_token_id in its generation_config.json")


def position_limit(model: PreTrainedModel, side: str) -> int | None:
    """Return how many positions the "encoder" or the "decoder" can have, or None where its positions are relative."""
    config = model.config
    own = getattr(config, side, None)
    fields = [(config, f"max_{side}_position_embeddings"), (config if own is None else own, "max_position_embeddings")]
    return next((value for holder, name in fields if isinstance(value := getattr(holder, name, None), int) and value > 0), None)


def refuse_unfit(model: PreTrainedModel) -> None:
    """Raise UserError for models that do not turn a text into a text."""
    kind = model.config.model_type
    if model.main_input_name != "input_ids":
        raise UserError(f"{kind} reads {model.main_input_name}, not tokens: use a model from text to text")
    if kind == "prophetnet":
        raise UserError("prophetnet's decoder carries a stream for each of its n-grams, which Seodang does not run: use T5, BART or Marian")
    if model.get_output_embeddings() is None:
        raise UserError(f"{type(model).__name__} has no language model head: load it with AutoModelForSeq2SeqLM")
