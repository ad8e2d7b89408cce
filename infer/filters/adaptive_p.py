"""Adaptive-p: tokens of a probability near a target, which moves against what was chosen before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..requests.options import LLAMA_CPP, option, settings
from ..requests.rules import number, share
from ..requests.sequence import TokenSequence
from .spec import Apply, FilterSpec, state_of

WIDTH, PEAK, SHARPNESS = 0.3, 5.0, 10.0  # of the curve, as in llama.cpp


def adaptive_p(logits: Tensor, target: Tensor) -> Tensor:
    """Replace logits by how near the tokens' probabilities are to the target: 5 - 10 d^2 / (1 + d), at d widths of 0.3 from it.

    logits are [rows, vocab], target [rows, 1] in [0, 1]; nothing is raised. Near the target the curve falls as a square, far from it as a line
    and without an end, so that many unlikely tokens weigh little together. What was dropped before stays dropped.

    Source: llama.cpp's sampler adaptive-p, pull request 17927.
    """
    return nearness(logits, logits.softmax(dim=-1), target)


def nearness(logits: Tensor, probs: Tensor, target: Tensor) -> Tensor:
    """As `adaptive_p`, for logits whose probabilities, [rows, vocab], are known."""
    distance = (probs - target).abs() / WIDTH
    return (PEAK - SHARPNESS * distance.square() / (1 + distance)).masked_fill(logits == -torch.inf, -torch.inf)


class AdaptiveTarget:
    """What adaptive-p remembers of a sequence: the mean probability of its tokens before the curve, each weighing `decay` times the next.

    It begins as if an endless past had met the target. `current` is as far to one side of the target as the mean is to the other.
    """

    def __init__(self, target: float, decay: float):
        self.target, self.decay = target, decay
        self.total, self.weight = target / (1 - decay), 1 / (1 - decay)
        self._probs: Tensor | None = None

    @property
    def current(self) -> float:
        """The probability to aim at now, in [0, 1]."""
        return min(max(2 * self.target - self.total / self.weight, 0.0), 1.0)

    def offer(self, probs: Tensor) -> None:
        """Remember the distribution, [vocab], that the next token is chosen from, as it was before the curve."""
        self._probs = probs

    def accept(self, id: int) -> None:
        """Learn from the token chosen; one that was not offered, forced text say, teaches nothing."""
        prob = float(self._probs[id]) if self._probs is not None else 0.0
        self._probs = None
        if prob > 0:
            self.total, self.weight = prob + self.decay * self.total, 1 + self.decay * self.weight

    def fork(self) -> AdaptiveTarget:
        """Return one that goes on by itself."""
        twin = AdaptiveTarget(self.target, self.decay)
        twin.total, twin.weight, twin._probs = self.total, self.weight, self._probs
        return twin


@settings
class AdaptiveP:
    adaptive_target: float | None = option(
        None, "Prefer tokens of about this probability (adaptive-p).", share, example=0.1, samples=True, same_in=(LLAMA_CPP,)
    )
    adaptive_decay: float = option(
        0.9, "How much of its past adaptive-p keeps from token to token.", number("in [0, 0.99]", lambda d: 0 <= d <= 0.99), example=0.0,
        part_of="adaptive_target", same_in=(LLAMA_CPP,),
    )  # fmt: skip


def make_adaptive_p(sequences: Sequence[TokenSequence]) -> Apply:
    """`adaptive_p` by what each sequence's state says, which is offered the distribution before the curve."""
    def state(sequence: TokenSequence) -> AdaptiveTarget:
        params = sequence.request.params
        return state_of(sequence, "adaptive_p", lambda: AdaptiveTarget(params.adaptive_target, params.adaptive_decay))

    def apply(scores: Tensor) -> Tensor:
        states = [state(sequence) for sequence in sequences]
        probs = scores.softmax(dim=-1)
        for each, own in zip(states, probs):
            each.offer(own)
        targets = torch.tensor([[each.current] for each in states], dtype=scores.dtype, device=scores.device)
        return nearness(scores, probs, targets)

    return apply


ADAPTIVE_P = FilterSpec("adaptive_p", "warper", adaptive_p, AdaptiveP, make_adaptive_p)
