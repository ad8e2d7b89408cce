"""Which of a canvas' open positions become certain next: how sure each is, and who comes first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..filters.logits import wide

ORIGIN = "origin"  # each position at a step of its own, drawn beforehand: D3PM
RANDOM = "random"  # each open position as soon as any other: LLaDA
DEFAULT_ORDER = ENTROPY = "entropy"


def of_the_token(probs: Tensor, ids: Tensor) -> Tensor:
    """The probability of each token that was chosen, [n] (MaskGIT).

    Where tokens are drawn, the answers are not those of the model's own joint distribution, with one token a step neither: who draws what is likely
    becomes certain, and who draws what is not draws again.
    """
    return probs.gather(-1, ids[:, None]).squeeze(-1)


def margin(probs: Tensor, ids: Tensor) -> Tensor:
    """By how much the likeliest token is likelier than the next, [n]."""
    first = probs.topk(min(2, probs.shape[-1]), dim=-1).values
    return first[:, 0] - first[:, 1:].sum(dim=-1)


def negative_entropy(probs: Tensor, ids: Tensor) -> Tensor:
    """The entropy in nats with a minus before it, [n]."""
    return torch.special.xlogy(probs, probs).sum(dim=-1)


# of distributions, [n, vocab], and the tokens that were chosen from them, [n]: how sure each position is. low_confidence goes by the model's own
# distributions, before temperature and filters, as LLaDA, the others by those that tokens are chosen from, as Dream
CONFIDENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "maskgit_plus": of_the_token, "topk_margin": margin, ENTROPY: negative_entropy, "low_confidence": of_the_token,
}  # fmt: skip
OF_THE_MODEL = frozenset({"low_confidence"})
BY_CHANCE = (ORIGIN, RANDOM)  # these do not ask how sure a position is
ORDERS = (ORIGIN, *CONFIDENCES, RANDOM)
OF_DREAM = (ORIGIN, "maskgit_plus", "topk_margin", ENTROPY)


def confidence(order: str, logits: Tensor, scores: Tensor, ids: Tensor) -> Tensor:
    """How sure the open positions are by an order, [n]; of the model are logits, [n, vocab], after all filters scores; ids are the chosen tokens, [n]."""
    return CONFIDENCES[order](wide(logits if order in OF_THE_MODEL else scores).softmax(dim=-1), ids).double()


def confidences(orders: Sequence[str | None], logits: Tensor, scores: Tensor, ids: Tensor) -> list[float]:
    """How sure each position is by an order of its own, [n]; 0 where none asks."""
    sure = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
    for order in {*orders} & {*CONFIDENCES}:
        own = [place for place, each in enumerate(orders) if each == order]
        sure[own] = confidence(order, logits[own], scores[own], ids[own])
    return sure.tolist()


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
