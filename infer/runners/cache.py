"""The keys and values of many slots, each of its own length, written in place."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.vectors8 import SCALE, hadamard, in_8_bits, widened
from .architecture import check_cut
from .lane_block import LaneBlock, Region, is_nearly_full, lane_bytes

SMALLEST = 128  # positions: a power of two times this is a pool's capacity
LEAST_OF_SOURCE = 16  # ids: the least capacity of a pool of sources


class Pool:
    """Slots of one capacity; the live slots are lanes 0 to n - 1, so that a step over all of them reads a view."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.slots: list[int] = []  # lane to slot
        self.blocks: dict[Hashable, LaneBlock] = {}
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def tensors(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, [lanes, kv_heads, capacity, d], with a lane for every slot and perhaps more.

        They take head count, width, dtype and device from `key` and `value`, [..., kv_heads, n, d].
        """
        if layer not in self.layers:
            for part, like in enumerate((key, value)):
                self.block((layer, part), 1, Region(like.shape[-3], like.shape[-1], like.dtype, like.device))
            self._look()
        return self.layers[layer]

    def write(self, layer: int, at: Any, key: Tensor, value: Tensor) -> None:
        """Write new keys and values of a layer where `at` says, an index of its tensors' lanes, heads and positions."""
        for into, new in zip(self.layers[layer], (key, value)):
            into[at] = new

    def read(self, layer: int, lanes: slice, positions: slice, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values in these lanes and positions, [lanes, kv_heads, positions, d]; `like` is what they meet."""
        keys, values = self.layers[layer]
        return keys[lanes, :, positions], values[lanes, :, positions]

    @property
    def regions(self) -> list[Region]:
        """What it keeps of a slot, of the layers that have run."""
        return [block.region for block in self.blocks.values() for _ in range(block.count)]

    def memory(self, positions: Iterable[int]) -> int:
        """How many bytes it takes, with so many positions written in each lane."""
        written = list(positions)
        return sum(block.memory(written) for block in self.blocks.values())

    def block(self, key: Hashable, count: int, region: Region) -> LaneBlock:
        """Return the block of a key, made at the first call."""
        if key not in self.blocks:
            self.blocks[key] = LaneBlock(count, region, self.capacity, len(self.slots))
        return self.blocks[key]

    def fit(self, lengths: Sequence[int]) -> None:
        """Have room for all slots, and not much more; of the lanes, as many as there are `lengths`, so many positions are kept."""
        if any([block.fit(len(self.slots), lengths) for block in self.blocks.values()]):
            self._look()

    def copy(self, lane: int, target: Pool, target_lane: int, length: int, first: int = 0) -> None:
        """Copy positions `first` to `length` of a lane to a lane of this pool or another."""
        if first < length:
            for block, to in self._pairs(target):
                block.copy(lane, to, target_lane, length, first)

    def move(self, lane: int, target: Pool, target_lane: int, length: int) -> None:
        """Copy a lane's first positions to a lane of this pool or another, and give the memory of this one back on the way."""
        for block, to in self._pairs(target):
            block.move(lane, to, target_lane, length)

    def settle(self, lane: int, positions: int) -> None:
        """Lay a lane in huge pages, where it is long and so many positions nearly fill it."""
        for block in self.blocks.values():
            block.settle(lane, positions)

    def discard(self, lane: int) -> None:
        """Give a lane's memory back."""
        for block in self.blocks.values():
            block.discard(lane)

    def _pairs(self, target: Pool) -> list[tuple[LaneBlock, LaneBlock]]:
        """Each block, and the same one of another pool."""
        complete = len(target.blocks) == len(self.blocks)
        pairs = [(block, target.block(key, block.count, block.region)) for key, block in self.blocks.items()]
        if not complete:
            target._look()
        return pairs

    def _look(self) -> None:
        """Take the layers' tensors from the blocks, where they are others now."""
        layers = [layer for layer, part in self.blocks if part == 1]  # of those that have values, and so keys as well
        self.layers = {layer: (self.blocks[layer, 0].tensor[0], self.blocks[layer, 1].tensor[0]) for layer in layers}


def capacity_of(length: int) -> int:
    """Return the capacity of the pool where a slot of so many positions lies."""
    return max(SMALLEST, 1 << (length - 1).bit_length()) if length else SMALLEST


class KVCache:
    """Slots of their own length in pools of doubling capacity.

    A slot that outgrows its pool moves to the next, so that growth costs a slot its own length, amortised, and never
    a copy of the others. Slots on the shelf lie in pools of their own, so that those that run stay side by side. What a slot takes is the pages that its positions were written to, where blocks are mapped (see `lane_block`).
    """

    capacity_of = staticmethod(capacity_of)

    def __init__(self, new_pool: Callable[[int], Pool] = Pool):
        self.new_pool = new_pool  # capacity to an empty pool
        self.pools: dict[int, Pool] = {}
        self.shelf: dict[int, Pool] = {}
        self.lengths: dict[int, int] = {}
        self.masked_positions: dict[int, tuple[int, ...]] = {}  # positions that a slot leaves out, in order
        self.both_ways: set[int] = set()  # slots whose new positions see one another
        self.look_back: dict[int, int] = {}  # how many first ids of the next pass of such a slot do not
        self.rewrites: dict[int, int] = {}  # where the new positions of a slot's next pass stand, if not behind its past
        self._lanes: dict[int, tuple[Pool, int]] = {}
        self._written: dict[int, int] = {}  # how many positions a slot's lane has had at most since the slot came to it
        self._next = 0

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def memory(self) -> int:
        """How many bytes the slots take."""
        return sum(pool.memory(self._written.get(slot, 0) for slot in pool.slots) for pools in (self.pools, self.shelf) for pool in list(pools.values()))

    @classmethod
    def bytes_for(cls, positions: int, regions: Sequence[Region]) -> int:
        """Return at most how many bytes a slot comes to take that is to hold so many positions in these regions."""
        return lane_bytes(positions, cls.capacity_of(positions), regions)

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
        if length > self._lanes[slot][0].capacity:
            self._move(slot, self._pool(length))
        self._written[slot] = max(self._written[slot], length)
        pool, lane = self._lanes[slot]
        if is_nearly_full(self._written[slot], pool.capacity):
            pool.settle(lane, self._written[slot])

    def shelve(self, slots: Sequence[int]) -> None:
        """Lay slots that are copied from, and seldom or never run, apart from the others."""
        for slot in slots:
            capacity = self.capacity_of(self.lengths[slot])
            pool = self.shelf.setdefault(capacity, self.new_pool(capacity))
            if self._lanes[slot][0] is not pool:
                self._move(slot, pool)
                self._written[slot] = self.lengths[slot]

    def fork(self, slots: Sequence[int]) -> list[int]:
        """Return a new slot for each of these, with the same past."""
        forks = []
        for slot in slots:
            pool, lane = self._lanes[slot]
            fork = self.add(pool.capacity)
            pool.copy(lane, *self._lanes[fork], self.lengths[slot])
            self.lengths[fork] = self._written[fork] = self.lengths[slot]
            if slot in self.masked_positions:
                self.masked_positions[fork] = self.masked_positions[slot]
            self.attend_both_ways(fork, slot in self.both_ways, self.look_back.get(slot, 0))
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
        self.attend_both_ways(target, source in self.both_ways, self.look_back.get(source, 0))

    def attend_both_ways(self, slot: int, on: bool, after: int = 0) -> None:
        """Let the slot's new positions see one another, but for the first `after`, or each what stands before it alone."""
        (self.both_ways.add if on else self.both_ways.discard)(slot)
        self.look_back.pop(slot, None)
        if on and after:
            self.look_back[slot] = after

    def next_place(self, slot: int) -> int:
        """Return where in the cache the slot's new positions come."""
        return self.rewrites.get(slot, self.lengths[slot])

    def note(self, slot: int, count: int) -> None:
        """Take note that so many new positions were written where they were to come."""
        self.look_back.pop(slot, None)
        if self.rewrites.pop(slot, None) is None:
            self.lengths[slot] += count

    def positions(self, slot: int, count: int) -> range | list[int]:
        """Return the positions of the slot's next `count` tokens: they go on behind what stands before them, masked ones passed over."""
        past, masked = self.next_place(slot), self.masked_positions.get(slot, ())
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
        self.rewrites.pop(slot, None)

    def release(self, slots: Sequence[int]) -> None:
        """Give back the slots' lanes."""
        # the last lanes first: then what is left seldom has to move
        for slot in sorted(slots, key=lambda slot: self._lanes[slot][1], reverse=True):
            pool, lane = self._lanes.pop(slot)
            del self.lengths[slot], self._written[slot]
            self.masked_positions.pop(slot, None)
            self.attend_both_ways(slot, False)
            self.rewrites.pop(slot, None)
            pool.discard(lane)
            self._close(pool, lane)

    def _pool(self, length: int) -> Pool:
        capacity = self.capacity_of(length)
        return self.pools.setdefault(capacity, self.new_pool(capacity))

    def _move(self, slot: int, target: Pool) -> None:
        """Lay a slot in another pool."""
        pool, lane = self._lanes[slot]
        self._put(slot, target)
        pool.move(lane, target, len(target.slots) - 1, self.lengths[slot])
        self._close(pool, lane)

    def _put(self, slot: int, pool: Pool) -> None:
        kept = [self.lengths[other] for other in pool.slots]
        self._written[slot] = 0
        pool.slots.append(slot)
        pool.fit(kept)
        self._lanes[slot] = (pool, len(kept))

    def _close(self, pool: Pool, lane: int) -> None:
        """Fill an emptied lane with the last one, so that the live ones stay together."""
        moved = pool.slots.pop()
        if lane < len(pool.slots):
            pool.move(len(pool.slots), pool, lane, self.lengths[moved])
            pool.slots[lane] = moved
            self._lanes[moved], self._written[moved] = (pool, lane), self.lengths[moved]
        if pool.slots:
            pool.fit([self.lengths[slot] for slot in pool.slots])
        else:
            pools = self.shelf if self.shelf.get(pool.capacity) is pool else self.pools
            del pools[pool.capacity]


def source_capacity(length: int) -> int:
    """Return the capacity of the pool where a source of so many ids lies: 16, 24, 32, 48, 64 and so on, less than half as many again as it needs."""
    capacity = max(LEAST_OF_SOURCE, 1 << max(length - 1, 1).bit_length())
    return capacity * 3 // 4 if LEAST_OF_SOURCE < capacity and length <= capacity * 3 // 4 else capacity


class SourceCache(KVCache):
    """What a decoder's layers read of sources: each is written once and does not grow, and a step reads all lanes of a pool at their longest."""

    capacity_of = staticmethod(source_capacity)

    def add(self, length: int) -> int:
        """Return a new slot for a source of so many ids, which are to be written now."""
        slot = super().add(length)
        self.reserve(slot, length)
        self.note(slot, length)
        return slot


class StackedPool(Pool):
    """A pool of layers that are alike."""

    def __init__(self, capacity: int, layers: int, kv_heads: int, width: int):
        super().__init__(capacity)
        self.shape = (layers, kv_heads, width)
        self.stack: Tensor | None = None

    def region(self, like: Tensor) -> Region:
        """What a slot has in a layer of keys, or of values, of the dtype and on the device of `like`."""
        _, kv_heads, width = self.shape
        return Region(kv_heads, width, like.dtype, like.device)

    def ready(self, like: Tensor) -> Tensor:
        """Return the stack, [layers, 2 (keys, values), lanes, kv_heads, capacity, d], with a lane for every slot and perhaps more.

        It takes dtype and device from `like` when it is made.
        """
        if self.stack is None:
            self.block("all", 2 * self.shape[0], self.region(like))
            self._look()
        return self.stack

    def tensors(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, [lanes, kv_heads, capacity, d], with a lane for every slot; dtype and device are those of `key`."""
        self.ready(key)
        return self.layers[layer]

    def _look(self) -> None:
        for block in self.blocks.values():
            self.stack = block.tensor.unflatten(0, (-1, 2))
            self.layers = {i: (layer[0], layer[1]) for i, layer in enumerate(self.stack)}


class Pool8(StackedPool):
    """A pool of keys and values in 8 bits, `stack` is [layers, 2, lanes, kv_heads, capacity, d + SCALE] bytes: what is written is rounded, what is read widened."""

    def region(self, like: Tensor) -> Region:
        """What a slot has in a layer of keys, or of values: bytes, on the device of `like`."""
        _, kv_heads, width = self.shape
        return Region(kv_heads, width + SCALE, torch.int8, like.device)

    def write(self, layer: int, at: Any, key: Tensor, value: Tensor) -> None:
        """Round new keys and values of a layer and write them where `at` says, an index of lanes, heads and positions."""
        keys, values = self.layers[layer]
        keys[at], values[at] = in_8_bits(key.float() @ hadamard(self.shape[-1], key.device)), in_8_bits(value)

    def read(self, layer: int, lanes: slice, positions: slice, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return what these lanes' keys and values at these positions stand for, [lanes, kv_heads, positions, d], in the dtype of `like`."""
        keys, values = (widened(part[lanes, :, positions]) for part in self.layers[layer])
        return (keys @ hadamard(self.shape[-1], keys.device)).to(like.dtype), values.to(like.dtype)
