"""The clipped losses of PPO over the tokens of padded answers.

Tensors are [rows, tokens] with a boolean mask [rows, tokens]. Every number returned is a sum over tokens divided by `denominator`, the
answer tokens of the whole minibatch over all its parts and processes: the parts' numbers then add up to the minibatch's.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...data.errors import UserError
from .kl import kl_estimate


class PolicyLoss(NamedTuple):
    """The clipped loss of the policy, and what it says of the update: scalars."""

    loss: Tensor
    clip_fraction: Tensor  # tokens that teach nothing because the ratio has left the range
    approx_kl: Tensor  # of the policy that sampled from the one now, k3


class ValueLoss(NamedTuple):
    """The clipped loss of the critic, and the share of tokens that clipping touched: scalars."""

    loss: Tensor
    clip_fraction: Tensor  # tokens whose clipped value is the worse one


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float, denominator: float) -> PolicyLoss:
    """-min(ratio * A, clip(ratio, 1 - clip_range, 1 + clip_range) * A), summed and divided; ratio is the policy over the one that sampled.

    logprobs, with gradient, old_logprobs, advantages and mask are [rows, tokens]; the results are scalars, the last two without gradient.
    Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 7. Raises UserError for a clip_range that is not above 0 (infinite
    turns clipping off), ValueError for a denominator that is not.
    """
    _check(clip_range, denominator)
    logprobs, old_logprobs, advantages = _without_padding(mask, logprobs, old_logprobs, advantages)
    ratio = (logprobs - old_logprobs).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(plain, clipped).sum() / denominator
    with torch.no_grad():
        fraction = (clipped > plain).sum() / denominator
        approx_kl = kl_estimate(old_logprobs, logprobs, "k3").sum() / denominator
    return PolicyLoss(loss, fraction, approx_kl)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float, denominator: float) -> ValueLoss:
    """Half the squared error to the returns, or that of the value held within clip_range of the old one where it is greater.

    values, with gradient, old_values, returns and mask are [rows, tokens]; the results are scalars. As in the PPO of OpenAI Baselines
    (Dhariwal et al. 2017), factor 1/2 included. Raises UserError for a clip_range that is not above 0 (infinite turns clipping off), ValueError
    for a denominator that is not.
    """
    _check(clip_range, denominator)
    values, old_values, returns = _without_padding(mask, values, old_values, returns)
    held = values.clamp(old_values - clip_range, old_values + clip_range)
    plain, clipped = (values - returns).square(), (held - returns).square()
    loss = torch.maximum(plain, clipped).sum() / (2 * denominator)
    return ValueLoss(loss, (clipped > plain).sum() / denominator)


def _check(clip_range: float, denominator: float) -> None:
    if not clip_range > 0:
        raise UserError(f"the clip range must be above 0, got {clip_range}: 0.2 is usual")
    if not denominator > 0:
        raise ValueError(f"the denominator must be above 0, got {denominator}: it is the number of answer tokens of the minibatch")


def _without_padding(mask: Tensor, *tensors: Tensor) -> list[Tensor]:
    """The tensors with 0 in padding, where an infinity or NaN would otherwise come through with gradient 0 * inf."""
    return [tensor.masked_fill(~mask, 0) for tensor in tensors]
