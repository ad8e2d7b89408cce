"""The rule of speculative sampling: numbers by hand, and the distribution that comes out."""

import pytest
import torch

from seodang.infer.requests.rng import draw, key, uniform
from seodang.infer.strategies.speculation import acceptance, residual, speculate

P = torch.tensor([[0.5, 0.3, 0.2, 0.0]], dtype=torch.float64)
Q = torch.tensor([[0.2, 0.6, 0.1, 0.1]], dtype=torch.float64)


def test_a_guess_stays_with_the_ratio_of_its_probabilities():
    kept = acceptance(P.expand(4, -1), Q.expand(4, -1), torch.arange(4))
    assert kept.tolist() == [1.0, pytest.approx(0.5), 1.0, 0.0]


def test_a_refused_guess_is_replaced_from_what_the_draft_had_too_little_of():
    assert residual(P, Q).tolist() == [pytest.approx([0.3, 0.0, 0.1, 0.0])]


def test_where_both_distributions_are_equal_a_refusal_by_rounding_is_drawn_anew():
    assert residual(P, P).tolist() == P.tolist()


def keys(n: int, draw: int = 0):
    return torch.tensor([key(seed, 0, draw) for seed in range(n)])


def test_guesses_drawn_from_the_draft_come_out_drawn_from_the_target():
    n = 20_000
    p, q = P.expand(n, -1), Q.expand(n, -1)
    judge = torch.tensor([uniform(seed, 0, 2) for seed in range(n)], dtype=torch.float64)
    counts = torch.bincount(speculate(p, q, draw(q, keys(n, 1)), judge, keys(n)), minlength=4)
    assert counts[3] == 0
    assert float(((counts - n * P[0]) ** 2 / (n * P[0]))[:3].sum()) < 13.82  # chi-square at p = 0.001, 2 degrees of freedom


def test_the_rate_of_acceptance_is_the_overlap_of_the_distributions():
    grid = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    guess, judge = torch.arange(4).repeat_interleave(100), grid.repeat(4)
    ids = speculate(P.expand(400, -1), Q.expand(400, -1), guess, judge, keys(400))
    # a replacement is never the refused guess itself: there the draft had too much
    assert float(Q[0, guess[ids == guess]].sum() / 100) == pytest.approx(0.2 + 0.3 + 0.1 + 0.0)
    assert float(torch.minimum(P, Q).sum()) == pytest.approx(0.6)
