import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seodang.data.errors import UserError
from seodang.train.maths.advantages import Moments, gae, masked_mean, missing_eos_penalty, moments, token_rewards, whiten

NAN = math.nan
# answers of three tokens and of one, padding broken on purpose
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_masked_mean_leaves_padding_out():
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, NAN, NAN]], requires_grad=True)
    mean = masked_mean(values, MASK)
    assert mean.item() == 4.0
    mean.backward()
    assert values.grad.tolist() == [[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]]


def test_an_answer_that_did_not_end_pays():
    assert missing_eos_penalty(torch.tensor([2.0, 2.0]), torch.tensor([True, False]), 0.5).tolist() == [2.0, 1.5]


def test_the_score_is_paid_at_the_last_token_and_the_kl_at_every_one():
    kl = torch.tensor([[1.0, 2.0, -1.0], [4.0, NAN, NAN]])
    rewards = token_rewards(torch.tensor([5.0, 7.0]), kl, 0.5, MASK)
    assert rewards.tolist() == [[-0.5, -1.0, 5.5], [5.0, 0.0, 0.0]]


def test_advantages_by_hand():
    rewards, values = torch.tensor([[0.0, 0.0, 8.0], [3.0, NAN, NAN]]), torch.tensor([[1.0, 2.0, 4.0], [1.0, NAN, NAN]])
    advantages, returns = gae(rewards, values, MASK, gamma=0.5, lam=0.5)
    # deltas: 0 + 0.5 * 2 - 1, 0 + 0.5 * 4 - 2, 8 - 4, so 0, 0, 4; each token back they count a quarter
    assert advantages.tolist() == [[0.25, 1.0, 4.0], [2.0, 0.0, 0.0]]
    assert returns.tolist() == [[1.25, 3.0, 8.0], [3.0, 0.0, 0.0]]


def by_definition(rewards, values, gamma, lam):
    """The sum over k of (gamma * lam)^k * delta_{t+k} for one answer, in plain numbers."""
    n = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]


number, share = st.floats(-3, 3), st.floats(0, 1)
answers = st.lists(st.lists(st.tuples(number, number), min_size=1, max_size=7), min_size=1, max_size=4)  # (reward, value) of each token


@settings(max_examples=60, deadline=None)
@given(answers, share, share)
def test_advantages_equal_their_definition_for_ragged_answers(answers, gamma, lam):
    longest = max(map(len, answers)) + 1
    padded = torch.tensor([[*answer, *[(NAN, NAN)] * (longest - len(answer))] for answer in answers], dtype=torch.float64)
    mask = ~padded[..., 0].isnan()
    advantages, returns = gae(padded[..., 0], padded[..., 1], mask, gamma, lam)
    for row, answer in enumerate(answers):
        rewards, values = zip(*answer, strict=True)
        expected = by_definition(rewards, values, gamma, lam)
        assert advantages[row, : len(answer)].tolist() == pytest.approx(expected, abs=1e-12)
        assert returns[row, : len(answer)].tolist() == pytest.approx([a + v for a, v in zip(expected, values, strict=True)], abs=1e-12)
        assert not advantages[row, len(answer) :].any() and not returns[row, len(answer) :].any()


def test_with_gamma_and_lambda_one_the_advantage_is_what_is_still_paid_less_the_value():
    rewards, values = torch.tensor([[1.0, -2.0, 5.0]]), torch.tensor([[3.0, 0.5, -1.0]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lam=1.0)
    assert returns.tolist() == [[4.0, 3.0, 5.0]]
    assert advantages.tolist() == [[1.0, 2.5, 6.0]]


def test_with_lambda_zero_the_advantage_is_one_step_deep():
    advantages, _ = gae(torch.tensor([[1.0, -2.0, 5.0]]), torch.tensor([[3.0, 0.5, -1.0]]), torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lam=0.0)
    assert advantages.tolist() == [[-1.5, -3.5, 6.0]]


def test_no_gradient_flows_into_the_values():
    values = torch.ones(1, 3, requires_grad=True)
    advantages, returns = gae(torch.ones(1, 3), values, torch.ones(1, 3, dtype=torch.bool))
    assert not advantages.requires_grad and not returns.requires_grad


def test_whitened_values_by_hand():
    values = torch.tensor([[1.0, 1.0, 3.0], [3.0, NAN, NAN]])  # mean 2, biased variance 1
    assert whiten(values, MASK).flatten().tolist() == pytest.approx([-1, -1, 1, 1, 0, 0])
    assert whiten(3 * values, MASK, shift_mean=False).flatten().tolist() == pytest.approx([5, 5, 7, 7, 0, 0])  # about their mean of 6


def test_equal_values_become_zero():
    assert not whiten(torch.full((2, 3), 7.0), MASK).any()


def test_whitening_keeps_its_digits_far_from_zero():
    values = torch.tensor([[4096.0, 4096.0, 4096.5], [4096.5, 0.0, 0.0]])  # their squares differ in the eighth digit
    assert whiten(values, MASK)[0].tolist() == pytest.approx([-1.0, -1.0, 1.0], rel=1e-5)


def test_processes_that_add_up_their_moments_whiten_as_one():
    generator = torch.Generator().manual_seed(0)
    values, mask = torch.randn(4, 6, generator=generator), torch.arange(6) < torch.tensor([[6], [2], [5], [1]])
    parts = [(values[:1], mask[:1]), (values[1:], mask[1:])]
    together = Moments(*(sum(both) for both in zip(*(moments(*part) for part in parts), strict=True)))
    assert together.count == 14
    apart = torch.cat([whiten(*part, known=together) for part in parts])
    assert torch.allclose(apart, whiten(values, mask))
    assert not torch.allclose(apart, torch.cat([whiten(*part) for part in parts]), atol=0.1)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: gae(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), gamma=1.1), r"gamma must be in \[0, 1\], got 1.1"),
        (lambda: gae(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), lam=-0.1), r"lam must be in \[0, 1\], got -0.1"),
        (lambda: token_rewards(torch.ones(2), torch.ones(2, 3), -1.0, MASK), "at least 0, got -1.0"),
        (lambda: missing_eos_penalty(torch.ones(2), torch.ones(2, dtype=torch.bool), -1.0), "at least 0, got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(call, says):
    with pytest.raises(UserError, match=says):
        call()


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.tensor([[False, True, True]]), "from column 0"),
        (torch.tensor([[True, False, True]]), "from column 0"),
        (torch.tensor([[1, 1, 0]]), "boolean"),
        (torch.tensor([[False, False, False]]), "row 0 has no answer token"),
    ],
)
def test_masks_that_are_not_answers_are_refused(mask, says):
    with pytest.raises(ValueError, match=says):
        token_rewards(torch.ones(1), torch.ones(1, 3), 0.1, mask)
