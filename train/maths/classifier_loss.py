"""What a classifier learns by, a value a record."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.classification.labels import MULTI, SINGLE


def classifier_losses(logits: Tensor, labels: Tensor, problem: str, class_weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """The loss of each record, [records]: cross entropy, the mean of the labels' binary ones, or the squared error.

    logits is [records, labels]; labels [records] int64, [records, labels] of zeros and ones, or [records]. With class weights, [labels], the
    mean is to be taken over the records' `record_weights`, as torch's cross_entropy does; of several labels they weigh a label's presence. Smoothing is Szegedy
    et al. 2016, "Rethinking the Inception Architecture", section 7.
    """
    if problem == SINGLE:
        return F.cross_entropy(logits, labels, weight=class_weights, reduction="none", label_smoothing=smoothing)
    if problem == MULTI:
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=class_weights, reduction="none").mean(-1)
    return (logits.squeeze(-1) - labels).square()


def record_weights(labels: Tensor, problem: str, class_weights: Tensor | None = None) -> Tensor:
    """What each record counts in the mean of the losses: the weight of its class, else 1; [records]."""
    if problem == SINGLE and class_weights is not None:
        return class_weights[labels]
    return torch.ones(len(labels), device=labels.device)
