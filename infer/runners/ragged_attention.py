"""Attention of many slots of their own length, laid end to end in one sequence, over a cache written in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from ...data.errors import UserError
from .architecture import check_rewrite
from .attention import attend, attend_in_full, check_attention_kwargs
from .cache import KVCache, Pool

RAGGED = "seodang_ragged"  # its name among transformers' attention implementations


@dataclass
class Run:
    """Neighbouring lanes of one pool, each with one new token: one batched call."""

    pool: Pool
    lanes: slice
    tokens: slice  # where the new tokens stand in the sequence
    positions: list[int]
    _masks: dict = field(default_factory=dict)
    _indices: dict = field(default_factory=dict)

    def lanes_and_positions(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the lanes and the positions of the new tokens, [rows] each."""
        if device not in self._indices:  # made once a pass, not once a layer
            lanes = torch.arange(self.lanes.start, self.lanes.stop, device=device)
            self._indices[device] = lanes, torch.tensor(self.positions, device=device)
        return self._indices[device]

    def view(self, window: int | None, device: torch.device) -> tuple[slice, Tensor | None]:
        """Return the keys that any of the slots sees, and for each slot which of them: [rows, 1, 1, keys] or None for all."""
        if (window, device) not in self._masks:
            top, low = max(self.positions) + 1, min(self.positions)
            first = 0 if window is None else max(low - window + 1, 0)
            mask = None
            if low + 1 < top:
                position = self.lanes_and_positions(device)[1][:, None]
                key = torch.arange(first, top, device=device)
                mask = key <= position
                if window is not None:
                    mask &= key > position - window
                mask = mask[:, None, None]
            self._masks[window, device] = slice(first, top), mask
        return self._masks[window, device]


class Long(NamedTuple):
    """A stretch of new tokens of a slot: where they stand in the sequence, behind so many positions of the lane, and how many of these they see."""

    pool: Pool
    lane: int
    tokens: slice
    past: int
    seen: int
    causal: bool


class Stretch(NamedTuple):
    """So many new ids of a slot: each sees what stands before it alone (`causal`), or all of them one another."""

    count: int
    causal: bool


@dataclass
class ForwardBatch:
    """One forward pass: who stands where in the sequence."""

    runs: list[Run]
    longer: list[Long]
    masks: dict = field(default_factory=dict)  # of those, for all layers
    attended: set[int] = field(default_factory=set)


def lay_out(
    cache: KVCache, slots: Sequence[int], ids: Sequence[Sequence[int]], stretches: Callable[[int, int], list[Stretch]]
) -> tuple[ForwardBatch, list[int], list[int], list[int]]:
    """Lay the new tokens in one sequence: single steps first, by lane, then the longer ones, cut into the `stretches` of a slot's so many new ids.

    Returns the plan, the tokens, their positions, and where each slot's tokens start.
    """
    for slot, new in zip(slots, ids):
        if slot in cache.rewrites:
            check_rewrite(slot, cache.rewrites[slot], len(new), cache.lengths[slot])
        else:
            cache.reserve(slot, cache.lengths[slot] + len(new))
    lanes = [cache.locate(slot) for slot in slots]
    single = [len(new) == 1 and slot not in cache.rewrites for slot, new in zip(slots, ids)]  # what has nothing behind it
    order = sorted(range(len(slots)), key=lambda i: (not single[i], lanes[i][0].capacity, lanes[i][1]))
    tokens, positions, starts, plan = [], [], [0] * len(slots), ForwardBatch([], [])
    singles: list[tuple[Pool, int, int, int]] = []
    for i in order:
        past, starts[i] = cache.next_place(slots[i]), len(tokens)
        tokens += ids[i]
        positions += cache.positions(slots[i], len(ids[i]))
        if single[i]:
            singles.append((*lanes[i], starts[i], past))
        else:
            at = starts[i]
            for count, causal in stretches(slots[i], len(ids[i])):
                seen = cache.lengths[slots[i]] if slots[i] in cache.rewrites else past + count
                plan.longer.append(Long(*lanes[i], slice(at, at + count), past, seen, causal))
                past, at = past + count, at + count
    # neighbours have the same distance from their lane to their tokens in the sequence
    for _, group in groupby(singles, key=lambda s: (s[0].capacity, s[1] - s[2])):
        run = list(group)
        (pool, lane, at, _), n = run[0], len(run)
        plan.runs.append(Run(pool, slice(lane, lane + n), slice(at, at + n), [past for *_, past in run]))
    return plan, tokens, positions, starts


