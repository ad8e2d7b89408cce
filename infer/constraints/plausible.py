"""The adaptive plausibility constraint: a contrast is drawn among the tokens that the model itself finds likely."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..requests.sequence import TokenSequence

FLOOR = -1e4  # added to what is implausible: of probability 0, yet still in the model's order


def head(logprobs: Tensor, alpha: float) -> Tensor:
    """Mark the tokens at least `alpha` times as likely as the likeliest, [.., vocab] (Li et al. 2023, equation 3)."""
    return logprobs >= logprobs.amax(dim=-1, keepdim=True) + math.log(alpha)


def among_plausible(contrast: Tensor, logprobs: Tensor, alpha: float) -> Tensor:
    """Return the contrast of the model's plausible tokens, and of the others its log-probability far below; [.., vocab] all.

    A sequence with such scores needs `Plausible` among its constraints, which drops the others.
    """
    return torch.where(head(logprobs, alpha), contrast, logprobs + FLOOR)


class Plausible:
    """The constraint that drops implausible tokens, once bans have been heard.

    Where bans leave none that is plausible, the model's own distribution decides among what they do leave, plausible ones alone again.
    """

    name, must_end = "plausible", False

    def __init__(self, alpha: float):
        self.alpha = alpha

    def mask(self, sequence: TokenSequence, scores: Tensor) -> Tensor:
        """[1, vocab] to [1, vocab]."""
        kept = scores > FLOOR / 10  # whatever penalties made of the others
        return scores.masked_fill(~torch.where(kept.any(dim=-1, keepdim=True), kept, head(scores, self.alpha)), -torch.inf)

    def accept(self, id: int) -> None:
        """Hear of the sequence's next token, which changes nothing."""

    def fork(self) -> Plausible:
        """Return itself: it remembers nothing."""
        return self
