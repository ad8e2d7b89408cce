"""Adapters as `step.c` reads them: the addresses of their matrices by the linear layers that they stand beside."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Set
from operator import is_
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ...kernels.low_rank import Adapter, LowRank


class _LowRank(ctypes.Structure):
    _fields_ = [("rank", ctypes.c_int64), ("stride", ctypes.c_int64), ("down", ctypes.c_void_p), ("up", ctypes.c_void_p)]


class _Adapter(ctypes.Structure):
    _fields_ = [("rank", ctypes.c_int64), ("beside", ctypes.POINTER(_LowRank))]


class NativeAdapters:
    """Adapters over a model, each laid out when a pass first has it, for as long as it lasts. Nothing is copied."""

    def __init__(self, numbers: Mapping[nn.Module, int], count: int, unread: Set[nn.Module], dtype: torch.dtype):
        """`numbers` are those of the model's linear layers in `step.c`, below `count`, `unread` modules that no pass comes to, `dtype` the model's."""
        self.numbers, self.count, self.unread, self.dtype = numbers, count, unread, dtype
        self._laid: WeakKeyDictionary[Adapter, _Laid] = WeakKeyDictionary()

    def lay_out(self, adapter: Adapter) -> bool:
        """Lay an adapter out as it is now, and return whether it could be: not where it changes the head, say, or has another dtype than the model."""
        laid = self._laid.get(adapter)
        if laid is None or not laid.holds(adapter):
            laid = self._laid[adapter] = _Laid(adapter, self)
        return laid.whole is not None

    def address(self, adapter: Adapter) -> int:
        """Where an adapter that could be laid out is."""
        return ctypes.addressof(self._laid[adapter].whole)


class _Laid:
    def __init__(self, adapter: Adapter, beside: NativeAdapters):
        self.matrices = list(adapter.layers.values())  # torch's way to run an adapter lays some anew; these last until that is seen
        self.whole: _Adapter | None = None
        read = {layer: each for layer, each in adapter.layers.items() if layer not in beside.unread}
        if read.keys() <= beside.numbers.keys() and all(is_readable(each, beside.dtype) for each in read.values()):
            table = (_LowRank * beside.count)()
            for layer, (down, up) in read.items():
                table[beside.numbers[layer]] = _LowRank(len(down), up.stride(1), down.data_ptr(), up.data_ptr())
            self.whole = _Adapter(max((len(each.down) for each in read.values()), default=0), table)

    def holds(self, adapter: Adapter) -> bool:
        """Whether the adapter has no other matrices than these."""
        return len(self.matrices) == len(adapter.layers) and all(map(is_, self.matrices, adapter.layers.values()))


def is_readable(matrices: LowRank, dtype: torch.dtype) -> bool:
    """Whether two matrices are in memory, in this dtype, and lie as adapters are loaded: `down` row after row, `up` column after column."""
    down, up = matrices
    in_memory = all(matrix.dtype == dtype and matrix.device.type == "cpu" for matrix in matrices)
    return in_memory and down.is_contiguous() and (up.stride(0) == 1 or len(up) == 1)
