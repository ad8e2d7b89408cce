"""From scores of whole answers to advantages of their tokens: reward shaping, generalised advantage estimation, whitening.

Tensors are padded, [rows, tokens], with a boolean mask [rows, tokens] that is true on the answer's tokens, which begin at column 0. What
padding holds is never read, not even a NaN.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...data.errors import UserError
from ...infer.kernels.device import in_float64

LEAST_VARIANCE = 1e-8


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values where the mask is true, a scalar; NaN where it is true nowhere."""
    return values.masked_fill(~mask, 0).sum() / mask.sum()


def missing_eos_penalty(scores: Tensor, ended: Tensor, penalty: float) -> Tensor:
    """Take the penalty off the score of each answer that did not end by itself.

    scores is [rows], ended [rows] boolean. Raises UserError for a penalty that is negative or not a number.
    """
    if not 0 <= penalty < math.inf:
        raise UserError(f"missing_eos_penalty must be a number of at least 0, got {penalty}: it is subtracted from the score")
    return scores - penalty * (~ended).to(scores.dtype)


def token_rewards(scores: Tensor, kl: Tensor, coefficient: float, mask: Tensor) -> Tensor:
    """-coefficient * kl at every token of the answer, and the score added at its true last one; 0 in padding.

    scores is [rows], kl and mask [rows, tokens], so is the result. Ziegler et al. 2019, eq. 2; Ouyang et al. 2022, eq. 2.
    Raises UserError for a negative coefficient, ValueError for a mask that is not as above or an answer without tokens.
    """
    if not 0 <= coefficient < math.inf:
        raise UserError(f"the KL coefficient must be a number of at least 0, got {coefficient}")
    last = _lengths(mask) - 1
    if bool((last < 0).any()):
        raise ValueError(f"row {int(last.argmin())} has no answer token that could be given its score")
    rewards = -coefficient * kl.masked_fill(~mask, 0)
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Advantages and returns of every token by generalised advantage estimation; 0 in padding, no gradient through either.

    All are [rows, tokens]. With delta_t = r_t + gamma * V_{t+1} - V_t, the advantage of t is the sum over k of (gamma * lam)^k * delta_{t+k}
    (Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", eq. 16); the return is the advantage
    plus V_t. The value behind the last token is 0, also of an answer cut off by its length: the score is all that is ever paid for it.
    Raises UserError for gamma or lam outside [0, 1], ValueError for a mask that is not as above.
    """
    for name, value in (("gamma", gamma), ("lam", lam)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} must be in [0, 1], got {value}: PPO on answers usually has gamma 1 and lam 0.95")
    _lengths(mask)
    rewards, values = rewards.masked_fill(~mask, 0), values.masked_fill(~mask, 0)
    advantages = torch.zeros_like(values)
    following = next_value = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        # in padding reward, value and what follows are 0, so the row's own last token starts from 0
        following = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * following
        advantages[:, t] = following
        next_value = values[:, t]
    return advantages, advantages + values


class Moments(NamedTuple):
    """How many values there are, their sum and the sum of their squares; those of several processes add up."""

    count: Tensor
    total: Tensor
    squares: Tensor


def moments(values: Tensor, mask: Tensor) -> Moments:
    """The moments of values where the mask is true, three scalars in float64."""
    wide = in_float64(values.masked_fill(~mask, 0))  # a variance from sums of squares cancels to nothing in float32
    return Moments(in_float64(mask.sum()), wide.sum(), wide.square().sum())


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True, known: Moments | None = None) -> Tensor:
    """Give the values under the mask mean 0 and variance 1, or variance 1 about the mean they have without `shift_mean`; 0 in padding.

    values and mask are [rows, tokens], so is the result. The variance is the biased one, divided by the count, as in the code of Ziegler et al.
    2019; equal values become 0. `known` are the moments over all processes where there are several, so that all whiten alike.
    """
    count, total, squares = moments(values, mask) if known is None else known
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    whitened = (in_float64(values) - mean) * torch.rsqrt(variance + LEAST_VARIANCE)
    if not shift_mean:
        whitened = whitened + mean
    return whitened.to(values).masked_fill(~mask, 0)


def _lengths(mask: Tensor) -> Tensor:
    """Tokens of each answer, [rows]. Raises ValueError for a mask that is not boolean [rows, tokens] with each answer from column 0 on."""
    if mask.dim() != 2 or mask.dtype != torch.bool:
        raise ValueError(f"the mask must be boolean [rows, tokens], got {mask.dtype} {list(mask.shape)}")
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError("an answer's tokens must stand together from column 0 on")
    return mask.sum(dim=1)
