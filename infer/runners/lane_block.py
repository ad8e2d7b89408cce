"""The memory of a pool of the KV cache: taken page by page as positions are written, given back when a slot leaves its lane.

On Linux's CPUs a block is a private mapping without a file: address space is had for the asking, physical memory comes with the first write
to a page, which is zeros till then, and `madvise` gives a lane's pages back. A long lane that is nearly full is laid in pages of two megabytes, in
which keys and values are read a fifth sooner. Elsewhere a block is a tensor, which is there as a whole.
"""

from __future__ import annotations

import copy
import mmap
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from ..kernels.huge_pages import PAGE as HUGE

PAGE = mmap.PAGESIZE
LONG = 4096  # positions of a lane, from which on its reading takes much of a step
FULL = 0.75  # share of a long lane: what huge pages take beyond what is written is at most a third of that
COLLAPSE = getattr(mmap, "MADV_COLLAPSE", 25)  # Linux' number: lay what is there in huge pages now
LANES = 256  # for which address space is reserved at once: more than slots that grow side by side
SPARE = 4.25  # lanes of a tensor for each slot at most: (2 n + 1) before it shrinks to 1.25 n
# Python names it from 3.13 on; where it is missing, the kernel may refuse large reservations, and smaller ones are tried
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if platform.machine() in ("x86_64", "aarch64") else 0)


class Region(NamedTuple):
    """A slot's keys, or its values, in one layer: [heads, capacity, width]."""

    heads: int
    width: int
    dtype: torch.dtype
    device: torch.device

    def bytes_at(self, capacity: int) -> int:
        """All of it."""
        return self.heads * capacity * self.width * self.dtype.itemsize

    def bytes_of(self, positions: int, capacity: int) -> int:
        """At most the pages of its first positions, where it is mapped."""
        if not positions:
            return 0
        if is_nearly_full(positions, capacity):
            return in_pages(self.bytes_at(capacity))
        head, written = (count * self.width * self.dtype.itemsize for count in (capacity, positions))
        if head % PAGE:  # a head may begin within a page
            return min(self.heads * (in_pages(written) + PAGE), in_pages(self.bytes_at(capacity)))
        return self.heads * in_pages(written)


def is_nearly_full(positions: int, capacity: int) -> bool:
    """Whether a lane with so many positions written is laid in huge pages, where it is mapped."""
    return capacity >= LONG and positions >= FULL * capacity


