"""Losses of preference pairs as pure functions of the answers' log-probabilities, each with its source.

Every loss takes `PairScores` and `PreferenceSettings` and returns the loss of each pair, [pairs], never their mean: the caller divides by
the number of pairs of the whole accumulated batch, so that how a batch is cut changes nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.errors import UserError

SIMPO_GAMMA = 0.5  # trl's default; the paper's runs had 0.3 to 1.6


@dataclass
class PairScores:
    """Log-probabilities of whole answers in nats, summed over their tokens, and the tokens that each answer has; all [pairs].

    The reference's may be missing, both of them, where the loss needs none. Lengths are at least 1 and count the same tokens as the sums.
    Raises ValueError where the shapes differ or one reference alone is given.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor | None
    ref_rejected: Tensor | None
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    def __post_init__(self) -> None:
        if (self.ref_chosen is None) != (self.ref_rejected is None):
            raise ValueError("the reference's log-probabilities are given for one answer of the pair alone: give both or neither")
        shapes = {name: tuple(value.shape) for name, value in vars(self).items() if value is not None}
        if self.chosen.dim() != 1 or len(set(shapes.values())) > 1:
            raise ValueError(f"all scores of pairs must be [pairs], got {shapes}")


@dataclass(frozen=True)
class PreferenceSettings:
    """Which loss, and its numbers. Raises UserError for a value out of range or one that the loss would ignore."""

    loss: str = field(default="sigmoid", metadata={"help": "sigmoid (DPO), ipo, hinge, robust, cdpo, simpo or orpo."})
    beta: float = field(
        default=0.1, metadata={"help": "Weight of the log ratio; ipo's tau, orpo's lambda; simpo's beta, of which its paper's runs had 2 to 10."}
    )
    label_smoothing: float = field(default=0.0, metadata={"help": "robust and cdpo: share of pairs taken to be labelled the wrong way round."})
    gamma: float | None = field(default=None, metadata={"help": "simpo: by how much the chosen answer's reward should lead; 0.5 where not given."})

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            near = get_close_matches(str(self.loss), LOSSES, n=2, cutoff=0.4)
            guess = f": did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"there is no preference loss {self.loss!r}{guess} (there are {', '.join(LOSSES)})")
        if not 0 < self.beta < math.inf:
            raise UserError(f"beta must be a number above 0, got {self.beta}: 0.1 is usual, 2 for simpo")
        self._check_label_smoothing()
        if self.gamma is not None and self.loss != "simpo":
            raise UserError(f"gamma {self.gamma} would be ignored by the loss {self.loss}: leave it out, or set the loss to simpo")
        if self.gamma is not None and not 0 <= self.gamma < math.inf:
            raise UserError(f"gamma must be a number of at least 0, got {self.gamma}: {SIMPO_GAMMA} is usual")

    def _check_label_smoothing(self) -> None:
        smoothing, smoothed = self.label_smoothing, LOSSES[self.loss].smooths_labels
        if not 0 <= smoothing < 0.5:
            raise UserError(f"label_smoothing must be in [0, 0.5), got {smoothing}: the share of pairs with the wrong label, 0.1 for one in ten")
        if smoothed and smoothing == 0:
            raise UserError(f"the loss {self.loss} needs a label_smoothing above 0, such as 0.1; without it, it is sigmoid")
        if smoothing and not smoothed:
            raise UserError(f"label_smoothing {smoothing} would be ignored by the loss {self.loss}: set it to 0, or the loss to cdpo or robust")


def implicit_rewards(policy: Tensor, reference: Tensor | None, beta: float) -> Tensor:
    """The reward that a policy stands for, beta * log(policy / reference), up to a term of the prompt (Rafailov et al. 2023, eq. 5).

    policy and reference are log-probabilities of whole answers, [answers], so is the result; without a reference its term is left out.
    """
    return beta * (policy if reference is None else policy - reference)


def sigmoid(scores: PairScores, settings: PreferenceSettings) -> Tensor:
    """DPO: -log sigmoid(beta * lead), where lead is by how much the chosen answer's log ratio to the reference exceeds the rejected's.

    Returns [pairs]. Rafailov et al. 2023, "Direct Preference Optimization", eq. 7. Raises ValueError without a reference.
    """
    return -F.logsigmoid(settings.beta * _lead(scores))


def cdpo(scores: PairScores, settings: PreferenceSettings) -> Tensor:
    """Conservative DPO: cross entropy against labels that are wrong with probability label_smoothing; least at a finite lead.

    Returns [pairs]. Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO". Raises ValueError without a reference.
    """
    right, wrong = _both_ways(scores, settings)
    return (1 - settings.label_smoothing) * right + settings.label_smoothing * wrong


def robust(scores: PairScores, settings: PreferenceSettings) -> Tensor:
    """Robust DPO: its mean over labels flipped with probability label_smoothing is the loss of DPO on the true ones. May be negative.

    Returns [pairs]. Chowdhury et al. 2024, "Provably Robust DPO", the unbiased loss rDPO. Raises ValueError without a reference.
    """
    right, wrong = _both_ways(scores, settings)
    return ((1 - settings.label_smoothing) * right - settings.label_smoothing * wrong) / (1 - 2 * settings.label_smoothing)


