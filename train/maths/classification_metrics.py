"""How well a classifier does: counts by class, scores made of them, and how far a number is from the true one.

Where a score divides by zero (a class that was never predicted has no precision) it is 0, as in scikit-learn.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...data.classification.labels import MULTI, REGRESSION
from ...infer.kernels.device import in_float64
from .calibration import Reliability, expected_calibration_error, reliability


class ClassScores(NamedTuple):
    """Of each class, [classes] in float64: of those predicted the share that is right, of those there the share found, and their harmonic mean."""

    precision: Tensor
    recall: Tensor
    f1: Tensor


class ClassifierMetrics(NamedTuple):
    """What was measured: named values, and where there are classes their decisions, [labels, 3], and how reliable their probabilities are.

    The confusion matrix, [classes, classes], is that of one class of several.
    """

    values: dict[str, float]
    found: Tensor | None = None
    reliability: Reliability | None = None
    matrix: Tensor | None = None


def measure(logits: Tensor, labels: Tensor, problem: str, threshold: float = 0.5) -> ClassifierMetrics:
    """How far logits, [records, labels], are those that the labels ask for, which are as in training.

    One class of several: accuracy, macro_f1, and ece of how sure the model is of the class it takes. Several labels: micro_f1 and macro_f1 of those
    at least as likely as `threshold`, exact_match, the share of records with all of them right, and ece of the labels' own probabilities. A number:
    mse, pearson, spearman.
    """
    if problem == REGRESSION:
        return ClassifierMetrics(regression_metrics(labels, logits.squeeze(-1)))
    if problem == MULTI:
        probs, truth = in_float64(logits).sigmoid(), labels.bool()
        found, reliable = decisions(truth, probs >= threshold), reliability(probs.flatten(), truth.flatten())
        exact = in_float64((truth == (probs >= threshold)).all(-1)).mean().item()
        values = {"micro_f1": micro_f1(found), "macro_f1": macro_f1(found), "exact_match": exact}
        return ClassifierMetrics({**values, "ece": expected_calibration_error(reliable)}, found, reliable)
    sure, predicted = in_float64(logits).softmax(-1).max(-1)
    matrix, reliable = confusion_matrix(labels, predicted, logits.shape[-1]), reliability(sure, predicted == labels)
    found = decisions_of(matrix)
    values = {"accuracy": accuracy(matrix), "macro_f1": macro_f1(found), "ece": expected_calibration_error(reliable)}
    return ClassifierMetrics(values, found, reliable, matrix)


def confusion_matrix(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """How often each class was taken for each, [classes, classes] int64: a row a true class, a column a predicted one; both are [records]."""
    return torch.bincount(truth * classes + predicted, minlength=classes * classes).view(classes, classes)


def decisions(truth: Tensor, predicted: Tensor) -> Tensor:
    """Of each label how often it was predicted rightly, predicted wrongly and missed: [labels, 3] int64; both are [records, labels] boolean."""
    return torch.stack([(truth & predicted).sum(0), (~truth & predicted).sum(0), (truth & ~predicted).sum(0)], dim=1)


def decisions_of(matrix: Tensor) -> Tensor:
    """The same of each class of a confusion matrix, [classes, 3]."""
    right = matrix.diagonal()
    return torch.stack([right, matrix.sum(0) - right, matrix.sum(1) - right], dim=1)


def class_scores(found: Tensor) -> ClassScores:
    """Precision, recall and F1 of decisions, [..., 3]."""
    right, wrong, missed = in_float64(found).unbind(-1)
    return ClassScores(_share(right, right + wrong), _share(right, right + missed), _share(2 * right, 2 * right + wrong + missed))


def accuracy(matrix: Tensor) -> float:
    """The share of records whose class is predicted rightly."""
    return (matrix.diagonal().sum() / matrix.sum()).item()


def macro_f1(found: Tensor) -> float:
    """The mean F1 of the classes that occur, as true ones or as predictions; `found` are decisions, [classes, 3]."""
    occurs = found.sum(-1) > 0
    return class_scores(found).f1[occurs].mean().item() if occurs.any() else 0.0


def micro_f1(found: Tensor) -> float:
    """The F1 of all decisions together; of a single label it would be the accuracy."""
    return class_scores(found.sum(0)).f1.item()


def regression_metrics(truth: Tensor, predicted: Tensor) -> dict[str, float]:
    """The mean squared error, and the correlations by Pearson and by Spearman, which is Pearson's of the ranks; both are [records].

    A correlation with what does not vary is no number (NaN).
    """
    truth, predicted = in_float64(truth), in_float64(predicted)
    return {
        "mse": (truth - predicted).square().mean().item(),
        "pearson": pearson(truth, predicted),
        "spearman": pearson(ranks(truth), ranks(predicted)),
    }


def pearson(x: Tensor, y: Tensor) -> float:
    """The correlation of two rows of numbers, [records]."""
    x, y = x - x.mean(), y - y.mean()
    return (x @ y / (x.norm() * y.norm())).item()


def ranks(values: Tensor) -> Tensor:
    """The place of each value among all from 1 on, [records] in float64; equal ones share the mean of their places."""
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    last = in_float64(counts.cumsum(0))
    return (last - (counts - 1) / 2)[places]


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.clamp(min=1), 0.0)
