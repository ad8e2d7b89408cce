"""Whether a classifier is right as often as it says: reliability by bins, and the expected calibration error."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...infer.kernels.device import in_float64

BINS = 15  # as Guo et al. take


class Reliability(NamedTuple):
    """Predictions by bins of their confidence, [bins] in float64 each: how many, how sure on average, and what share of them is right."""

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor


def reliability(confidence: Tensor, right: Tensor, bins: int = BINS) -> Reliability:
    """Sort predictions into bins of equal width: bin m holds the confidences in ((m - 1) / bins, m / bins], 0 lies in the first.

    confidence is [predictions] in [0, 1], right [predictions] says which of them came true. Where a bin is empty, both its means are 0.
    """
    confidence, right = in_float64(confidence), in_float64(right)
    sums = torch.zeros(3, bins, dtype=torch.float64)
    sums.index_add_(1, bins_of(confidence, bins), torch.stack([torch.ones_like(confidence), confidence, right]))
    counts = sums[0]
    return Reliability(counts, *(sums[1:] / counts.clamp(min=1)))


def bins_of(confidence: Tensor, bins: int = BINS) -> Tensor:
    """The bin of each confidence, counted from 0."""
    return ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)


def expected_calibration_error(found: Reliability) -> float:
    """The mean over all predictions of how far the share that is right lies from the confidence, by bins.

    sum over bins of count / predictions * |accuracy - confidence|: Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3, after
    Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning".
    """
    return (found.counts / found.counts.sum() * (found.accuracy - found.confidence).abs()).sum().item()
