"""How many of the open positions become certain in a pass where no schedule says it: as many as the model is sure enough of."""

from __future__ import annotations

from collections.abc import Sequence


def confident(chances: Sequence[float], threshold: float) -> list[int]:
    """The places whose token's probability reaches a threshold; of places surest first, the first one where none does.

    Source: Wu et al. 2025, Fast-dLLM, confidence-aware parallel decoding.

    >>> confident([0.4, 0.9, 0.7], 0.6), confident([0.4, 0.3], 0.6)
    ([1, 2], [0])
    """
    return [place for place, chance in enumerate(chances) if chance >= threshold] or [0]


def bounded(entropies: Sequence[float], bound: float) -> list[int]:
    """The most first places whose tokens may be drawn at once, each by itself: as long as the sum of entropies less the greatest is within a bound.

    It bounds by how much the joint distribution of the tokens differs from that of drawing them one after another; one alone never does.
    Entropies are in nats, of places surest first.
    Source: Ben-Hamu et al. 2025, Accelerated sampling from masked diffusion models via entropy bounded unmasking.

    >>> bounded([0.25, 0.5, 0.25, 2.0], 0.5), bounded([3.0, 4.0], 0.5)
    ([0, 1, 2], [0])
    """
    total = greatest = 0.0
    for place, entropy in enumerate(entropies):
        total, greatest = total + entropy, max(greatest, entropy)
        if total - greatest > bound:
            return list(range(place))
    return list(range(len(entropies)))
