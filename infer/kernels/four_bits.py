"""Sixteen levels, a scale and an offset for every 32 neighbouring inputs of an output: the search for those that lie nearest to a weight."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 32  # neighbouring inputs that share a scale and an offset
LEVELS = 16
WIDTHS = (1.0, 0.9)  # of a group's range, from which the search starts
# Away from the best that was found, by a share of the scale and by steps: the levels of a group fall otherwise, and least squares lead elsewhere.
# On weights that were never rounded the eight leave 0.93 of the squared error of starts from ranges alone; a hundred starts leave 0.92.
MOVES = ((0.0, 0.3), (0.0, -0.3), (0.03, 0.0), (-0.03, 0.0), (0.0, 0.5), (0.05, 0.25), (0.05, -0.25), (-0.05, 0.0))
ROUNDS = 2
AT_A_TIME = 512  # outputs whose groups stay in the CPU's cache

Fitted = tuple[Tensor, Tensor, Tensor]  # levels 0 to 15, int32 [out, in], and scales and zeros, [out, groups], in the dtype in which they are kept


class Grid(NamedTuple):
    """How a kernel keeps 4 bits: a weight is (level + lowest) * scale + zero, scale and zero in a dtype."""

    lowest: int
    dtype: torch.dtype


def four_bits(weight: Tensor, lowest: int = -8, dtype: torch.dtype = torch.bfloat16, importance: Tensor | None = None) -> Fitted:
    """Return for a float32 weight [out, in] levels 0 to 15, int32 [out, in], and scale and zero in a dtype, [out, groups], of which it is nearly
    (level + lowest) * scale + zero.

    Scale and zero are fitted to the levels by least squares and the levels to them, in turns, from several starts; each group keeps what leaves the least
    squared error, of scale and zero as the dtype holds them. `importance`, [in] and above 0, is what the squared error of an input counts.
    """
    counts = torch.ones(weight.shape[1] // GROUP, GROUP) if importance is None else importance.view(-1, GROUP)
    counts = counts / counts.sum(dim=-1, keepdim=True)
    levels, scale, zero = map(torch.cat, zip(*(_fit(part, counts, lowest, dtype) for part in weight.split(AT_A_TIME))))
    return levels, scale, zero


def _fit(weight: Tensor, counts: Tensor, lowest: int, dtype: torch.dtype) -> Fitted:
    """`four_bits` of some outputs; `counts` are [groups, GROUP] and sum to 1 in each."""
    groups = weight.view(len(weight), -1, GROUP)
    low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
    middle = lowest + (LEVELS - 1) / 2
    best: list[Tensor] = []
    for width in WIDTHS:
        scale = (high - low) * (width / (LEVELS - 1))
        best = better(best, _descended(groups, counts, scale, (high + low) / 2 - scale * middle, lowest, dtype))
    for wider, shift in MOVES:
        _, scale, zero, _ = best
        best = better(best, _descended(groups, counts, scale * (1 + wider), zero + scale * (shift - wider * middle), lowest, dtype))
    levels, scale, zero, _ = best
    return levels.sub_(lowest).to(torch.int32).view_as(weight), scale[..., 0].to(dtype), zero[..., 0].to(dtype)


def nearest_levels(groups: Tensor, scale: Tensor, zero: Tensor, lowest: int) -> Tensor:
    """Return the levels, from `lowest` on, whose level * scale + zero lies nearest to the groups; a scale of zero has one value for all."""
    return ((groups - zero) / scale.clamp_min(1e-12)).round_().clamp_(lowest, lowest + LEVELS - 1)


def _descended(groups: Tensor, counts: Tensor, scale: Tensor, zero: Tensor, lowest: int, dtype: torch.dtype) -> list[Tensor]:
    """Levels, scale and zero, as float32 has them, at which least squares end, and the squared error that they leave in each group."""
    for _ in range(ROUNDS):
        scale, zero = _least_squares(groups, counts, nearest_levels(groups, scale, zero, lowest), scale)
    scale, zero = scale.to(dtype).float(), zero.to(dtype).float()
    levels = nearest_levels(groups, scale, zero, lowest)
    return [levels, scale, zero, (levels * scale + zero - groups).square_().mul_(counts).sum(dim=-1, keepdim=True)]


def better(best: list[Tensor], other: list[Tensor]) -> list[Tensor]:
    """Return of two candidates, of which the last tensor is the error, by the place the one that leaves less; the other where there is none yet, an empty list."""
    if not best:
        return other
    less = other[-1] < best[-1]
    return [torch.where(less, new, old) for new, old in zip(other, best)]


def _least_squares(groups: Tensor, counts: Tensor, levels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and zero with which levels * scale + zero lies nearest to the groups; `counts` sum to 1 in each."""
    level, mean = (levels * counts).sum(dim=-1, keepdim=True), (groups * counts).sum(dim=-1, keepdim=True)
    apart = levels - level  # about their mean: where one input counts for nearly all, a difference of squares would leave nothing but rounding
    weighted = apart * counts
    spread = (weighted * apart).sum(dim=-1, keepdim=True)
    slope = (weighted * (groups - mean)).sum(dim=-1, keepdim=True) / spread.clamp_min(1e-12)
    slope = torch.where(spread > 0, slope, scale)  # one level alone says nothing of the scale
    return slope, mean - slope * level


def written_out(fitted: Fitted, grid: Grid) -> Tensor:
    """Return the weight that levels, scales and zeros stand for, [out, in] in float32."""
    levels, scale, zero = fitted
    groups = levels.float().add_(grid.lowest).view(len(levels), -1, GROUP)
    return torch.addcmul(zero.float()[..., None], groups, scale.float()[..., None]).view(levels.shape)
