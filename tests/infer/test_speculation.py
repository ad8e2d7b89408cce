"""The rule of speculative sampling: numbers by hand, and the distribution that comes out."""

import pytest
import torch

from seodang.infer.speculation import acceptance, residual, speculate

P = torch.tensor([[0.5, 0.3, 0.2, 0.0]], dtype=torch.float64)
Q = torch.tensor([[0.2, 0.6, 0.1, 0.1]], dtype=torch.float64)


def test_a_guess_stays_with_the_ratio_of_its_probabilities():
    kept = acceptance(P.expand(4, -1), Q.expand(4, -1), torch.arange(4))
    assert kept.tolist() == [1.0, pytest.approx(0.5), 1.0, 0.0]


def test_a_refused_guess_is_replaced_from_what_the_draft_had_too_little_of():
    assert residual(P, Q).tolist() == [pytest.approx([0.3, 0.0, 0.1, 0.0])]


def test_where_both_distributions_are_equal_a_refusal_by_rounding_is_drawn_anew():
    assert residual(P, P).tolist() == P.tolist()


def speculated(n: int = 100):
    """Every guess with every pair of noise numbers of a fine grid: ids and weights, and whether the guess stayed."""
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    guess = torch.arange(4).repeat_interleave(n * n)
    judge, other = grid.repeat_interleave(n).repeat(4), grid.repeat(4 * n)
    p, q = (x.expand(len(guess), -1) for x in (P, Q))
    return guess, Q[0, guess] / (n * n), speculate(p, q, guess, judge, other)


def test_guesses_drawn_from_the_draft_come_out_drawn_from_the_target():
    _, weight, ids = speculated()
    came = torch.zeros(4, dtype=torch.float64).index_add(0, ids, weight)
    assert came.tolist() == pytest.approx(P[0].tolist(), abs=1e-12)


def test_the_rate_of_acceptance_is_the_overlap_of_the_distributions():
    guess, weight, ids = speculated()
    # a replacement is never the refused guess itself: there the draft had too much
    assert float(weight[ids == guess].sum()) == pytest.approx(0.2 + 0.3 + 0.1 + 0.0)
    assert float(torch.minimum(P, Q).sum()) == pytest.approx(0.6)
