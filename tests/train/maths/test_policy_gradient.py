import math

import pytest
import torch

from seodang.data.errors import UserError
from seodang.train.maths.policy_gradient import policy_loss, value_loss

NAN = math.nan


def ratio_loss(ratios, advantages, clip_range=0.2, denominator=None):
    """The loss of tokens whose ratios are given, and its gradient for each token's log-probability."""
    logprobs = torch.tensor([ratios], dtype=torch.float64).log().requires_grad_(True)
    advantages = torch.tensor([advantages], dtype=torch.float64)
    mask = torch.ones_like(advantages, dtype=torch.bool)
    result = policy_loss(logprobs, torch.zeros_like(advantages), advantages, mask, clip_range, denominator or len(ratios))
    result.loss.backward()
    return result, logprobs.grad[0].tolist()


def test_the_clipped_loss_by_hand():
    # to 1.5 against a good advantage counts 1.2, to 0.5 against a bad one 0.8; the others in full
    result, _ = ratio_loss([1.5, 0.5, 1.5, 0.5, 1.1], [1.0, -1.0, -2.0, 2.0, 1.0])
    assert result.loss.item() == pytest.approx(-(1.2 - 0.8 - 3.0 + 1.0 + 1.1) / 5)
    assert result.clip_fraction.item() == pytest.approx(2 / 5)


def test_a_clipped_token_stops_only_where_it_would_go_on():
    _, gradient = ratio_loss([1.5, 0.5, 1.5, 0.5], [1.0, -1.0, -1.0, 1.0], denominator=1)
    assert gradient[:2] == [0.0, 0.0]  # already moved the way its advantage points
    assert gradient[2:] == pytest.approx([1.5, -0.5])  # moved the wrong way: -A * ratio brings it back


def test_an_infinite_range_clips_nothing():
    result, gradient = ratio_loss([4.0, 0.25], [1.0, -1.0], clip_range=math.inf, denominator=1)
    assert result.loss.item() == pytest.approx(-4.0 + 0.25)
    assert result.clip_fraction.item() == 0
    assert gradient == pytest.approx([-4.0, 0.25])


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)  # [rows, tokens, vocab]
    tokens, advantages = torch.tensor([[0, 3, 1], [4, 4, 0]]), torch.tensor([[2.0, -1.0, 0.5], [1.5, 3.0, NAN]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    logprobs = logits.log_softmax(dim=-1).gather(2, tokens[..., None]).squeeze(2)
    policy_loss(logprobs, logprobs.detach(), advantages, mask, 0.2, denominator=5).loss.backward()
    # by hand: of -A log p(token) the gradient is -A (onehot - p)
    probs = logits.detach().softmax(dim=-1)
    for row, t in mask.nonzero().tolist():
        onehot = torch.zeros(5, dtype=torch.float64)
        onehot[tokens[row, t]] = 1
        expected = -advantages[row, t] * (onehot - probs[row, t]) / 5
        assert torch.allclose(logits.grad[row, t], expected, atol=1e-12)
    assert not logits.grad[1, 2].any()


def test_the_policy_gradient_is_that_of_the_expected_advantage():
    """Over every token of a small vocabulary, weighted as the policy samples them: brute force, no estimate."""
    logits = torch.tensor([0.3, -0.5, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    worth = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    [expected] = torch.autograd.grad(-(logits.softmax(0) * worth).sum(), logits)
    logprobs = logits.log_softmax(0)
    everything = torch.ones(4, 1, dtype=torch.bool)
    weighted = (logits.detach().softmax(0) * worth)[:, None]
    [found] = torch.autograd.grad(policy_loss(logprobs[:, None], logprobs.detach()[:, None], weighted, everything, 0.2, 1).loss, logits)
    assert torch.allclose(found, expected)


def test_approx_kl_is_k3_of_the_sampler_from_the_policy():
    result, _ = ratio_loss([2.0, 4.0], [1.0, 1.0], denominator=2)
    assert result.approx_kl.item() == pytest.approx(((1 - math.log(2)) + (3 - math.log(4))) / 2)  # ratio - 1 - log ratio


def test_parts_of_a_minibatch_add_up():
    generator = torch.Generator().manual_seed(1)
    logprobs, old, advantages, values, returns = torch.randn(5, 4, 6, generator=generator)
    mask = torch.arange(6) < torch.tensor([[6], [2], [5], [1]])
    tokens = int(mask.sum())
    whole = policy_loss(logprobs, old, advantages, mask, 0.2, tokens), value_loss(values, old, returns, mask, 0.2, tokens)
    parts = [
        (
            policy_loss(logprobs[some], old[some], advantages[some], mask[some], 0.2, tokens),
            value_loss(values[some], old[some], returns[some], mask[some], 0.2, tokens),
        )
        for some in (slice(0, 1), slice(1, 4))
    ]
    for at in range(2):
        for name in whole[at]._fields:
            assert torch.allclose(sum(getattr(part[at], name) for part in parts), getattr(whole[at], name)), name


def test_the_value_loss_by_hand():
    values = torch.tensor([[1.1, 2.0, 2.0, NAN]], requires_grad=True)
    old, returns = torch.tensor([[1.0, 1.0, 1.0, NAN]]), torch.tensor([[2.0, 3.0, 0.0, NAN]])
    mask = torch.tensor([[True, True, True, False]])
    result = value_loss(values, old, returns, mask, 0.5, denominator=3)
    # 1.1 is in reach; 2 is held at 1.5, farther from 3 than 2 is and so counted; from 0 the 2 itself is farther
    assert result.loss.item() == pytest.approx((0.9**2 + 1.5**2 + 2.0**2) / 2 / 3)
    assert result.clip_fraction.item() == pytest.approx(1 / 3)
    result.loss.backward()
    assert values.grad[0].tolist() == pytest.approx([-0.9 / 3, 0.0, 2.0 / 3, 0.0])  # a held value learns nothing more this way


def test_without_clipping_the_value_loss_is_half_the_squared_error():
    values, returns, mask = torch.tensor([[1.0, 5.0]], requires_grad=True), torch.tensor([[3.0, 4.0]]), torch.ones(1, 2, dtype=torch.bool)
    result = value_loss(values, torch.zeros(1, 2), returns, mask, math.inf, denominator=2)
    result.loss.backward()
    assert result.loss.item() == (4 + 1) / 2 / 2
    assert values.grad.tolist() == [[-1.0, 0.5]]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, -1e9])
def test_what_padding_holds_is_never_read(broken):
    logprobs = torch.tensor([[-1.0, broken]], requires_grad=True)
    values = torch.tensor([[1.0, broken]], requires_grad=True)
    padded, mask = torch.tensor([[-1.0, broken]]), torch.tensor([[True, False]])
    (policy_loss(logprobs, padded, padded, mask, 0.2, 1).loss + value_loss(values, padded, padded, mask, 0.2, 1).loss).backward()
    assert logprobs.grad.tolist() == [[1.0, 0.0]]
    assert values.grad[0, 1] == 0 and values.grad.isfinite().all()


@pytest.mark.parametrize("loss", [policy_loss, value_loss])
def test_settings_out_of_range_are_refused(loss):
    ones, mask = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(UserError, match="clip range must be above 0, got 0.0"):
        loss(ones, ones, ones, mask, 0.0, 1)
    with pytest.raises(ValueError, match="denominator must be above 0, got 0"):
        loss(ones, ones, ones, mask, 0.2, 0)
