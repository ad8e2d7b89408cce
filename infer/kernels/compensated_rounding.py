"""Rounding to 4 bits in which each input's error is made up for by the inputs behind it: GPTQ (Frantar et al. 2022), by groups."""

from __future__ import annotations

import torch
from torch import Tensor

from .four_bits import GROUP, Fitted, Grid, four_bits, nearest_levels


def compensated(weight: Tensor, moments: Tensor, grid: Grid, damping: float) -> Fitted:
    """Return levels, scale and zero as `four_bits` does, chosen so that the outputs for inputs as they were seen stay near, not the weights.

    weight is float32 [out, in]; moments is the mean of x x^T over inputs x, [in, in]: what is made small is the mean of |(w - rounded) x|^2. Inputs are rounded in
    order; what rounding one loses is taken from the weights behind it, as far as the inputs go together. The scale and zero of a group are fitted when it begins, to
    its weights as they are by then, an input counting by what its error costs once all behind it have made up for it. `damping`, a share of the inputs' mean
    square, is added to the square of each: it keeps what was hardly seen from moving far.
    Raises torch.linalg.LinAlgError where `moments` are not those of inputs.
    """
    rest, correction = weight.clone(), _correction(moments, damping)
    cost = correction.diagonal().square().reciprocal()
    fitted = []
    for begin in range(0, weight.shape[1], GROUP):
        group, end = rest[:, begin : begin + GROUP], begin + GROUP
        _, scale, zero = four_bits(group.contiguous(), *grid, cost[begin:end])
        wide, from_zero = scale.float(), zero.float()
        inside = correction[begin:end, begin:end]
        levels, errors = torch.empty_like(group), torch.empty_like(group)
        for i in range(GROUP):
            levels[:, i : i + 1] = nearest_levels(group[:, i : i + 1], wide, from_zero, grid.lowest)
            errors[:, i] = (group[:, i] - (levels[:, i] * wide[:, 0] + from_zero[:, 0])) / inside[i, i]
            group[:, i:].addr_(errors[:, i], inside[i, i:], alpha=-1)
        rest[:, end:].addmm_(errors, correction[begin:end, end:], alpha=-1)
        fitted.append((levels.sub_(grid.lowest).to(torch.int32), scale, zero))
    levels, scales, zeros = (torch.cat(parts, dim=1) for parts in zip(*fitted))
    return levels, scales, zeros


def _correction(moments: Tensor, damping: float) -> Tensor:
    """Return the upper triangle U, float32, with U^T U the inverse of the damped moments: an error in input i that is made up for moves the weights behind it
    by U[i, j] / U[i, i] of it, and costs its square over U[i, i]^2."""
    damped = moments.double()
    mean = damped.diagonal().mean().item()
    damped = damped + torch.eye(len(damped), dtype=torch.float64) * (damping * mean or 1.0)  # no input at all: none goes with another
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True).float()