class LaneBlock:
    """Regions of one kind, `count` of them for each lane: `tensor` is [count, lanes, heads, capacity, width], zeros where nothing was written."""

    def __init__(self, count: int, region: Region, capacity: int, lanes: int):
        self.count, self.region, self.capacity = count, region, capacity
        self._allocate(lanes)

    @property
    def lanes(self) -> int:
        """How many lanes there is room for."""
        return self.tensor.shape[1]

    def memory(self, positions: Sequence[int]) -> int:
        """How many bytes it takes, with so many positions written in each lane."""
        if self._mapping is None:
            return self.tensor.nbytes
        return self.count * sum(self.region.bytes_of(each, self.capacity) for each in positions)

    def fit(self, slots: int, lengths: Sequence[int]) -> bool:
        """Have room for so many slots, and not much more; of the lanes, as many as there are `lengths`, so many positions are kept.

        Returns whether `tensor` is another one now.
        """
        shrinks = self._mapping is None and slots <= self.lanes // 2
        if slots <= self.lanes and not shrinks:
            return False
        old = copy.copy(self)
        self._allocate(slots)
        for lane, length in enumerate(lengths):
            old.move(lane, self, lane, length)
        return True

    def copy(self, lane: int, target: LaneBlock, target_lane: int, length: int, first: int = 0) -> None:
        """Copy positions `first` to `length` of a lane to a lane of this block or another."""
        target.tensor[:, target_lane, :, first:length] = self.tensor[:, lane, :, first:length]

    def move(self, lane: int, target: LaneBlock, target_lane: int, length: int) -> None:
        """Copy a lane's first positions, and give it back as they are copied: never more than a region is there twice."""
        if self._mapping is None:
            self.copy(lane, target, target_lane, length)
            return
        for source, into, region in zip(self.tensor[:, lane], target.tensor[:, target_lane], range(self.count)):
            into[:, :length] = source[:, :length]
            self._discard(region, lane)

    def discard(self, lane: int) -> None:
        """Give a lane's memory back; it reads as zeros again. A tensor keeps it, and what was written there."""
        if self._mapping is not None:
            for region in range(self.count):
                self._discard(region, lane)

    def settle(self, lane: int, positions: int) -> None:
        """Lay a lane in huge pages, where so many positions nearly fill it and there are such pages; of what is there nothing changes."""
        if self._mapping is None or lane in self._settled or not is_nearly_full(positions, self.capacity):
            return
        self._settled.add(lane)
        for region in range(self.count):
            with suppress(OSError):  # a kernel without, or memory too much in pieces
                self._advise(mmap.MADV_HUGEPAGE, region, lane)
                self._advise(COLLAPSE, region, lane)
            with suppress(OSError):
                self._advise(mmap.MADV_NOHUGEPAGE, region, lane)  # what is there stays; the next slot in this lane begins in usual pages

    def _discard(self, region: int, lane: int) -> None:
        self._advise(mmap.MADV_DONTNEED, region, lane)
        self._settled.discard(lane)

    def _advise(self, how: int, region: int, lane: int) -> None:
        self._mapping.madvise(how, self._begin + (region * self.lanes + lane) * self._stride, self._stride)

    def _allocate(self, lanes: int) -> None:
        region, capacity = self.region, self.capacity
        self._mapping, self._stride = None, in_pages(region.bytes_at(capacity))  # lanes share no page
        self._settled: set[int] = set()  # lanes in huge pages
        if is_mapped(region.device):
            spare = HUGE if capacity >= LONG else 0  # huge pages begin at multiples of their size
            for most in reservations(lanes):
                if (mapping := reserved(self.count * most * self._stride + spare)) is not None:
                    self._begin = -torch.frombuffer(mapping, dtype=torch.uint8).data_ptr() % HUGE if spare else 0
                    stride = self._stride // region.dtype.itemsize
                    sizes = (self.count, most, region.heads, capacity, region.width)
                    strides = (most * stride, stride, capacity * region.width, region.width, 1)
                    self._mapping, self.tensor = mapping, torch.frombuffer(mapping, dtype=region.dtype, offset=self._begin).as_strided(sizes, strides)
                    return
        sizes = (self.count, lanes + lanes // 4, region.heads, capacity, region.width)
        self.tensor = torch.zeros(sizes, dtype=region.dtype, device=region.device)


def lane_bytes(positions: int, capacity: int, regions: Sequence[Region]) -> int:
    """Return at most how many bytes a slot comes to take that is to hold so many positions in these regions, in pools up to this capacity."""
    mapped = [region.bytes_of(positions, capacity) for region in regions if is_mapped(region.device)]
    whole = sum(region.bytes_at(capacity) for region in regions if not is_mapped(region.device))
    return sum(mapped) + max(mapped, default=0) + int(SPARE * whole)  # a region is there twice while it moves


def is_mapped(device: torch.device) -> bool:
    """Whether blocks on this device take memory by the page."""
    return device.type == "cpu" and sys.platform == "linux"


def reservations(lanes: int) -> Iterator[int]:
    """Yield for how many lanes address space may be reserved, the most first: where the kernel counts what is reserved, no more than is needed."""
    most = lanes + lanes // 4 if counts_reservations() else max(LANES, 2 * lanes)
    while most > lanes:
        yield most
        most //= 2
    yield lanes


def counts_reservations() -> bool:
    """Whether this kernel takes address space for memory (vm.overcommit_memory = 2)."""
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    except OSError:
        return False


def reserved(size: int) -> mmap.mmap | None:
    """Return address space of zeros without memory behind it; None where there is not so much."""
    try:
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    except (OSError, ValueError, OverflowError):
        return None
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        try:
            mapping.madvise(mmap.MADV_NOHUGEPAGE)  # or a few positions of a head would take two megabytes
        except OSError:
            pass  # a kernel without huge pages
    return mapping


def in_pages(size: int) -> int:
    """Return a number of bytes rounded up to whole pages."""
    return -(-size // PAGE) * PAGE
