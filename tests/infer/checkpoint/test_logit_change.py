"""By how much logits changed, by hand."""

import math

import pytest
import torch

from seodang.infer.checkpoint.logit_change import largest_change


def test_the_largest_change_is_a_share_of_the_spread_and_none_of_flat_logits_is_none():
    before = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    assert largest_change(before, before + torch.tensor([[0.0, 0.5], [-1.0, 0.0]])) == pytest.approx(1 / 4)
    flat = torch.full((2, 3), 7.0)
    assert largest_change(flat, flat) == 0
    assert largest_change(flat, flat + torch.tensor([0.0, 0.0, 1e-3])) == math.inf
    assert math.isnan(largest_change(before, before * torch.nan))
