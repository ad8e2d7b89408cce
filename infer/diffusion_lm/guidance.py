"""Control by gradients: after each step the latents are moved to where a condition is likelier and the model still finds them likely (Li et al. 2022, 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.errors import UserError
from .gaussian import Normal
from .model import DiffusionLM, LatentClassifier

Control = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents [rows, length, embedding], steps [rows], mask [rows, length] -> log-probabilities [rows]


@dataclass(frozen=True)
class Guidance:
    """How latents are moved: `updates` steps of Adagrad at `rate` behind each step of diffusion, and how much `fluency` counts beside the condition."""

    updates: int = 3
    rate: float = 0.1
    fluency: float = 0.01

    def __post_init__(self):
        for name, value, fits, wanted in (
            ("updates", self.updates, self.updates >= 1, "at least 1"),
            ("rate", self.rate, self.rate > 0, "above 0"),
            ("fluency", self.fluency, self.fluency >= 0, "0 or above"),
        ):
            if not fits:
                raise UserError(f"{name} must be {wanted}, got {value}")


def guided(latents: Tensor, expected: Normal, log_prob: Callable[[Tensor], Tensor], free: Tensor, guidance: Guidance) -> Tensor:
    """Return latents with more of log p(c | x) + fluency * log N(x; what the step expects), by Adagrad from x on.

    `log_prob` gives one number a row. Only positions that are `free`, [rows, length], move. A coordinate's steps depend on its own gradients alone, so a row is
    moved as it would be by itself.
    """
    moved, squares = latents.detach(), torch.zeros_like(latents)
    for _ in range(guidance.updates):
        with torch.enable_grad():
            moved = moved.detach().requires_grad_()
            unlikely = (moved - expected.mean).square() / (2 * expected.variance)
            (gradient,) = torch.autograd.grad(log_prob(moved).sum() - guidance.fluency * unlikely.sum(), moved)
        gradient = gradient * free[..., None]
        squares = squares + gradient.square()
        moved = moved.detach() + guidance.rate * gradient / (squares.sqrt() + 1e-10)
    return moved


def label_control(classifier: LatentClassifier, label: str, model: DiffusionLM) -> Control:
    """log p(label | latents). Raises UserError for a label that the classifier does not know, and for a classifier of another model's latents."""
    labels = classifier.config.label2id
    if label not in labels:
        raise UserError(f"the classifier knows no label {label!r}: choose {', '.join(labels)}")
    theirs, ours = classifier.word_embeddings.weight, model.word_embeddings.weight
    if theirs.shape != ours.shape or not torch.equal(theirs, ours):
        raise UserError("the classifier was trained on the latents of another model: train one on this, `seodang diffusion-lm-control`")

    def log_prob(latents: Tensor, steps: Tensor, mask: Tensor) -> Tensor:
        return classifier(latents, steps, mask).logits.log_softmax(dim=-1)[:, labels[label]]

    return log_prob


def word_control(model: DiffusionLM, words: Sequence[tuple[int, int]]) -> Control:
    """The sum of log p(word at its position | latents), of (position, id) pairs, by what the model itself would make of the latents."""

    def log_prob(latents: Tensor, steps: Tensor, mask: Tensor) -> Tensor:
        logprobs = model.rounding(model(latents, steps, mask).clean).log_softmax(dim=-1)
        return torch.stack([logprobs[:, position, id] for position, id in words]).sum(dim=0)

    return log_prob


def all_of(controls: Sequence[Control]) -> Control | None:
    """Several conditions together; None of none."""
    return (lambda *at: torch.stack([each(*at) for each in controls]).sum(dim=0)) if controls else None
