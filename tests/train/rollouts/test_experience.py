"""From what was sampled to advantages, and the means that a log tells: by hand."""

from types import SimpleNamespace

import pytest
import torch

from seodang.train.rollouts.experience import Experience, add_advantages, experience_metrics, experience_sums
from seodang.train.rollouts.rollout import Rollout

SETTINGS = {"kl_estimator": "k1", "missing_eos_penalty": 0.5, "whiten_rewards": False, "whiten_advantages": False, "gamma": 0.5, "lam": 0.2}


def two_answers() -> Experience:
    """An answer of two tokens that ended by itself, and one of one token that was cut off."""
    rollouts = [Rollout({}, [7, 2], [-1.0, -2.5], "a", True), Rollout({}, [8], [-0.5], "b", False)]
    numbers = lambda *rows: [torch.tensor(row) for row in rows]
    return Experience(
        rollouts, torch.tensor([1.0, 2.0]), numbers([-1.0, -2.0], [-0.5]), numbers([-1.5, -1.0], [-0.75]), numbers([0.6, 0.9], [0.3]),
        numbers([0.25, 0.5], [1.0]),
    )  # fmt: skip


def test_advantages_and_returns_are_those_of_scores_kl_values_and_settings():
    experience = two_answers()
    kl = add_advantages(experience, SimpleNamespace(**SETTINGS), 0.1)
    assert kl.tolist() == [[0.5, -1.0], [0.25, 0.0]]
    # rewards are -0.1 kl and the score at the end: [-0.05, 1.1] and, with 0.5 off for no end, [1.475]
    last, only = 1.1 - 0.5, 1.475 - 1.0
    first = -0.05 + 0.5 * 0.5 - 0.25 + 0.5 * 0.2 * last  # delta + gamma lam of what follows
    assert [each.tolist() for each in experience.advantages] == [pytest.approx([first, last]), pytest.approx([only])]
    assert [each.tolist() for each in experience.returns] == [pytest.approx([first + 0.25, 1.1]), pytest.approx([1.475])]


def test_whitened_advantages_have_mean_0_and_variance_1_over_all_tokens_and_returns_stay():
    plain, white = two_answers(), two_answers()
    add_advantages(plain, SimpleNamespace(**SETTINGS), 0.1)
    add_advantages(white, SimpleNamespace(**{**SETTINGS, "whiten_advantages": True}), 0.1)
    every, found = torch.cat(plain.advantages), torch.cat(white.advantages)
    assert found.tolist() == pytest.approx(((every - every.mean()) / every.std(correction=0)).tolist(), abs=1e-5)
    assert torch.equal(torch.cat(white.returns), torch.cat(plain.returns))


def test_a_log_tells_means_over_answers_and_over_tokens():
    experience = two_answers()
    told = experience_metrics(experience_sums(experience, torch.tensor([[0.5, -1.0], [0.25, 0.0]])), largest_gap=0.5)
    k3 = sum(torch.tensor(r).expm1().item() - r for r in (-0.5, 1.0, -0.25))  # log of reference over policy
    assert told == pytest.approx({
        "reward/mean": 1.5, "reward/std": 0.5, "kl": -0.125, "kl_k3": k3 / 2, "entropy": 0.6, "length/mean": 1.5, "ended": 0.5,
        "sampler_gap": 0.5 / 3, "sampler_gap_max": 0.5,
    })  # fmt: skip
