"""Keys and values in 8 bits: of each position and head its levels and a scale.

A few numbers of a key are far greater than the others, at every position the same, and would take the levels for themselves. So keys are kept turned by
a Hadamard matrix, which spreads each number over all (QuaRot, Ashkboos et al., 2024): half the error, for the same memory. Values have no such numbers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ...data.errors import UserError
from .architecture import transformers_model
from .cache import StackedPool
from .lane_block import Region
from .paradigm import is_encoder

INT8 = "int8"
SCALE = 2  # bytes of a scale, which stand behind a vector's levels: the upper half of a float32, a bfloat16
LEVELS = 127
NORMAL = torch.finfo(torch.float32).smallest_normal  # the least scale with an inverse
_CHOSEN = "kv_cache_dtype"  # the attribute of a model that says what was chosen for it


def set_kv_cache_dtype(model: nn.Module, kv_cache_dtype: str | None) -> None:
    """Have whatever speaks or scores with a model from now on keep keys and values in 8 bits ("int8"), or in the model's own dtype ("auto" or None).

    Half of bfloat16's memory, a quarter of float32's. It is for models that run natively on a CPU: `open_runner`, and so `generate`, `score` and
    `LiveEngine`, refuse any other. Raises UserError for another word, and for an encoder.
    """
    check_kv_cache_dtype(kv_cache_dtype)
    inner = transformers_model(model)
    if kv_cache_dtype == INT8 and is_encoder(inner.config):
        raise UserError(f"kv_cache_dtype=int8 is for models that speak, and {inner.config.model_type} is an encoder, which keeps nothing: leave it out")
    setattr(inner, _CHOSEN, None if kv_cache_dtype == "auto" else kv_cache_dtype)


def check_kv_cache_dtype(kv_cache_dtype: str | None) -> None:
    """Raise UserError for a word that is none of those that say how a cache is kept."""
    if kv_cache_dtype not in (None, "auto", INT8):
        raise UserError(f"kv_cache_dtype={kv_cache_dtype!r} is unknown: choose auto or int8")


def kv_cache_dtype_of(model: nn.Module) -> str | None:
    """Return "int8" where a model's keys and values are to be kept in 8 bits, else None."""
    return getattr(model, _CHOSEN, None)


class Pool8(StackedPool):
    """A pool of keys and values in 8 bits, `stack` is [layers, 2, lanes, kv_heads, capacity, d + SCALE] bytes: what is written is rounded, what is read widened."""

    def region(self, like: Tensor) -> Region:
        """What a slot has in a layer of keys, or of values."""
        _, kv_heads, width = self.shape
        return region8(kv_heads, width, like.device)

    def write(self, layer: int, at: Any, key: Tensor, value: Tensor) -> None:
        """Round new keys and values of a layer and write them where `at` says, an index of lanes, heads and positions."""
        keys, values = self.layers[layer]
        keys[at], values[at] = in_8_bits(key.float() @ hadamard(self.shape[-1], key.device)), in_8_bits(value)

    def read(self, layer: int, lanes: slice, positions: slice, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return what these lanes' keys and values at these positions stand for, [lanes, kv_heads, positions, d], in the dtype of `like`."""
        keys, values = (widened(part[lanes, :, positions]) for part in self.layers[layer])
        return (keys @ hadamard(self.shape[-1], keys.device)).to(like.dtype), values.to(like.dtype)


def region8(kv_heads: int, width: int, device: torch.device) -> Region:
    """What a slot has in a layer of keys in 8 bits, or of values."""
    return Region(kv_heads, width + SCALE, torch.int8, device)


@cache
def hadamard(width: int, device: torch.device) -> Tensor:
    """Return what keys are turned by, [width, width], and back: Sylvester's matrix with rows of length 1, in blocks of the greatest power of two that divides the width."""
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
