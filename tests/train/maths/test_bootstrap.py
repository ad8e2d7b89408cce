from itertools import product

import numpy as np
import pytest

from seodang.train.maths import bootstrap
from seodang.train.maths.bootstrap import interval, resampled_sums


def test_sums_are_those_of_all_ways_to_draw_as_often():
    """Of three records drawn three times there are 27 ways; each sum comes as often as among them."""
    rows = np.array([[0.0, 1], [1, 1], [10, 1]])
    sums = resampled_sums(rows, 27_000, seed=3)
    assert (sums[:, 1] == 3).all()
    ways = [sum(rows[i, 0] for i in drawn) for drawn in product(range(3), repeat=3)]
    for value in set(ways):
        assert (sums[:, 0] == value).sum() == pytest.approx(1000 * ways.count(value), abs=200)
    assert set(sums[:, 0]) == set(ways)


def test_columns_share_their_draws_and_so_do_calls(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(50, 2))
    together = resampled_sums(rows, 100, seed=1)
    assert np.allclose(resampled_sums(rows[:, :1], 100, seed=1), together[:, :1])
    monkeypatch.setattr(bootstrap, "AT_ONCE", 7 * 50)  # seven at once, and the last two
    assert np.allclose(resampled_sums(rows, 100, seed=1), together)
    assert not np.allclose(resampled_sums(rows, 100, seed=2), together)


def test_the_interval_of_a_share_is_that_of_the_normal_distribution():
    right = np.zeros((400, 1))
    right[:200] = 1
    low, high = interval(resampled_sums(right, 4000, seed=0)[:, 0] / 400)
    assert (low, high) == (pytest.approx(0.5 - 1.96 * 0.025, abs=0.004), pytest.approx(0.5 + 1.96 * 0.025, abs=0.004))


def test_percentiles_leave_out_what_is_no_number():
    assert interval(np.array([np.nan, *range(101)]), 0.9) == pytest.approx((5, 95))
