"""Q4_0 as llama.cpp reads it: blocks of 32 weights, each level - 8 times a float16 scale, levels 0 to 15; scales are searched for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...kernels.four_bits import better

BLOCK = 32
AT_A_TIME = 1 << 14  # blocks whose search stays in the CPU's cache
# Shares of the plain scale, at which the largest weight is the level -8: smaller ones cut it off and hold the others finer.
STARTS = (1.0, 1.12, 1.06, 0.94, 0.88)  # of normal numbers the squared error is 0.89 of the plain one's, with nineteen it would be 0.885


def q4_0(weight: Tensor) -> np.ndarray:
    """Return a float32 tensor, [..., n] with n a whole number of blocks, as the bytes of its blocks, uint8 [..., n / 32 * 18].

    A block's scale is the one of least squared error among `STARTS`, each fitted to its levels by least squares once (as llama.cpp's
    make_qx_quants does, without weights), so none is worse than the plain one. In the bytes level i lies below level i + 16, behind the scale.
    """
    blocks = weight.reshape(-1, BLOCK)
    parts = [_bytes(*searched(part)) for part in blocks.split(AT_A_TIME)]
    return torch.cat(parts).view(*weight.shape[:-1], -1).numpy()


def searched(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return for float32 blocks, [blocks, 32], levels -8 to 7 in float32, alike, and float16 scales, [blocks, 1]."""
    at = blocks.abs().argmax(dim=1, keepdim=True)
    plain = blocks.gather(1, at) / -8
    best: list[Tensor] = []
    for share in STARTS:
        scale = _held(plain * share)
        levels = _levels(blocks, scale)
        fitted = _held((levels * blocks).sum(dim=1, keepdim=True) / levels.square().sum(dim=1, keepdim=True).clamp_min_(1))
        for scale, levels in ((scale, levels), (fitted, _levels(blocks, fitted))):
            best = better(best, [levels, scale, (levels * scale - blocks).square_().sum(dim=1, keepdim=True)])
    return best[0], best[1].to(torch.float16)


def _held(scale: Tensor) -> Tensor:
    return scale.to(torch.float16).float()


def _levels(blocks: Tensor, scale: Tensor) -> Tensor:
    inverse = torch.where(scale == 0, 0.0, 1 / scale)  # of a block of zeros, or one that float16 has no scale for
    return (blocks * inverse).round_().clamp_(-8, 7)


def _bytes(levels: Tensor, scales: Tensor) -> Tensor:
    lower, upper = (levels + 8).to(torch.uint8).chunk(2, dim=1)
    return torch.cat([scales.contiguous().view(torch.uint8), lower | upper << 4], dim=1)
