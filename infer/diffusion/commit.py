"""Which guesses become certain in a pass: as many of the surest as a schedule says, or as the model is sure enough of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch

from ..requests.params import RequestParams
from ..requests.trace import ChoiceTrace
from .orders import surest


class Guess(NamedTuple):
    """A token for an open position, its log-probability after the filters, and how sure the position is by the order; what a trace saw of it.

    `chance` is the probability that a threshold judges, `entropy` that of the distribution it was chosen from, where a bound asks for it.
    """

    position: int
    id: int
    logprob: float
    sure: float
    chance: float = 1.0
    entropy: float = 0.0
    trace: ChoiceTrace | None = None


def due(guesses: Sequence[Guess], count: int, params: RequestParams, ends: Collection[int], noise: Sequence[float]) -> list[int]:
    """The places of the guesses that become certain, surest first: so many, or as many as a threshold or a bound lets be.

    `noise` is a number in [0, 1) a guess, where `alg_temp` draws among them.
    """
    late = penalties(guesses, ends, params.eos_penalty or 0.0)
    sure = torch.tensor([guess.sure - penalty for guess, penalty in zip(guesses, late)], dtype=torch.float64)
    ranked = surest(sure, len(guesses), params.alg_temp or 0.0, noise)
    if params.confidence_threshold is not None:
        return [ranked[each] for each in confident([guesses[place].chance - late[place] for place in ranked], params.confidence_threshold)]
    if params.entropy_bound is not None:
        return [ranked[each] for each in bounded([guesses[place].entropy for place in ranked], params.entropy_bound)]
    return ranked[:count]


def penalties(guesses: Sequence[Guess], ends: Collection[int], penalty: float) -> list[float]:
    """What is taken from how sure each guess is: the penalty from ends, as long as there is anything else that they can wait for."""
    is_end = [guess.id in ends for guess in guesses]
    return [0.0 if all(is_end) else penalty * each for each in is_end]


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