_RUNNING: ContextVar[ForwardBatch] = ContextVar("running")  # not an argument: some attention layers are handed none


@contextmanager
def running(plan: ForwardBatch) -> Iterator[None]:
    """Let the attention of this thread's pass go by this plan."""
    token = _RUNNING.set(plan)
    try:
        yield
    finally:
        _RUNNING.reset(token)


@dataclass(frozen=True)
class Window:
    """Stands where the attention mask would: a sliding window, or none."""

    size: int | None

    def __getitem__(self, index) -> Window:
        return self  # some architectures cut the mask to the keys' length


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Window | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **rest,
) -> tuple[Tensor, None]:
    """Write the new keys and values into the slots' lanes and attend, each slot over its own past.

    query is [1, heads, total, d], key and value [1, kv_heads, total, d]; returns [1, total, heads, d_v]. Raises UserError for what an
    architecture asks for that is not honoured.
    """
    check_attention_kwargs(module, rest)
    layer, plan = module.layer_idx, _RUNNING.get()
    if layer in plan.attended:
        raise UserError(f"{module.config.model_type} attends more than once a layer, which Seodang cannot cache: use another architecture")
    plan.attended.add(layer)
    # the mask is what the fused kernels obey; the argument is its copy, missing in some architectures
    window = attention_mask.size if attention_mask is not None else sliding_window
    options = {"window": window, "softcap": softcap, "sinks": s_aux, "scale": scaling}
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend_pass(plan, layer, query, key, value, **options)[None], None


def attend_pass(plan: ForwardBatch, layer: int, query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
    """Write one layer's new keys and values into the slots' lanes and attend, each slot over its own past.

    query is [total, heads, d], key and value [total, kv_heads, d]; returns [total, heads, d_v].
    `options` are the window, soft cap, sinks and scale of `attend`.
    """
    parts = [_step(run, layer, query, key, value, **options) for run in plan.runs]
    for pool, lane, tokens, past, seen, causal in plan.longer:
        pool.tensors(layer, key.transpose(0, 1), value.transpose(0, 1))
        end = past + tokens.stop - tokens.start
        pool.write(layer, (lane, slice(None), slice(past, end)), key[tokens].transpose(0, 1), value[tokens].transpose(0, 1))
        keys, values = pool.read(layer, slice(lane, lane + 1), slice(seen), query)
        how = {"past": past, "causal": causal, "masks": plan.masks}
        out = attend(query[tokens].transpose(0, 1)[None], keys, values, **how, **options)
        parts.append(out[0].transpose(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _step(run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, *, window, softcap, sinks, scale) -> Tensor:
    """Attend with one new token a slot: [rows, heads, d]; the arguments are those of `attend_pass`."""
    run.pool.tensors(layer, key.transpose(0, 1), value.transpose(0, 1))
    query, key, value = query[run.tokens], key[run.tokens], value[run.tokens]  # [rows, heads, d]
    if len(run.positions) == 1:
        run.pool.write(layer, (run.lanes.start, slice(None), run.positions[0]), key[0], value[0])
    else:
        lanes, positions = run.lanes_and_positions(key.device)
        run.pool.write(layer, (lanes, slice(None), positions), key, value)
    seen, mask = run.view(window, key.device)
    keys, values = run.pool.read(layer, run.lanes, seen, query)
    rows, heads, d = query.shape
    if softcap is None and sinks is None:
        grouped = query.reshape(rows, keys.shape[1], -1, d)  # the heads that share a key read it once
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    else:
        out = attend_in_full(query[:, :, None], keys, values, mask, scale, 0.0, softcap, sinks)
    return out.reshape(rows, heads, -1)


def window_mask(*, config, local_size: int | None = None, use_vmap: bool = False, **rest) -> Window:
    """Answer an architecture's request for a mask with its window; raises UserError for the shapes that `ragged_attention` has not."""
    if use_vmap:
        raise UserError(f"{config.model_type} lays its own pattern over the causal mask, which Seodang does not honour")
    if local_size is not None and local_size == getattr(config, "attention_chunk_size", None):
        raise UserError(f"{config.model_type} attends in chunks (attention_chunk_size), which Seodang does not honour")
    return Window(local_size)


AttentionInterface.register(RAGGED, ragged_attention)
AttentionMaskInterface.register(RAGGED, window_mask)
