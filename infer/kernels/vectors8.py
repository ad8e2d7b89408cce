"""Vectors in 8 bits: levels and a scale each; and the matrix that spreads what is far greater than the rest.

A few numbers of a key of attention are far greater than the others, at every position the same, and would take the levels for themselves. So a cache keeps
keys turned by a Hadamard matrix, which spreads each number over all (QuaRot, Ashkboos et al., 2024): half the error, for the same memory.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

SCALE = 2  # bytes of a scale, which stand behind a vector's levels: the upper half of a float32, a bfloat16
LEVELS = 127
NORMAL = torch.finfo(torch.float32).smallest_normal  # the least scale with an inverse


@cache
def hadamard(width: int, device: torch.device) -> Tensor:
    """Return what turns vectors of such a width, and turns them back, [width, width]: Sylvester's matrix with rows of length 1, in blocks of the greatest power of two that divides the width."""
    block, matrix = width & -width, torch.ones(1, 1, dtype=torch.float32, device=device)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    return torch.block_diag(*[matrix / block**0.5] * (width // block))


def in_8_bits(x: Tensor) -> Tensor:
    """Round vectors, [..., d], to levels from -127 to 127 of a scale each, which stands behind them: int8 [..., d + SCALE].

    The scale is a 127th of the vector's largest, rounded up to a bfloat16, so that no level is beyond 127. One with a number that is not finite is nan.
    """
    x = x.float()
    bits = ((x.abs().amax(dim=-1, keepdim=True) / LEVELS + (0 * x).sum(dim=-1, keepdim=True)).view(torch.int32) + 0xFFFF) >> 16
    scale = (bits << 16).view(torch.float32)
    by = torch.where(scale >= NORMAL, 1 / scale, 0)
    return torch.cat([(x * by).round().nan_to_num().to(torch.int8), bits.to(torch.int16).view(torch.int8)], dim=-1)


def widened(packed: Tensor) -> Tensor:
    """Return what levels and their scales, as `in_8_bits` lays them, stand for: float32 [..., d]."""
    levels, scale = packed[..., :-SCALE], packed[..., -SCALE:].contiguous().view(torch.int16)
    return levels * (scale.to(torch.int32) << 16).view(torch.float32)
