"""The chance that one of some samples is right."""

from math import comb


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that of k samples, drawn from so many of which some are `right`, at least one is: 1 - C(samples - right, k) / C(samples, k).

    Unbiased, as 1 - (1 - right / samples)^k is not: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", eq. 1. Raises ValueError
    for a k that is not among 1 to samples.

    >>> pass_at_k(4, 2, 2) == 1 - 1 / 6
    True
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k must be in 1 to {samples} samples, got {k}")
    return 1 - comb(samples - right, k) / comb(samples, k)
