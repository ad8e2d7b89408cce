"""How sure a position is by each order, by hand; and who comes first."""

import math
from itertools import permutations

import pytest
import torch

from seodang.infer.diffusion.orders import confidence, confidences, gumbel, surest

PROBS = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
IDS = torch.tensor([1, 3, 1])


def test_each_order_says_by_hand_how_sure_a_position_is():
    scores = PROBS.log() + torch.tensor([[5.0], [-3.0], [0.0]])  # as logits, of any scale
    logits = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1], [0.25] * 4]).log() - 2
    assert confidence("maskgit_plus", logits, scores, IDS).tolist() == pytest.approx([0.3, 0.25, 1.0])
    assert confidence("low_confidence", logits, scores, IDS).tolist() == pytest.approx([0.6, 0.1, 0.25])  # of the model's own, whatever filters do
    assert confidence("topk_margin", logits, scores, IDS).tolist() == pytest.approx([0.2, 0.0, 1.0])
    entropy = 0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2)
    assert confidence("entropy", logits, scores, IDS).tolist() == pytest.approx([entropy, math.log(0.25), 0.0])
    assert confidence("topk_margin", torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([0])).tolist() == [1.0]  # of one token alone


def test_each_position_is_judged_by_its_own_order():
    logits = PROBS.flip(0).log()
    found = confidences(["maskgit_plus", None, "low_confidence"], logits, PROBS.log(), IDS)
    assert found == pytest.approx([0.3, 0.0, 0.3])


def test_the_surest_come_first_and_of_equals_the_first():
    assert surest(torch.tensor([0.1, 0.9, 0.4, 0.9]), 3) == [1, 3, 2]
    assert surest(torch.zeros(5), 2) == [0, 1]
    assert surest(torch.tensor([0.1, 0.9]), 5) == [1, 0]


def test_at_a_temperature_positions_are_drawn_without_replacement_by_their_weights():
    sure, temperature, count = torch.tensor([0.3, 0.1, -0.2], dtype=torch.float64), 0.4, 4000
    noise = torch.rand(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    found = [tuple(surest(sure, 3, temperature, each)) for each in noise]
    weights = (sure / temperature).exp().tolist()
    for order in permutations(range(3)):
        left, p = sum(weights), 1.0
        for place in order:
            p, left = p * weights[place] / left, left - weights[place]
        assert abs(found.count(order) / count - p) < 4 * math.sqrt(p * (1 - p) / count)
    assert math.isfinite(gumbel(0.0)) and gumbel(0.5) == pytest.approx(-math.log(math.log(2)))
