"""Logistic and ridge regression on fixed features, to be held beside a network that learns its own."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...infer.kernels.device import in_float64

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of the penalty, from which the best on a part of the data is taken
STEPS = 200  # of L-BFGS at most


def fit_linear(features: Tensor, labels: Tensor, classes: int | None, strength: float) -> Tensor:
    """Weights that minimise the summed loss of the records and strength / 2 times their squared norm, the biases free: [inputs + 1, outputs].

    features is [records, inputs]. With `classes`, labels are places of classes and the loss is the cross entropy, as in scikit-learn's
    LogisticRegression with C = 1 / strength; without, they are numbers and the loss is half the squared error, which is solved exactly.
    """
    inputs = in_float64(torch.cat([features, torch.ones(len(features), 1)], dim=1))
    if classes is None:
        penalty = strength * torch.eye(inputs.shape[1], dtype=torch.float64)
        penalty[-1, -1] = 0
        return torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ in_float64(labels)[:, None])
    weights = torch.zeros(inputs.shape[1], classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(inputs @ weights, labels, reduction="sum") + strength / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weights.detach()


def apply_linear(weights: Tensor, features: Tensor) -> Tensor:
    """What fitted weights, [inputs + 1, outputs], make of features, [records, inputs]: [records, outputs]."""
    return in_float64(features) @ weights[:-1] + weights[-1]


def best_linear(features: Tensor, labels: Tensor, classes: int | None, strengths: Sequence[float] = STRENGTHS) -> tuple[Tensor, float]:
    """Weights fitted to all records with the strength that does best on the last fifth when fitted to the others, and that strength."""
    border = len(features) * 4 // 5

    def missed(strength: float) -> float:
        out = apply_linear(fit_linear(features[:border], labels[:border], classes, strength), features[border:])
        if classes is None:
            return (out[:, 0] - labels[border:]).square().mean().item()
        return F.cross_entropy(out, labels[border:]).item()

    strength = min(strengths, key=missed)
    return fit_linear(features, labels, classes, strength), strength
