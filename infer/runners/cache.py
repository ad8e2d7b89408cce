"""The keys and values of many slots, each of its own length, written in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .architecture import check_cut

SMALLEST = 128  # positions: a power of two times this is a pool's capacity


class Region(NamedTuple):
    """A slot's keys, or its values, in one layer: [kv_heads, capacity, d]."""

    kv_heads: int
    width: int
    dtype: torch.dtype
    device: torch.device


def capacity_of(length: int) -> int:
    """Return the capacity of the pool where a slot of so many positions lies."""
    return max(SMALLEST, 1 << (length - 1).bit_length()) if length else SMALLEST


def lane_bytes(positions: int, regions: Sequence[Region]) -> int:
    """Return at most how many bytes a slot of so many positions comes to take in these regions."""
    return sum(2 * capacity_of(positions) * region.kv_heads * region.width * region.dtype.itemsize for region in regions)


class Pool:
    """Slots of one capacity; the live slots are lanes 0 to n - 1, so that a step over all of them reads a view."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.slots: list[int] = []  # lane to slot
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def tensors(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, [slots, kv_heads, capacity, d], with a lane for every slot.

        They take head count, width, dtype and device from `key` and `value`, [..., kv_heads, n, d].
        """
        pair = self.layers.get(layer)
        if pair is None or len(pair[0]) < len(self.slots):
            lanes = 1 << (len(self.slots) - 1).bit_length()
            grown = tuple(like.new_zeros(lanes, like.shape[-3], self.capacity, like.shape[-1]) for like in (key, value))
            for old, new in zip(pair or (), grown):
                new[: len(old)] = old
            pair = self.layers[layer] = grown
        return pair

    @property
    def regions(self) -> list[Region]:
        """What it keeps of a slot, of the layers that have run."""
        return [Region(each.shape[-3], each.shape[-1], each.dtype, each.device) for pair in self.layers.values() for each in pair]

    @property
    def memory(self) -> int:
        """How many bytes it takes."""
        return sum(each.nbytes for pair in self.layers.values() for each in pair)

    def copy(self, lane: int, target: Pool, target_lane: int, length: int, first: int = 0) -> None:
        """Copy positions `first` to `length` of a lane to a lane of this pool or another."""
        for layer, (key, value) in self.layers.items():
            if lane >= len(key):
                continue  # a slot that was added and never run
            to_key, to_value = target.tensors(layer, key, value)
            to_key[target_lane, :, first:length] = key[lane, :, first:length]
            to_value[target_lane, :, first:length] = value[lane, :, first:length]


