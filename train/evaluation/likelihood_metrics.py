"""Metrics of how likely a model finds given texts: references, and the choices of a question."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..maths.calibration import BINS, bins_of
from .case import Case, Likelihood
from .metric import CHOICES, LIKELIHOODS, REFERENCES, Metric, Row, mean_metric

OF_REFERENCES = (REFERENCES, LIKELIHOODS)
LENGTHS: dict[str, Callable[[Likelihood], int]] = {  # what the log-probability of a choice is divided by
    "acc": lambda choice: 1,
    "acc_token": lambda choice: choice.tokens,
    "acc_byte": lambda choice: choice.size,
    "acc_char": lambda choice: len(choice.text),
}


def likelihood_metrics() -> dict[str, Metric]:
    """The metrics by their names: perplexity a token and bits a byte of references; of choices accuracies, calibration error and Brier score."""
    return {
        "perplexity": Metric("perplexity", OF_REFERENCES, _a_token, _perplexity, more_is_better=False, same_tokenizer=True),
        "bits_per_byte": Metric("bits_per_byte", OF_REFERENCES, _a_byte, more_is_better=False),
        **{name: mean_metric(name, (CHOICES,), _takes_right(length)) for name, length in LENGTHS.items()},
        "ece": Metric("ece", (CHOICES,), _by_bins, _calibration_error, more_is_better=False),
        "brier": mean_metric("brier", (CHOICES,), _brier, more_is_better=False),
    }


def _a_token(case: Case) -> Row | None:
    return None if case.likelihood is None else (case.likelihood.nats, case.likelihood.tokens)


def _perplexity(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(np.minimum(sums[..., 0] / sums[..., 1], 700.0))  # held below infinity, as in `seodang score`


def _a_byte(case: Case) -> Row | None:
    """As `maths.bits_per_byte`: what ends an answer is coded, and is none of its bytes."""
    return None if case.likelihood is None else (case.likelihood.nats / math.log(2), case.likelihood.size)


def _takes_right(length: Callable[[Likelihood], int]) -> Callable[[Case], float | None]:
    """Whether the likeliest choice, its log-probability divided by a length, is the right one; of equal ones the first is taken."""

    def right(case: Case) -> float | None:
        if not case.choices:
            return None
        scores = [-choice.nats / max(length(choice), 1) for choice in case.choices]
        return float(scores.index(max(scores)) == case.right)

    return right


def probabilities(choices: Sequence[Likelihood]) -> list[float]:
    """How the model's belief is shared among the choices alone, by the likelihoods of the whole texts."""
    best = min(choice.nats for choice in choices)
    weights = [math.exp(best - choice.nats) for choice in choices]
    return [weight / sum(weights) for weight in weights]


def _brier(case: Case) -> float | None:
    """The sum over the choices of how far each probability lies from 1 or 0, squared: in [0, 2], Brier 1950."""
    if not case.choices:
        return None
    return sum((probability - (place == case.right)) ** 2 for place, probability in enumerate(probabilities(case.choices)))


def _by_bins(case: Case) -> Row | None:
    """1, and by the bins of confidence how sure the model is of the choice that it takes, less 1 where that is right: [1 + BINS]."""
    if not case.choices:
        return None
    shares = probabilities(case.choices)
    sure, row = max(shares), np.zeros(1 + BINS)
    row[0] = 1
    row[1 + int(bins_of(torch.tensor(sure, dtype=torch.float64)))] = sure - (shares.index(sure) == case.right)
    return row


def _calibration_error(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The expected calibration error of `maths.calibration`, whose means over a bin are here sums."""
    return np.abs(sums[..., 1:]).sum(-1) / sums[..., 0]
