"""Certain tokens that become masks again, so that a mistake can be mended (ReMDM)."""

from __future__ import annotations

from .schedule import EPS


def remask_chance(before: float, after: float, cap: float) -> float:
    """The probability sigma with which a certain token becomes a mask in a step: ReMDM-cap.

    `before` and `after` are the shares of positions that are certain by the schedule, alpha_t and alpha_s. Then sigma = min(cap, (1 - alpha_s) / alpha_t):
    with more, too few positions were left that become certain in this step. In the last step, where all do, it is 0.
    Source: Wang et al. 2025, Remasking discrete diffusion models with inference-time scaling.
    """
    return min(cap, (1 - after) / before) if before else 0.0


def commit_chance(before: float, after: float, sigma: float) -> float:
    """The probability with which an open position becomes certain in that step, (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t).

    So each position is certain after the step with probability alpha_s, whatever sigma is: before * (1 - sigma) + (1 - before) * this.
    """
    return (after - (1 - sigma) * before) / (1 - before)


def share_at(step: int, steps: int) -> float:
    """The share alpha of positions that are certain before a step, counted from 0, by Dream's timesteps; all of them behind the last.

    >>> share_at(0, 4), share_at(4, 4)
    (0.0, 1.0)
    """
    return 1.0 if step == steps else step * (1 - EPS) / steps
