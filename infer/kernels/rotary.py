"""Rotary positions, each angle computed once."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Rotation:
    """Cosines and sines of the positions so far, from the model's own rotary module.

    The sine of the first half has its sign turned, so that x * cos + roll(x) * sin is x * cos + rotate_half(x) * sin.
    """

    def __init__(self, module: nn.Module, like: Tensor):
        """module maps (`like`, positions [1, n]) to cosine and sine, [1, n, d]; of `like` the dtype and the device count alone."""
        self.module, self.like = module, like
        self.cos = self.sin = like.new_empty(0, 1, 0)
        self._reached = 0

    def at(self, positions: list[int]) -> tuple[Tensor, Tensor]:
        """Return cosine and sine, [len(positions), 1, d] each."""
        self.reach(max(positions))
        if len(positions) == 1:
            [p] = positions
            return self.cos[p : p + 1], self.sin[p : p + 1]
        index = torch.tensor(positions, device=self.cos.device)
        return self.cos[index], self.sin[index]

    def reach(self, position: int) -> None:
        """Have the tables `cos` and `sin`, [positions, 1, d] each, hold this position too."""
        if position >= self._reached:
            self._grow(max(256, 2 * position))

    def _grow(self, length: int) -> None:
        self._reached = length
        cos, sin = self.module(self.like, torch.arange(length, device=self.like.device)[None])
        half = sin.shape[-1] // 2
        cos, sin = (x.to(torch.promote_types(x.dtype, self.like.dtype)) for x in (cos, sin))
        self.cos = cos[0, :, None].clone()
        self.sin = torch.cat([-sin[0, :, None, :half], sin[0, :, None, half:]], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn the heads of x, [rows, heads, d], to their positions, in place; of each as many numbers as there are angles, in their dtype where it is the wider."""
    x = x[..., : cos.shape[-1]]
    if x.dtype != cos.dtype:  # OLMo 2 turns in float32
        wide = x.to(cos.dtype)
        rotate(wide, cos, sin)
        x.copy_(wide)
        return
    rolled = torch.roll(x, x.shape[-1] // 2, -1)
    x.mul_(cos).addcmul_(rolled, sin)
