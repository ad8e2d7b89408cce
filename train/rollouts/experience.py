"""Rollouts to what a PPO update learns from: scores, the policy's and the reference's log-probabilities, values, advantages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...infer.kernels.device import in_float64
from ..maths.advantages import gae, missing_eos_penalty, moments, token_rewards, whiten
from ..maths.kl import kl_estimate
from .rollout import Rollout


@dataclass
class Experience:
    """The rollouts of an iteration, token by token; each list holds one [tokens] tensor a rollout, on the CPU."""

    rollouts: list[Rollout]
    scores: Tensor  # [rollouts], the reward function's, before any penalty
    logprobs: list[Tensor]  # of the policy that sampled, recomputed by the training pass
    ref_logprobs: list[Tensor]
    entropies: list[Tensor]
    values: list[Tensor]
    advantages: list[Tensor] = field(default_factory=list)
    returns: list[Tensor] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        """The tokens of each answer."""
        return [len(rollout.answer_ids) for rollout in self.rollouts]


def pad(parts: Sequence[Tensor]) -> Tensor:
    """[tokens] tensors to [rows, longest], 0 behind each."""
    return pad_sequence(list(parts), batch_first=True)


def unpad(values: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """[rows, longest] back to one [tokens] tensor a row."""
    return [row[:length] for row, length in zip(values, lengths, strict=True)]


def answer_mask(lengths: Sequence[int]) -> Tensor:
    """True on each answer's tokens: [rows, longest]."""
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def add_advantages(experience: Experience, settings, coefficient: float, total: Any = lambda moments: moments) -> Tensor:
    """Fill in advantages and returns from the scores and the KL to the reference; return the KL in the reward, [rows, longest].

    `settings` are those of PPO, `coefficient` that of the KL; `total` adds moments up over all processes.
    """
    lengths = experience.lengths
    mask = answer_mask(lengths)
    kl = kl_estimate(pad(experience.logprobs), pad(experience.ref_logprobs), settings.kl_estimator).masked_fill(~mask, 0)
    ended = torch.tensor([rollout.ended for rollout in experience.rollouts])
    scores = missing_eos_penalty(experience.scores, ended, settings.missing_eos_penalty)
    rewards = token_rewards(scores, kl, coefficient, mask)
    if settings.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False, known=total(moments(rewards, mask)))
    advantages, returns = gae(rewards, pad(experience.values), mask, settings.gamma, settings.lam)
    if settings.whiten_advantages:
        advantages = whiten(advantages, mask, known=total(moments(advantages, mask)))
    experience.advantages, experience.returns = unpad(advantages, lengths), unpad(returns, lengths)
    return kl


def experience_sums(experience: Experience, kl: Tensor) -> dict[str, float]:
    """Sums over this process's rollouts, for means over all processes: answers, tokens and what is told of them. kl is [rows, longest]."""
    lengths = experience.lengths
    mask = answer_mask(lengths)
    own, sampled = pad(experience.logprobs), pad([torch.tensor(r.logprobs, dtype=torch.float32) for r in experience.rollouts])
    gap = (own - sampled).abs().masked_fill(~mask, 0)
    exact = kl_estimate(own, pad(experience.ref_logprobs), "k3").masked_fill(~mask, 0)
    return {
        "answers": len(lengths),
        "tokens": sum(lengths),
        "score": in_float64(experience.scores).sum().item(),
        "score_squared": in_float64(experience.scores).square().sum().item(),
        "kl": in_float64(kl).sum().item(),
        "kl_k3": in_float64(exact).sum().item(),
        "entropy": in_float64(pad(experience.entropies)).sum().item(),
        "ended": sum(rollout.ended for rollout in experience.rollouts),
        "gap": in_float64(gap).sum().item(),
    }


def experience_metrics(sums: dict[str, float], largest_gap: float) -> dict[str, float]:
    """The means that a log shows, from sums over all processes."""
    answers, tokens = sums["answers"], sums["tokens"]
    mean = sums["score"] / answers
    return {
        "reward/mean": mean,
        "reward/std": math.sqrt(max(sums["score_squared"] / answers - mean**2, 0.0)),
        "kl": sums["kl"] / answers,  # nats an answer, by the estimator that the reward uses
        "kl_k3": sums["kl_k3"] / answers,
        "entropy": sums["entropy"] / tokens,  # nats a token
        "length/mean": tokens / answers,
        "ended": sums["ended"] / answers,
        "sampler_gap": sums["gap"] / tokens,  # of the sampler's log-probability of a token from the training pass's
        "sampler_gap_max": largest_gap,
    }
