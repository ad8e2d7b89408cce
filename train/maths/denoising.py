"""Masked diffusion: how many tokens are masked at a time t in [0, 1], and what a masked token's cross entropy weighs, as pure functions.

At time t each token of an answer is masked with probability m(t) alone, whatever becomes of the others; m(0) is 0 and m(1) is 1. With t uniform
and the weight m'(t) / m(t), the weighted sum of the masked tokens' cross entropies is an unbiased estimate of a bound on the answer's negative
log-likelihood, whatever the schedule (Sahoo et al. 2024, "Simple and Effective Masked Diffusion Language Models", eq. 10; Shi et al. 2024).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The share of masked tokens at a time, and how fast it grows."""

    rate: Callable[[float], float]
    slope: Callable[[float], float]


SCHEDULES = {
    "linear": Schedule(lambda t: t, lambda t: 1.0),  # LLaDA, Dream: every share of masks is as frequent
    "cosine": Schedule(lambda t: 1 - math.cos(math.pi * t / 2), lambda t: math.pi / 2 * math.sin(math.pi * t / 2)),  # MDLM: few masks more often
}


def likelihood_weight(schedule: str, t: float, complement: bool = False) -> float:
    """The weight of a masked token by which the sum is the bound: 1/t where the schedule is linear; `complement` masks what the others left, 1/(1 - t).

    The complement of a mask of share m has the share 1 - m, as often as m is drawn. Infinite where no token is ever masked.
    """
    rate, slope = SCHEDULES[schedule].rate(t), SCHEDULES[schedule].slope(t)
    share = 1 - rate if complement else rate
    return slope / share if share > 0 else math.inf


def context_weights(masked: Sequence[bool], p: float) -> list[float]:
    """How much clean context each token of a record has near it: half the sum of p (1 - p)^(d - 1) over unmasked tokens at distance d, on both sides.

    From 0, no token is clean, to 1, all others are; unmasked tokens weigh 0. Prompts count as clean (Ye et al. 2025, "Dream 7B",
    context-adaptive token-level noise rescheduling: CART).

    >>> context_weights([False, True, True], p=0.5)
    [0.0, 0.25, 0.125]
    """
    before, after = _faded(masked, p), _faded(masked[::-1], p)[::-1]
    return [p * (left + right) / 2 if hidden else 0.0 for hidden, left, right in zip(masked, before, after, strict=True)]


def _faded(masked: Sequence[bool], p: float) -> list[float]:
    """For each token the sum of (1 - p)^(d - 1) over the unmasked tokens at distance d before it."""
    found, fading = [], 0.0
    for hidden in masked:
        found.append(fading)
        fading = fading * (1 - p) + (not hidden)
    return found


def stratified_time(offset: float, place: int, strata: int) -> float:
    """The time of the `place`-th of so many records that share a uniform offset in [0, 1): each time is uniform, and each stratum has one."""
    return (offset + place / strata) % 1.0


def ratio_with_error(sums: Sequence[float], counts: Sequence[float]) -> tuple[float, float | None]:
    """The quotient of two sums over rows and its standard error over the rows, by the delta method; None of fewer than two rows.

    ratio_with_error([2.0, 6.0], [1, 1]) is (4.0, 2.0): a mean of two and its error.
    """
    total, n = math.fsum(counts), len(sums)
    ratio = math.fsum(sums) / total
    if n < 2:
        return ratio, None
    squares = math.fsum((each - ratio * count) ** 2 for each, count in zip(sums, counts, strict=True))
    return ratio, math.sqrt(squares * n / (n - 1)) / total