def hinge(scores: PairScores, settings: PreferenceSettings) -> Tensor:
    """max(0, 1 - beta * lead): a pair whose lead has reached 1 / beta teaches no more.

    Returns [pairs]. Zhao et al. 2023, "SLiC-HF", its rank calibration loss, on log ratios to the reference as in Liu et al. 2023,
    "Statistical Rejection Sampling Improves Preference Optimization". Raises ValueError without a reference.
    """
    return torch.relu(1 - settings.beta * _lead(scores))


def ipo(scores: PairScores, settings: PreferenceSettings) -> Tensor:
    """(lead - 1 / (2 beta))^2, each log ratio first divided by the answer's tokens: a lead beyond 1 / (2 beta) is drawn back.

    Returns [pairs]. Azar et al. 2024, "A General Theoretical Paradigm to Understand Learning from Human Preferences", eq. 17; the division,
    which the paper does not write, keeps one beta right for answers of any length and is what trl does. Raises ValueError without a reference.
    """
    chosen, rejected = _log_ratios(scores)
    lead = chosen / scores.chosen_lengths - rejected / scores.rejected_lengths
    return (lead - 1 / (2 * settings.beta)).square()


def simpo(scores: PairScores, settings: PreferenceSettings) -> Tensor:
    """-log sigmoid(beta * (mean log-probability of a chosen token - of a rejected token) - gamma), without a reference.

    Returns [pairs]. Meng et al. 2024, "SimPO", eq. 6. gamma is the paper's margin and trl's `simpo_gamma`, not the ratio gamma / beta.
    """
    chosen, rejected = _token_means(scores)
    gamma = SIMPO_GAMMA if settings.gamma is None else settings.gamma
    return -F.logsigmoid(settings.beta * (chosen - rejected) - gamma)


def orpo_odds(scores: PairScores, settings: PreferenceSettings) -> Tensor:
    """-beta * log sigmoid(log of the chosen answer's odds over the rejected's), the odds p / (1 - p) of a mean token; the odds term of ORPO alone.

    Returns [pairs]. Hong et al. 2024, "ORPO", eq. 4 and 7, beta the lambda of eq. 6. The whole loss adds the negative log-likelihood of the
    chosen answers' tokens, which the caller divides by the tokens of the accumulated batch, not by its pairs.
    """
    chosen, rejected = map(_log_odds, _token_means(scores))
    return -settings.beta * F.logsigmoid(chosen - rejected)


def _log_ratios(scores: PairScores) -> tuple[Tensor, Tensor]:
    if scores.ref_chosen is None or scores.ref_rejected is None:
        raise ValueError("this loss compares with a reference: give ref_chosen and ref_rejected")
    return scores.chosen - scores.ref_chosen, scores.rejected - scores.ref_rejected


def _lead(scores: PairScores) -> Tensor:
    chosen, rejected = _log_ratios(scores)
    return chosen - rejected


def _both_ways(scores: PairScores, settings: PreferenceSettings) -> tuple[Tensor, Tensor]:
    """The losses of DPO with the pair as it is labelled and the other way round."""
    margin = settings.beta * _lead(scores)
    return -F.logsigmoid(margin), -F.logsigmoid(-margin)


def _token_means(scores: PairScores) -> tuple[Tensor, Tensor]:
    return scores.chosen / scores.chosen_lengths, scores.rejected / scores.rejected_lengths


def _log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p; a p of 1 counts as the nearest below it, whose odds are finite."""
    logprob = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)
    return logprob - (-torch.expm1(logprob)).log()  # 1 - exp(logprob) would lose its digits near 0


@dataclass(frozen=True)
class PreferenceLoss:
    """A loss that is called with scores and settings, and what it wants of its caller."""

    of_pairs: Callable[[PairScores, PreferenceSettings], Tensor]
    effect: str
    needs_reference: bool = True
    adds_chosen_nll: bool = False  # the caller adds the chosen answers' negative log-likelihood, summed over tokens and divided by their number
    smooths_labels: bool = False

    def __call__(self, scores: PairScores, settings: PreferenceSettings) -> Tensor:
        return self.of_pairs(scores, settings)


LOSSES = {
    "sigmoid": PreferenceLoss(sigmoid, "DPO"),
    "ipo": PreferenceLoss(ipo, "squared distance of the lead, a token's mean, from 1 / (2 beta)"),
    "hinge": PreferenceLoss(hinge, "SLiC: nothing more to learn once the lead is 1 / beta"),
    "robust": PreferenceLoss(robust, "DPO made unbiased under flipped labels", smooths_labels=True),
    "cdpo": PreferenceLoss(cdpo, "conservative DPO: smoothed labels", smooths_labels=True),
    "simpo": PreferenceLoss(simpo, "mean log-probabilities and a margin gamma, no reference", needs_reference=False),
    "orpo": PreferenceLoss(
        orpo_odds, "odds ratio plus the chosen answers' negative log-likelihood, no reference", needs_reference=False, adds_chosen_nll=True
    ),
}
