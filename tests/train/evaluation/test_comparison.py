"""Intervals and paired differences."""

import numpy as np
import pytest

from seodang.train.evaluation.case import Case
from seodang.train.evaluation.comparison import compared
from seodang.train.evaluation.registry import mark_metric, parse_metrics

MARK = mark_metric("mark")


def marked(values):
    return [Case(["x"], marks={} if value is None else {"mark": [value]}) for value in values]


def test_a_difference_that_every_record_has_is_certain_however_wide_the_figures():
    first = np.random.default_rng(0).normal(size=40)
    before, after = compared([MARK], [marked(first), marked(first + 0.1)])["mark"]
    assert before.estimate.value == pytest.approx(first.mean()) and before.estimate.high - before.estimate.low > 0.4
    assert before.difference is None
    assert [after.difference.value, after.difference.low, after.difference.high] == pytest.approx([0.1] * 3)
    assert after.difference.excludes_zero and after.as_json()["difference"]["excludes_zero"]


def test_a_difference_as_wide_as_chance_is_not_told_from_none():
    noise = np.random.default_rng(1)
    _, after = compared([MARK], [marked(noise.normal(size=30)), marked(noise.normal(size=30))])["mark"]
    assert after.difference.low < 0 < after.difference.high and not after.difference.excludes_zero


def test_a_difference_is_of_the_records_that_both_were_measured_on():
    before, after = compared([MARK], [marked([1, 2, None, 4]), marked([2, None, 9, 6])])["mark"]
    assert (before.estimate.value, before.estimate.records) == (pytest.approx(7 / 3), 3)
    assert (after.estimate.value, after.estimate.records) == (pytest.approx(17 / 3), 3)
    assert (after.difference.value, after.difference.records) == (pytest.approx((2 - 1 + 6 - 4) / 2), 2)


def test_ratios_are_of_sums_and_not_means_of_ratios():
    cases = [[Case(["a b c d e f g h"], "a b c d e f g h"), Case(["x"], "y")]]
    assert compared(parse_metrics(["chrf"]), cases)["chrf"][0].estimate.value > 85  # the mean of both would be 50


def test_intervals_come_again_by_their_seed():
    models = [marked(np.random.default_rng(2).normal(size=25))]
    once, again, other = (compared([MARK], models, resamples=200, seed=seed)["mark"][0].estimate for seed in (5, 5, 6))
    assert once == again != other and once.value == other.value


def test_nothing_measured_is_no_figure():
    [figure], [other] = compared([MARK], [[Case(), Case()]])["mark"], compared([MARK], [[]])["mark"]
    assert figure.estimate.value is other.estimate.value is None and figure.estimate.records == 0


def test_a_draw_without_a_measured_record_is_left_out():
    """Of 60 records 2 were measured, so one draw in eight has none of them."""
    cases = [Case(["abc"], "abc"), Case(["abc"], "abc"), *[Case()] * 58]
    for figures in compared(parse_metrics(["chrf", "exact", "bleu"]), [cases, cases]).values():
        for estimate in (figures[0].estimate, figures[1].estimate):
            assert estimate.records == 2 and estimate.low == estimate.high == estimate.value
        assert (figures[1].difference.low, figures[1].difference.high, figures[1].difference.records) == (0, 0, 2)
