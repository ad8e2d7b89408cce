"""The forward pass of many slots at once, layer by layer over the model's own weights, without its modules."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.rotary import rotate
from .architecture import ModelOutput
from .cache import KVCache, Pool8, StackedPool
from .lane_block import Region
from .layers import Block, bind_weights, supports_direct
from .model_lock import locked
from .ragged import RaggedRunner
from .ragged_attention import ForwardBatch, Run, attend_pass


class DirectRunner(RaggedRunner):
    """A RaggedRunner for the families of `layers`: the same calls and the same tokens, with less work between the products.

    Weights are read where the model keeps them, so that training changes what the next pass computes. Hooks and
    modules that are put into the model later (an adapter) are seen after `refresh`, and then run as a RaggedRunner runs them.
    """

    def __init__(self, model: nn.Module, kv_cache_dtype: str | None = None):
        """Keys and values are kept in the model's dtype, or in 8 bits ("int8")."""
        self.kv_cache_dtype = kv_cache_dtype
        super().__init__(model)
        self._read()
        shape, pool = (len(self.decoder.blocks), self.decoder.kv_heads, self.decoder.width), Pool8 if kv_cache_dtype else StackedPool
        self.cache = KVCache(lambda capacity: pool(capacity, *shape))

    def refresh(self, keep: Collection[int] = ()) -> None:
        """Release every slot that is not kept, and look at the model's modules anew."""
        super().refresh(keep)
        with locked(self.model):  # as it is between passes
            self._covered = supports_direct(self.model)
            if self._covered:
                self._read()

    @property
    def covers(self) -> bool:
        """Whether it runs the model as its class says; where something was put into it, as a RaggedRunner does."""
        return self._covered

    @property
    def _regions(self) -> list[Region]:
        """What the cache keeps of a slot: keys and values of every layer."""
        return [self.cache.new_pool(0).region(self.model.get_input_embeddings().weight)] * (2 * len(self.decoder.blocks))

    def _read(self) -> None:
        self._covered = True
        self.decoder = bind_weights(self.model, self._adapters.kernel)
        self._addresses = self.decoder.addresses()
        self._begun = False  # whether a slot is new since all addresses were compared

    def allocate(self, source_ids: Sequence[int] = ()) -> int:
        """Return a new slot without a past; it takes the memory of a slot until released."""
        self._begun = True
        return super().allocate(source_ids)

    def _ready(self, device: str) -> bool:
        """Whether the next pass is one over the model's own weights, which are looked for again where they have moved.

        All are asked where they are once a slot is new, else the first alone: between two tokens of an answer a whole model may move, but no part of it.
        """
        if not self._covered or torch.is_autocast_enabled(device):
            return False
        addresses = self.decoder.addresses(None if self._begun else 1)
        if addresses != self._addresses[: len(addresses)]:  # the model was moved or converted
            with locked(self.model):
                self._read()
        self._begun = False
        return True

    @torch.no_grad()
    def _run(self, plan: ForwardBatch, tokens: list[int], positions: list[int], wanted: list[int], layers: Sequence[int]) -> ModelOutput:
        device = self._device()
        if not self._ready(device.type):
            return super()._run(plan, tokens, positions, wanted, layers)
        decoder = self.decoder
        ids = torch.tensor(tokens, device=device)
        hidden = decoder.embed(ids, torch.tensor(positions, device=device))
        turn = None if decoder.rotation is None else decoder.rotation.at(positions)
        steps = [Step(run, hidden) for run in plan.runs] if not plan.longer and not self.kv_cache_dtype else None
        states, wanted_states = {}, {layer % (len(decoder.blocks) + 1) for layer in layers}
        for layer, block in enumerate(decoder.blocks):
            if layer in wanted_states:
                states[layer] = hidden.clone()  # what follows may write over it
            read = hidden if block.attention_norm is None else block.attention_norm(hidden)
            attended = self._attend(plan, steps, layer, block, block.qkv(read), turn)
            attended = block.out(attended)
            if block.after_attention is not None:
                attended = block.after_attention(attended)
            hidden = attended.add_(hidden)
            fed = block.feed(hidden if block.feed_norm is None else block.feed_norm(hidden))
            if block.after_feed is not None:
                fed = block.after_feed(fed)
            hidden = fed.add_(hidden)
        if len(decoder.blocks) in wanted_states:
            states[len(decoder.blocks)] = decoder.norm(hidden)
        if len(tokens) > 1 or not len(wanted):
            hidden = hidden[torch.tensor(wanted, dtype=torch.long, device=device)]
        return ModelOutput(decoder.head(decoder.norm(hidden)), {layer: states[layer % (len(decoder.blocks) + 1)] for layer in layers})

    def _attend(self, plan: ForwardBatch, steps: list[Step] | None, layer: int, block: Block, qkv: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return what the heads read, [total, heads * d], with the new keys and values left in the cache."""
        decoder, parts = self.decoder, block.parts
        heads, kv_heads = decoder.heads, decoder.kv_heads
        qkv = qkv.view(len(qkv), heads + 2 * kv_heads, decoder.width)
        if block.head_norms is not None:
            q_norm, k_norm = block.head_norms
            qkv[:, :heads] = q_norm(qkv[:, :heads])
            qkv[:, heads : heads + kv_heads] = k_norm(qkv[:, heads : heads + kv_heads])
        if turn is not None and parts.turns:
            rotate(qkv[:, : heads + kv_heads], *turn)
        if steps is None or parts.softcap is not None:
            query, key, value = qkv.split([heads, kv_heads, kv_heads], dim=1)
            options = {"window": parts.window, "softcap": parts.softcap, "sinks": None, "scale": parts.scale}
            return attend_pass(plan, layer, query, key, value, **options).reshape(len(qkv), -1)
        parts = [step.attend(layer, qkv, heads, parts.window, parts.scale) for step in steps]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Step:
    """One new token a slot, for slots in neighbouring lanes: the views of the cache for all layers, made once a pass."""

    def __init__(self, run: Run, hidden: Tensor):
        self.run, self.stack = run, run.pool.ready(hidden)
        self.seen: dict[int | None, tuple] = {}
        position = run.positions[0]
        abreast = run.positions.count(position) == len(run.positions)
        self.targets = self.stack[:, :, run.lanes, :, position].unbind(0) if abreast else None  # [2, rows, kv_heads, d]

    def attend(self, layer: int, qkv: Tensor, heads: int, window: int | None, scale: float | None, bias: Tensor | None = None) -> Tensor:
        """Return what the heads read, [rows, heads * d], with the new keys and values left in the cache; qkv is [total, heads + 2 * kv_heads, d].

        A `bias`, [rows or 1, heads, 1, keys], is added to the scores, and stands for the mask too.
        """
        run, (_, total, d) = self.run, qkv.shape
        mine = qkv[run.tokens]
        rows, kv_heads = len(mine), (total - heads) // 2
        new = mine[:, heads:].view(rows, 2, kv_heads, d).transpose(0, 1)
        if self.targets is not None:
            self.targets[layer].copy_(new)
        else:
            lanes, positions = run.lanes_and_positions(qkv.device)
            self.stack[layer][:, lanes, :, positions] = new.transpose(0, 1)
        keys, values, mask = self._seen(window, qkv.device)
        query = mine[:, :heads].reshape(rows, kv_heads, -1, d)  # the heads that share a key read it once
        out = F.scaled_dot_product_attention(query, keys[layer], values[layer], attn_mask=mask if bias is None else bias, scale=scale)
        return out.reshape(rows, -1)

    def _seen(self, window: int | None, device: torch.device) -> tuple:
        if window not in self.seen:
            span, mask = self.run.view(window, device)
            keys, values = self.stack[:, :, self.run.lanes, :, span].unbind(1)
            self.seen[window] = keys.unbind(0), values.unbind(0), mask
        return self.seen[window]
