"""The forward pass of many slots over sources of their own, layer by layer over an encoder-decoder's own weights, without its modules.

The new tokens of all slots, whatever their lengths, are one pass, and so are the sources that no pass has read yet; nothing is padded.
What the decoder's layers read of a source is computed once and lies in the cache once: all slots that answer to it, beams above all,
read it together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.errors import UserError
from ..kernels.low_rank import Adapter, SlotAdapters
from .architecture import Capabilities, ModelOutput, check_pass
from .attention import attend, visible
from .cache import KVCache, Pool, SourceCache, StackedPool
from .direct import Step
from .encoder_decoder import MAX_POSITIONS, EncoderDecoderRunner, Source
from .encoder_decoder_layers import Block, RelativeBias, bind_encoder_decoder, supports_direct_encoder_decoder
from .lane_block import Region
from .model_lock import locked
from .ragged_attention import ForwardBatch, Long, Stretch, lay_out


class DirectEncoderDecoder(EncoderDecoderRunner):
    """An EncoderDecoderRunner for the families of `encoder_decoder_layers`: the same calls and tokens, in one pass without padding.

    Weights are read where the model keeps them, so that training changes what the next pass computes. A source belongs to the adapter
    that it was read with: slots share it that run with the same.
    """

    capabilities = Capabilities(hidden_states=True, adapters=True)

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self._adapters = SlotAdapters()
        self._bind()
        blocks, decoder = len(self.bound.decoder.blocks), self.bound.decoder
        new_pool = lambda capacity: StackedPool(capacity, blocks, decoder.heads, decoder.width)
        self.cache, self.read = KVCache(new_pool), SourceCache(new_pool)
        self._lengths = self.cache.lengths
        self._places: dict[Source, int] = {}  # where what was read of a source lies in `read`

    def _bind(self) -> None:
        with locked(self.model):  # as it is between passes
            self.bound = bind_encoder_decoder(self.model, self._adapters.kernel)
            self._addresses = self.bound.addresses()

    @property
    def memory(self) -> int:
        """How many bytes the slots' pasts and what was read of their sources take now; what slots share counts once."""
        return self.cache.memory + self.read.memory

    def bytes_for(self, positions: int, source: int = 0) -> int:
        """Return at most how many bytes a slot of so many positions over a source of so many ids comes to take."""
        decoder, weight = self.bound.decoder, self.model.get_input_embeddings().weight
        regions = [Region(decoder.heads, decoder.width, weight.dtype, weight.device)] * (2 * len(decoder.blocks))
        return self.cache.bytes_for(positions, regions) + self.read.bytes_for(source, regions)

    def fork(self, slots: Sequence[int]) -> list[int]:
        """Return a new slot for each of these, with the same past and the same source."""
        forks = self.cache.fork(slots)
        for slot, fork in zip(slots, forks):
            self._sources[fork] = self._sources[slot]
            self._adapters.put(fork, self._adapters.of(slot))
        return forks

    def copy(self, source: int, target: int, first: int = 0, length: int | None = None) -> None:
        """Give `target` the source of slot `source`, and its past or its first `length` positions, of which it has the first `first` already."""
        self.cache.copy(source, target, first, length)
        self._answer_to(target, self._sources[source])

    def adapt(self, slot: int, adapter: Adapter | None) -> None:
        """Run the slot with an adapter beside the weights, whatever the others of its passes run with; it reads its source with it."""
        if adapter is not self._adapters.of(slot):
            self._adapters.put(slot, adapter)
            self._answer_to(slot, Source(self._sources[slot].ids))

    def truncate(self, slot: int, length: int) -> None:
        """Keep a slot's first `length` positions: rejected guesses leave the cache."""
        self.cache.truncate(slot, length)

    def shelve(self, slots: Sequence[int]) -> None:
        """Lay slots that others are copied from apart from those that run, which are then read as one block."""
        self.cache.shelve(slots)

    def release(self, slots: Sequence[int]) -> None:
        """Give back the slots and their memory, and what was read of sources that no slot answers to any more."""
        self.cache.release(slots)
        for slot in slots:
            self._adapters.put(slot, None)
            del self._sources[slot]
        self._forget_sources()

    def refresh(self, keep: Collection[int] = ()) -> None:
        """Release every slot that is not kept, and look at the model's modules anew; raises UserError where this runner no longer fits them."""
        super().refresh(keep)
        if not supports_direct_encoder_decoder(self.model):
            kind = self.model.config.model_type
            raise UserError(f"the {kind} model is not what its runner was opened for (an adapter, a hook, another dtype): open a runner anew")
        self._bind()

    @torch.no_grad()
    def observe(self, slots: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int], layers: Sequence[int]) -> ModelOutput:
        """As `EncoderDecoderRunner`, all slots in one pass, behind one that reads the sources that were not read yet."""
        check_pass(slots, ids, keep, self.vocab_size)
        if self._addresses != self.bound.addresses():  # the model was moved or converted
            self._bind()
        device = self.model.get_input_embeddings().weight.device
        with ExitStack() as stack:
            if torch.is_autocast_enabled(device.type):  # the cache is in the model's own dtype
                stack.enter_context(torch.autocast(device.type, enabled=False))
            self._read_sources(slots, device)
            plan, tokens, positions, starts = lay_out(self.cache, slots, ids, lambda slot, count: [Stretch(count, True)])
            ends = [start + len(new) for start, new in zip(starts, ids)]
            wanted = [i for end, k in zip(ends, keep) for i in range(end - k, end)]
            if self.bound.places is not None:
                for slot, new, start in zip(slots, ids, starts):
                    positions[start : start + len(new)] = self.bound.places(new, self.cache.lengths[slot])
            spans = list(map(slice, starts, ends))
            with self._adapters.over(zip(slots, spans), lambda: device):
                logits, states = self._decode(plan, self._crossing(slots, spans), tokens, positions, wanted, layers)
        for slot, new in zip(slots, ids):
            self.cache.note(slot, len(new))
        self.passes += 1
        self.positions += len(tokens)
        if layers:
            order = torch.tensor([i for span in spans for i in range(span.start, span.stop)], device=device)
            states = {layer: hidden[order] for layer, hidden in states.items()}
        return ModelOutput(logits, states)

    def _add(self) -> int:
        return self.cache.add()

    def _answer_to(self, slot: int, source: Source) -> None:
        if self._sources[slot] is not source:
            self._sources[slot] = source
            self._forget_sources()

    def _forget_sources(self) -> None:
        """Give the memory back of sources that no slot answers to."""
        used = set(self._sources.values())
        gone = [source for source in self._places if source not in used]
        self.read.release([self._places.pop(source) for source in gone])

    def _read_sources(self, slots: Sequence[int], device: torch.device) -> None:
        """Run the encoder over sources of the slots that were not read yet, the shortest first, as many as a pass may have ids."""
        unread = {source: slot for slot in slots if (source := self._sources[slot]) not in self._places}
        together, total = [], 0
        for source in sorted(unread, key=lambda source: len(source.ids)):
            if together and total + len(source.ids) > MAX_POSITIONS:
                self._encode(together, unread, device)
                together, total = [], 0
            together.append(source)
            total += len(source.ids)
        if together:
            self._encode(together, unread, device)

    def _encode(self, sources: list[Source], slots: dict[Source, int], device: torch.device) -> None:
        """Run sources, the shortest first, through the encoder, end to end; those of one length attend together."""
        encoder, ids, places, spans = self.bound.encoder, [], [], []
        for source in sources:
            spans.append(slice(len(ids), len(ids) + len(source.ids)))
            ids += source.ids
            places += range(len(source.ids)) if self.bound.places is None else self.bound.places(source.ids, 0)
        alike = [(n, sum(1 for _ in group)) for n, group in groupby(len(source.ids) for source in sources)]
        longest, biases = torch.arange(alike[-1][0], device=device), {}
        with self._adapters.over(zip(map(slots.get, sources), spans), lambda: device):
            hidden = encoder.embed(torch.tensor(ids, device=device), torch.tensor(places, device=device))
            for block in encoder.blocks:
                if block.bias is not None and block.bias not in biases:
                    biases[block.bias] = block.bias.at(longest, len(longest))
                bias = biases.get(block.bias)
                own = lambda x: block.out(self._attend_to_source(block.qkv(x), alike, bias, block.scale))
                hidden = encoder.add(hidden, block.attention_norm, own)
                hidden = encoder.add(hidden, block.feed_norm, block.feed)
            self._keep(sources, spans, encoder.finish(hidden))
        self.positions += len(ids)

    def _attend_to_source(self, qkv: Tensor, alike: list[tuple[int, int]], bias: Tensor | None, scale: float) -> Tensor:
        """Return what the encoder's heads read, [total, heads * d], where so many sources each have one length."""
        stack, parts = self.bound.encoder, []
        for (n, count), part in zip(alike, qkv.split([n * count for n, count in alike])):
            query, key, value = part.view(count, n, 3, stack.heads, stack.width).permute(2, 0, 3, 1, 4)
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=None if bias is None else bias[None, :, :n, :n], scale=scale)
            parts.append(out.transpose(1, 2).reshape(n * count, -1))
        return torch.cat(parts)

    def _keep(self, sources: list[Source], spans: list[slice], states: Tensor) -> None:
        """Write into the cache what the decoder's layers read of these sources' states, [total, hidden]."""
        decoder = self.bound.decoder
        places = [self.read.add(len(source.ids)) for source in sources]
        lanes = list(map(self.read.locate, places))
        for layer, block in enumerate(decoder.blocks):
            read = block.cross_key_value(states).view(len(states), 2, decoder.heads, decoder.width).permute(1, 2, 0, 3)
            for (pool, lane), span in zip(lanes, spans):
                pool.ready(states)[layer, :, lane, :, : span.stop - span.start] = read[:, :, span]
        self._places |= zip(sources, places)

    def _crossing(self, slots: Sequence[int], spans: Sequence[slice]) -> Crossing:
        """Lay out which rows of a pass read which source."""
        rows: dict[int, list[int]] = {}
        for slot, span in zip(slots, spans):
            rows.setdefault(self._places[self._sources[slot]], []).extend(range(span.start, span.stop))
        return Crossing([Reader(*self.read.locate(place), self.read.lengths[place], own) for place, own in rows.items()])

    def _decode(
        self, plan: ForwardBatch, crossing: Crossing, tokens: list[int], positions: list[int], wanted: list[int], layers: Sequence[int]
    ) -> ModelOutput:
        """Take the plan's tokens through the decoder: logits at the tokens `wanted`, hidden states in the order of the tokens."""
        decoder, device = self.bound.decoder, self.model.get_input_embeddings().weight.device
        hidden = decoder.embed(torch.tensor(tokens, device=device), torch.tensor(positions, device=device))
        steps, biases, states = [Step(run, hidden) for run in plan.runs], {}, {}
        asked = {layer % (len(decoder.blocks) + 1) for layer in layers}
        crossing.open(hidden)
        for layer, block in enumerate(decoder.blocks):
            if layer in asked:
                states[layer] = hidden
            own = lambda x: block.out(self._attend(plan, steps, layer, block, block.qkv(x), biases))
            cross = lambda x: block.cross_out(crossing.attend(layer, block.cross_query(x), block.scale))
            hidden = decoder.add(hidden, block.attention_norm, own)
            hidden = decoder.add(hidden, block.cross_norm, cross)
            hidden = decoder.add(hidden, block.feed_norm, block.feed)
        hidden = decoder.finish(hidden)
        if len(decoder.blocks) in asked:
            states[len(decoder.blocks)] = hidden
        if wanted != list(range(len(tokens))):
            hidden = hidden[torch.tensor(wanted, dtype=torch.long, device=device)]
        return ModelOutput(self.bound.head(hidden), {layer: states[layer % (len(decoder.blocks) + 1)] for layer in layers})

    def _attend(self, plan: ForwardBatch, steps: list[Step], layer: int, block: Block, qkv: Tensor, biases: dict) -> Tensor:
        """Return what the decoder's heads read of the slots' own pasts, [total, heads * d], with the new keys and values left in the cache."""
        heads, width = self.bound.decoder.heads, self.bound.decoder.width
        qkv = qkv.view(len(qkv), 3 * heads, width)
        parts = []
        for step in steps:
            bias = None if block.bias is None else bias_of_step(block.bias, step, biases, qkv.device)
            parts.append(step.attend(layer, qkv, heads, None, block.scale, bias))
        for long in plan.longer:
            query, key, value = qkv[long.tokens].view(-1, 3, heads, width).permute(1, 2, 0, 3)
            keys, values = (own[long.lane, :, : long.seen] for own in long.pool.tensors(layer, key, value))
            keys[:, long.past :], values[:, long.past :] = key, value
            if block.bias is None:
                out = attend(query[None], keys[None], values[None], past=long.past, scale=block.scale, masks=plan.masks)
            else:
                bias = bias_of_long(block.bias, long, biases, qkv.device)
                out = F.scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=bias, scale=block.scale)
            parts.append(out[0].transpose(0, 1).reshape(query.shape[1], -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def bias_of_step(bias: RelativeBias, step: Step, known: dict, device: torch.device) -> Tensor:
    """Return what is added to the scores of slots with one new token each, [rows or 1, heads, 1, keys], -inf at what a slot has not."""
    run = step.run
    if (bias, step) not in known:
        span, mask = run.view(None, device)
        positions = run.lanes_and_positions(device)[1]
        scores = bias.at(positions if mask is not None else positions[:1], span.stop).transpose(0, 1)[:, :, None]
        known[bias, step] = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    return known[bias, step]


def bias_of_long(bias: RelativeBias, long: Long, known: dict, device: torch.device) -> Tensor:
    """Return what is added to the scores of a slot's new tokens, [1, heads, n, keys], -inf at what stands behind them."""
    key = bias, long.past, long.seen
    if key not in known:
        scores = bias.at(torch.arange(long.past, long.seen, device=device), long.seen)
        mask = visible(long.seen - long.past, long.seen, long.past, None, True, device)
        known[key] = (scores if mask is None else scores.masked_fill(~mask, -torch.inf))[None]
    return known[key]


@dataclass(frozen=True, eq=False)
class Reader:
    """Rows of a pass that read one source, and where it lies."""

    pool: Pool
    lane: int
    length: int
    rows: list[int]


class Crossing:
    """Attention over the sources of a pass, each read once for all its rows; those in neighbouring lanes that as many read are one call."""

    def __init__(self, readers: Sequence[Reader]):
        readers = sorted(readers, key=lambda reader: (len(reader.rows), reader.pool.capacity, reader.lane))
        alike = groupby(enumerate(readers), key=lambda each: (len(each[1].rows), each[1].pool.capacity, each[1].lane - each[0]))
        self.groups = [[reader for _, reader in group] for _, group in alike]
        self.order = [row for reader in readers for row in reader.rows]

    def open(self, like: Tensor) -> None:
        """Make the views of the cache for all layers; `like` is hidden states of the pass."""
        self.seen, device = [], like.device
        for group in self.groups:
            first, longest = group[0], max(reader.length for reader in group)
            stack = first.pool.ready(like)[:, :, first.lane : first.lane + len(group), :, :longest]
            keys, values = (part.unbind(0) for part in stack.unbind(1))
            lengths, mask = torch.tensor([reader.length for reader in group], device=device), None
            if min(reader.length for reader in group) < longest:
                behind = torch.arange(longest, device=device) >= lengths[:, None]
                mask = like.new_zeros(behind.shape).masked_fill_(behind, -torch.inf)[:, None, None]
            self.seen.append((keys, values, mask))
        moved = self.order != list(range(len(self.order)))
        self.taken = torch.tensor(self.order, device=device) if moved else None
        self.back = torch.argsort(self.taken) if moved else None

    def attend(self, layer: int, query: Tensor, scale: float) -> Tensor:
        """Return what the heads read of the sources, [total, heads * d]; query is of the same shape."""
        query = query if self.taken is None else query[self.taken]
        parts, at = [], 0
        for group, (keys, values, mask) in zip(self.groups, self.seen):
            sources, rows, (heads, width) = len(group), len(group[0].rows), (keys[layer].shape[1], keys[layer].shape[3])
            own = query[at : (at := at + sources * rows)].view(sources, rows, heads, width).transpose(1, 2)
            out = F.scaled_dot_product_attention(own, keys[layer], values[layer], attn_mask=mask, scale=scale)
            parts.append(out.transpose(1, 2).reshape(sources * rows, -1))
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out if self.back is None else out[self.back]
