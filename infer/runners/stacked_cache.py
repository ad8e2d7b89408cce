"""Slots whose layers lie in one tensor: a step writes and reads them through views made once a pass."""

from __future__ import annotations

from torch import Tensor

from .cache import Pool


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
