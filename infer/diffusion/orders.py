"""Which of a canvas' open positions become certain next: how sure each is, and who comes first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..filters.logits import wide

ORIGIN = "origin"  # each position at a step of its own, drawn beforehand: D3PM


def of_the_token(probs: Tensor, ids: Tensor) -> Tensor:
    """The probability of each token that was chosen, [n]; where tokens are drawn it prefers positions that drew what is likely (MaskGIT)."""
    return probs.gather(-1, ids[:, None]).squeeze(-1)


def margin(probs: Tensor, ids: Tensor) -> Tensor:
    """By how much the likeliest token is likelier than the next, [n]."""
    first = probs.topk(min(2, probs.shape[-1]), dim=-1).values
    return first[:, 0] - first[:, 1:].sum(dim=-1)


def negative_entropy(probs: Tensor, ids: Tensor) -> Tensor:
    """The entropy in nats with a minus before it, [n]."""
    return torch.special.xlogy(probs, probs).sum(dim=-1)


# of distributions, [n, vocab], and the tokens that were chosen from them, [n]: how sure each position is
CONFIDENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"maskgit_plus": of_the_token, "topk_margin": margin, "entropy": negative_entropy}
ORDERS = (ORIGIN, *CONFIDENCES)


def confidence(order: str, scores: Tensor, ids: Tensor) -> Tensor:
    """How sure the open positions are by an order, [n]; scores are [n, vocab] after all filters, ids the chosen tokens, [n]."""
    return CONFIDENCES[order](wide(scores).softmax(dim=-1), ids)


def surest(confidence: Tensor, count: int, alg_temp: float = 0.0, noise: Sequence[float] = ()) -> list[int]:
    """The places of the `count` surest of some positions, [n], surest first, of equals the first.

    With `alg_temp` they are drawn without replacement, by weights exp(confidence / alg_temp): the greatest sums of logarithm and Gumbel noise,
    which is made of `noise`, a number in [0, 1) a position.
    """
    if alg_temp:
        confidence = confidence.double() / alg_temp + torch.tensor([gumbel(each) for each in noise], device=confidence.device)
    return confidence.sort(descending=True, stable=True).indices[:count].tolist()


def gumbel(noise: float) -> float:
    """A Gumbel number from a uniform one in [0, 1)."""
    return -math.log(-math.log1p(-noise) or math.ulp(0.0))
