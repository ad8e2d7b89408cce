"""Masked diffusion in training: how much clean context a masked token has, when in a batch, and a loss with its error, as pure functions."""

import math
from collections.abc import Sequence


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
