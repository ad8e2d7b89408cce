"""The keys and values of many rows, each of its own length, written in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .architecture import check_cut

SMALLEST = 128  # positions: a power of two times this is a pool's capacity


class Pool:
    """Slots of one capacity; the live rows are slots 0 to n - 1, so that a step over all of them reads a view."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.rows: list[int] = []  # slot to row
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def tensors(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, [slots, kv_heads, capacity, d], with a slot for every row.

        They take head count, width, dtype and device from `key` and `value`, [..., kv_heads, n, d].
        """
        held = self.layers.get(layer)
        if held is None or len(held[0]) < len(self.rows):
            slots = 1 << (len(self.rows) - 1).bit_length()
            grown = tuple(
                like.new_zeros(slots, like.shape[-3], self.capacity, like.shape[-1]) for like in (key, value)
            )
            for old, new in zip(held or (), grown):
                new[: len(old)] = old
            held = self.layers[layer] = grown
        return held

    def copy(self, slot: int, target: Pool, target_slot: int, length: int, first: int = 0) -> None:
        """Copy positions `first` to `length` of a slot to a slot of this pool or another."""
        for layer, (key, value) in self.layers.items():
            if slot >= len(key):
                continue  # a row that was added and never run
            to_key, to_value = target.tensors(layer, key, value)
            to_key[target_slot, :, first:length] = key[slot, :, first:length]
            to_value[target_slot, :, first:length] = value[slot, :, first:length]


class KVCache:
    """Rows of their own length in pools of doubling capacity.

    A row that outgrows its pool moves to the next, so that growth costs a row its own length, amortised, and never
    a copy of the others; no row takes more than twice the memory that it needs (or `SMALLEST` positions).
    """

    def __init__(self, new_pool: Callable[[int], Pool] = Pool):
        self.new_pool = new_pool  # capacity to an empty pool
        self.pools: dict[int, Pool] = {}
        self.lengths: dict[int, int] = {}
        self.hidden: dict[int, tuple[int, ...]] = {}  # positions that a row leaves out, in order
        self._place: dict[int, tuple[Pool, int]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, capacity: int = SMALLEST) -> int:
        """Return a new row without a past."""
        row, self._next = self._next, self._next + 1
        self.lengths[row] = 0
        self._put(row, self._pool(capacity))
        return row

    def place(self, row: int) -> tuple[Pool, int]:
        """Return the pool and the slot where the row lies until the next add, fork, reserve or release."""
        return self._place[row]

    def reserve(self, row: int, length: int) -> None:
        """Make room for the row to hold `length` positions."""
        pool, slot = self._place[row]
        if length <= pool.capacity:
            return
        larger = self._pool(length)
        self._put(row, larger)
        pool.copy(slot, larger, len(larger.rows) - 1, self.lengths[row])
        self._close(pool, slot)

    def fork(self, rows: Sequence[int]) -> list[int]:
        """Return a new row for each of these, with the same past."""
        forks = []
        for row in rows:
            pool, slot = self._place[row]
            fork = self.add(pool.capacity)
            pool.copy(slot, pool, len(pool.rows) - 1, self.lengths[row])
            self.lengths[fork] = self.lengths[row]
            if row in self.hidden:
                self.hidden[fork] = self.hidden[row]
            forks.append(fork)
        return forks

    def copy(self, source: int, target: int, first: int) -> None:
        """Give `target` the past of `source`; the first `first` places of the two are the same already."""
        length = self.lengths[source]
        first = min(first, length, self.lengths[target])
        self.truncate(target, first)
        self.reserve(target, length)
        (pool, slot), (to_pool, to_slot) = self._place[source], self._place[target]
        if first < length:
            pool.copy(slot, to_pool, to_slot, length, first)
        self.lengths[target] = length

    def positions(self, row: int, count: int) -> range | list[int]:
        """Return the positions of the row's next `count` tokens: they go on behind its past, hidden places passed over."""
        past, places = self.lengths[row], self.hidden.get(row, ())
        if not places or past + len(places) > places[-1]:  # all hidden places lie in the past, which holds none of them
            return range(past + len(places), past + len(places) + count)
        positions, at = [], past
        for place in places:  # each before the end shifts what follows
            at += place <= at
        hidden = set(places)
        while len(positions) < count:
            if at not in hidden:
                positions.append(at)
            at += 1
        return positions

    def truncate(self, row: int, length: int) -> None:
        """Forget all of the row but its first `length` positions."""
        check_cut(row, length, self.lengths[row])
        self.lengths[row] = length

    def release(self, rows: Sequence[int]) -> None:
        """Give back the rows' slots."""
        # the last slots first: then what is left seldom has to move
        for row in sorted(rows, key=lambda row: self._place[row][1], reverse=True):
            pool, slot = self._place.pop(row)
            del self.lengths[row]
            self.hidden.pop(row, None)
            self._close(pool, slot)

    def _pool(self, length: int) -> Pool:
        capacity = SMALLEST
        while capacity < length:
            capacity *= 2
        return self.pools.setdefault(capacity, self.new_pool(capacity))

    def _put(self, row: int, pool: Pool) -> None:
        pool.rows.append(row)
        self._place[row] = (pool, len(pool.rows) - 1)

    def _close(self, pool: Pool, slot: int) -> None:
        """Fill an emptied slot with the last one, so that the live ones stay together."""
        last = len(pool.rows) - 1
        if slot != last:
            moved = pool.rows[last]
            pool.copy(last, pool, slot, self.lengths[moved])
            pool.rows[slot] = moved
            self._place[moved] = (pool, slot)
        pool.rows.pop()
        if not pool.rows:
            del self.pools[pool.capacity]