class KVCache:
    """Slots of their own length in pools of doubling capacity.

    A slot that outgrows its pool moves to the next, so that growth costs a slot its own length, amortised, and never
    a copy of the others; no slot takes more than twice the memory that it needs (or `SMALLEST` positions).
    """

    def __init__(self, new_pool: Callable[[int], Pool] = Pool):
        self.new_pool = new_pool  # capacity to an empty pool
        self.pools: dict[int, Pool] = {}
        self.lengths: dict[int, int] = {}
        self.masked_positions: dict[int, tuple[int, ...]] = {}  # positions that a slot leaves out, in order
        self._lanes: dict[int, tuple[Pool, int]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def memory(self) -> int:
        """How many bytes the slots take."""
        return sum(pool.memory for pool in self.pools.values())

    def add(self, capacity: int = SMALLEST) -> int:
        """Return a new slot without a past."""
        slot, self._next = self._next, self._next + 1
        self.lengths[slot] = 0
        self._put(slot, self._pool(capacity))
        return slot

    def locate(self, slot: int) -> tuple[Pool, int]:
        """Return the pool and the lane where the slot lies until the next add, fork, reserve or release."""
        return self._lanes[slot]

    def reserve(self, slot: int, length: int) -> None:
        """Make room for the slot to hold `length` positions."""
        pool, lane = self._lanes[slot]
        if length <= pool.capacity:
            return
        larger = self._pool(length)
        self._put(slot, larger)
        pool.copy(lane, larger, len(larger.slots) - 1, self.lengths[slot])
        self._close(pool, lane)

    def fork(self, slots: Sequence[int]) -> list[int]:
        """Return a new slot for each of these, with the same past."""
        forks = []
        for slot in slots:
            pool, lane = self._lanes[slot]
            fork = self.add(pool.capacity)
            pool.copy(lane, pool, len(pool.slots) - 1, self.lengths[slot])
            self.lengths[fork] = self.lengths[slot]
            if slot in self.masked_positions:
                self.masked_positions[fork] = self.masked_positions[slot]
            forks.append(fork)
        return forks

    def copy(self, source: int, target: int, first: int, length: int | None = None) -> None:
        """Give `target` the past of `source`, or its first `length` positions; the first `first` of the two are the same already."""
        length = self.lengths[source] if length is None else length
        check_cut(source, length, self.lengths[source])
        first = min(first, length, self.lengths[target])
        self.truncate(target, first)
        self.reserve(target, length)
        (pool, lane), (to_pool, to_lane) = self._lanes[source], self._lanes[target]
        if first < length:
            pool.copy(lane, to_pool, to_lane, length, first)
        self.lengths[target] = length

    def positions(self, slot: int, count: int) -> range | list[int]:
        """Return the positions of the slot's next `count` tokens: they go on behind its past, masked ones passed over."""
        past, masked = self.lengths[slot], self.masked_positions.get(slot, ())
        if not masked or past + len(masked) > masked[-1]:  # all masked positions lie in the past, which holds none of them
            return range(past + len(masked), past + len(masked) + count)
        positions, at = [], past
        for position in masked:  # each before the end shifts what follows
            at += position <= at
        left_out = set(masked)
        while len(positions) < count:
            if at not in left_out:
                positions.append(at)
            at += 1
        return positions

    def truncate(self, slot: int, length: int) -> None:
        """Keep the slot's first `length` positions; raises UserError for more than it has."""
        check_cut(slot, length, self.lengths[slot])
        self.lengths[slot] = length

    def release(self, slots: Sequence[int]) -> None:
        """Give back the slots' lanes."""
        # the last lanes first: then what is left seldom has to move
        for slot in sorted(slots, key=lambda slot: self._lanes[slot][1], reverse=True):
            pool, lane = self._lanes.pop(slot)
            del self.lengths[slot]
            self.masked_positions.pop(slot, None)
            self._close(pool, lane)

    def _pool(self, length: int) -> Pool:
        capacity = capacity_of(length)
        return self.pools.setdefault(capacity, self.new_pool(capacity))

    def _put(self, slot: int, pool: Pool) -> None:
        pool.slots.append(slot)
        self._lanes[slot] = (pool, len(pool.slots) - 1)

    def _close(self, pool: Pool, lane: int) -> None:
        """Fill an emptied lane with the last one, so that the live ones stay together."""
        last = len(pool.slots) - 1
        if lane != last:
            moved = pool.slots[last]
            pool.copy(last, pool, lane, self.lengths[moved])
            pool.slots[lane] = moved
            self._lanes[moved] = (pool, lane)
        pool.slots.pop()
        if not pool.slots:
            del self.pools[pool.capacity]


class StackedPool(Pool):
    """A pool of layers that are alike."""

    def __init__(self, capacity: int, layers: int, kv_heads: int, width: int):
        super().__init__(capacity)
        self.shape = (layers, 2, kv_heads, width)
        self.block: Tensor | None = None

    def ready(self, like: Tensor) -> Tensor:
        """Return the block, [layers, 2 (keys, values), slots, kv_heads, capacity, d], with a lane for every slot.

        It takes dtype and device from `like` when it is made.
        """
        if self.block is None or self.block.shape[2] < len(self.slots):
            layers, two, kv_heads, width = self.shape
            lanes = 1 << (len(self.slots) - 1).bit_length()
            grown = (like if self.block is None else self.block).new_zeros(layers, two, lanes, kv_heads, self.capacity, width)
            if self.block is not None:
                grown[:, :, : self.block.shape[2]] = self.block
            self.block = grown
            self.layers = {i: (layer[0], layer[1]) for i, layer in enumerate(grown)}
        return self.block

    def tensors(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, [slots, kv_heads, capacity, d], with a lane for every slot; dtype and device are those of `key`."""
        self.ready(key)
        return self.layers[layer]
