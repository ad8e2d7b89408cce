"""Which tokens of an answer are masked, and what their log-probabilities weigh, so that the sum is a bound on the answer's likelihood.

At time t each token is masked with probability m(t) alone, whatever becomes of the others; m(0) is 0 and m(1) is 1. With t uniform and the
weight m'(t) / m(t), the weighted sum of the masked tokens' log-probabilities is an unbiased estimate of a bound on the answer's log-likelihood
(ELBO), whatever the schedule (Sahoo et al. 2024, "Simple and Effective Masked Diffusion Language Models", eq. 10; Shi et al. 2024). With l of the
L tokens masked, l uniform from 1 to L and each choice of l tokens as likely, and the weight L / l, it is an estimate of the same bound
(Nie et al. 2025, "LLaDA", eq. 14).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import NamedTuple

from ...data.errors import UserError
from ..requests.rng import hashed


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


# Estimators: noise in [0, 1), one number a token, and a time in [0, 1) to the masked tokens and the weight of each


def by_counts(noise: Sequence[float], time: float) -> tuple[list[bool], float]:
    """Mask the tokens of the smallest noise, as many as the time says, 1 to all of them.

    >>> by_counts([0.3, 0.9, 0.1, 0.5], 0.3)
    ([True, False, True, False], 2.0)
    """
    count = min(int(len(noise) * time) + 1, len(noise))
    hidden = set(sorted(range(len(noise)), key=noise.__getitem__)[:count])
    return [place in hidden for place in range(len(noise))], len(noise) / count


def by_times(noise: Sequence[float], time: float) -> tuple[list[bool], float]:
    """Mask each token whose noise is below the time; it may be none.

    >>> by_times([0.3, 0.9, 0.1, 0.5], 0.4)
    ([True, False, True, False], 2.5)
    """
    masked = [each < time for each in noise]
    return masked, likelihood_weight("linear", time) if any(masked) else 0.0


ESTIMATORS = {"counts": by_counts, "times": by_times}


@dataclass(frozen=True)
class Draws:
    """How masks are drawn: how many an answer, by which estimator, from which seed. Raises UserError for a value out of range."""

    count: int = 32
    estimator: str = "counts"
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.count) is not int or self.count < 1:
            raise UserError(f"draws must be a whole number of at least 1, got {self.count}")
        if self.estimator not in ESTIMATORS:
            near = difflib.get_close_matches(str(self.estimator), ESTIMATORS, n=1)
            raise UserError(f"there is no estimator {self.estimator!r}: " + (f"did you mean {near[0]}?" if near else f"choose one of {', '.join(ESTIMATORS)}"))

    def take_all(self, length: int) -> bool:
        """Whether so many tokens have no more masks than may be drawn: then each is taken once, and the bound is exact."""
        return length < (self.count + 1).bit_length()  # 2^length - 1 masks


class Masks(NamedTuple):
    """Which tokens are masked, and the weight of their log-probabilities in the sum over all masks of an answer, which is the estimate."""

    masked: list[bool]
    weight: float


def masks_of(length: int, draws: Draws, *key: object) -> list[Masks]:
    """The masks of `length` tokens, all there are where `draws.take_all`, else `draws.count`; they hang on the seed and `key` and on nothing else.

    Two draws have their times in each of as many equal parts of [0, 1), so that their differences say the error. Answers of one key share the
    noise of their first tokens, whatever their lengths.
    """
    if draws.take_all(length):
        return list(every_mask(length))
    found = []
    for stratum in strata(draws.count):
        for draw in stratum:
            noise = Random(hashed("masks", draws.seed, *key, draw))
            time = (stratum.start + noise.random() * len(stratum)) / draws.count
            masked, weight = ESTIMATORS[draws.estimator]([noise.random() for _ in range(length)], time)
            found.append(Masks(masked, weight / draws.count))
    return found


def every_mask(length: int) -> Iterator[Masks]:
    """All masks of `length` tokens but the empty one, each by how often counts draw it: of l masked tokens, 1 / (l binomial(length, l)).

    >>> list(every_mask(2))
    [Masks(masked=[False, True], weight=0.5), Masks(masked=[True, False], weight=0.5), Masks(masked=[True, True], weight=0.5)]
    """
    for masked in product((False, True), repeat=length):
        if count := sum(masked):
            yield Masks(list(masked), 1 / (count * math.comb(length, count)))


def strata(count: int) -> list[range]:
    """The draws that share a stratum: two, and of an odd count the last three.

    >>> strata(5)
    [range(0, 2), range(2, 5)]
    """
    starts = range(0, count - 1, 2) or range(1)
    return [range(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True)]


def standard_error(values: Sequence[float]) -> float | None:
    """The standard error of the mean of some draws in strata of theirs; None of one.

    standard_error([1.0, 3.0, 10.0, 10.0]) is 0.5: the means of two pairs are 2 and 10, with errors 1 and 0.
    """
    if len(values) < 2:
        return None
    squares = 0.0
    for stratum in strata(len(values)):
        own = values[stratum.start : stratum.stop]
        mean = math.fsum(own) / len(own)
        squares += len(own) * math.fsum((each - mean) ** 2 for each in own) / (len(own) - 1)
    return math.sqrt(squares) / len(values)
