"""Memory for weights in pages of two megabytes: what reads them all for every token then looks up a five-hundredth as many addresses."""

from __future__ import annotations

import mmap
import sys

import torch
from torch import UntypedStorage

PAGE = 2 << 20
PIECE = 32 * PAGE  # taken at a time: weights move one after the other, and are not all there twice
LINE = 64  # bytes: where a tensor begins


class HugePages:
    """Hands out memory, piece by piece, of which the kernel is asked to use huge pages; a piece lives as long as a tensor lies in it."""

    def __init__(self, total: int):
        """`total` is how many bytes will be asked for, `LINE` more for each call."""
        self._left = total
        self._piece: UntypedStorage | None = None
        self._begin = 0

    def take(self, size: int) -> UntypedStorage | None:
        """Return so many bytes of memory, or None where the machine has no more address space."""
        if self._piece is None or self._begin + size > self._piece.nbytes():
            self._piece, self._begin = piece(max(size, min(self._left, PIECE))), 0
            if self._piece is None:
                return None
        begin = self._begin
        self._begin += -(-size // LINE) * LINE
        self._left -= self._begin - begin
        return self._piece[begin : begin + size]


def piece(size: int) -> UntypedStorage | None:
    """Return at least so many bytes that begin and end with a huge page; None where they are not to be had."""
    whole = -(-size // PAGE) * PAGE
    try:
        mapping = mmap.mmap(-1, whole + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError, OverflowError):
        return None
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pass  # a kernel without them: memory as any other
    storage = torch.frombuffer(mapping, dtype=torch.uint8).untyped_storage()
    begin = -storage.data_ptr() % PAGE
    return storage[begin : begin + whole]


def has_huge_pages() -> bool:
    """Whether this system can be asked for them."""
    return sys.platform == "linux" and hasattr(mmap, "MADV_HUGEPAGE")
