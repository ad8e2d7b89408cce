"""By how much a model's logits changed where they should be the same."""

import math

from torch import Tensor


def largest_change(before: Tensor, after: Tensor) -> float:
    """Return the largest change of a logit as a share of the spread of all, both tensors of one shape: 0 for equal ones, however little they spread."""
    moved, spread = (after - before).abs().max().item(), (before.max() - before.min()).item()
    return moved / spread if spread else math.inf if moved else 0.0
