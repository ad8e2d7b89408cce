import pytest
import torch
import torch.nn.functional as F

from seodang.train.maths.logistic_regression import apply_linear, best_linear, fit_linear


def data(count=40):
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(count, 3, generator=draw)
    return features, (features[:, 0] + 0.5 * torch.randn(count, generator=draw) > 0).long()


def test_a_ridge_regression_by_hand():
    """Points (0, 1), (2, 3) and a penalty of 1: centred x is -1 and 1, so the slope is 2 / (2 + 1); the line goes through the means (1, 2)."""
    weights = fit_linear(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0, 3.0]), None, strength=1.0)
    assert weights[:, 0].tolist() == pytest.approx([2 / 3, 2 - 2 / 3])
    assert apply_linear(weights, torch.tensor([[1.0]])).item() == pytest.approx(2)


def test_a_logistic_regression_stands_where_its_loss_is_least():
    """The gradient of summed cross entropy and penalty is zero there, and the biases bear no penalty."""
    features, labels = data()
    weights = fit_linear(features, labels, 2, strength=0.5).requires_grad_(True)
    loss = F.cross_entropy(apply_linear(weights, features), labels, reduction="sum") + 0.25 * weights[:-1].square().sum()
    loss.backward()
    assert weights.grad.abs().max() < 1e-4
    assert (apply_linear(weights, features).argmax(-1) == labels).double().mean() > 0.8


def test_the_strength_that_does_best_on_the_last_fifth_is_taken():
    features, labels = data()
    first, second = fit_linear(features[:32], labels[:32], 2, 0.1), fit_linear(features[:32], labels[:32], 2, 1000.0)
    losses = [F.cross_entropy(apply_linear(weights, features[32:]), labels[32:]).item() for weights in (first, second)]
    weights, strength = best_linear(features, labels, 2, (0.1, 1000.0))
    assert strength == (0.1, 1000.0)[losses[1] < losses[0]]
    torch.testing.assert_close(weights, fit_linear(features, labels, 2, strength))
