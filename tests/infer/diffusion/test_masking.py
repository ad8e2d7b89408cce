"""Masks and their weights, by hand and by enumeration."""

import math
import random

import pytest

from seodang.data.errors import UserError
from seodang.infer.diffusion.masking import (
    ESTIMATORS,
    SCHEDULES,
    Draws,
    by_counts,
    by_times,
    every_mask,
    likelihood_weight,
    masks_of,
    standard_error,
    strata,
)


def test_the_linear_schedule_weighs_one_over_t_and_the_complement_one_over_what_is_left():
    assert SCHEDULES["linear"].rate(0.25) == 0.25
    assert likelihood_weight("linear", 0.25) == 4.0
    assert likelihood_weight("linear", 0.25, complement=True) == pytest.approx(1 / 0.75)
    assert likelihood_weight("linear", 0.0) == math.inf


def test_the_cosine_schedule_by_hand():
    """At t = 2/3: cos(pi/3) = 1/2 is left, and it falls by pi/2 sin(pi/3)."""
    slope = math.pi / 2 * math.sqrt(3) / 2
    assert SCHEDULES["cosine"].rate(2 / 3) == pytest.approx(0.5)
    assert likelihood_weight("cosine", 2 / 3) == pytest.approx(slope / 0.5)
    assert likelihood_weight("cosine", 1 / 3, complement=True) == pytest.approx(math.pi / 2 * 0.5 / math.cos(math.pi / 6))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_from_nothing_to_all_as_fast_as_its_slope_says(name):
    schedule, steps = SCHEDULES[name], 2000
    assert schedule.rate(0.0) == 0 and schedule.rate(1.0) == pytest.approx(1)
    assert sum(schedule.slope((i + 0.5) / steps) for i in range(steps)) / steps == pytest.approx(1, rel=1e-6)


def test_counts_mask_the_smallest_noise_and_times_what_lies_below_them():
    noise = [0.2, 0.8, 0.5]
    assert [by_counts(noise, time) for time in (0.0, 0.34, 0.99)] == [([True, False, False], 3.0), ([True, False, True], 1.5), ([True, True, True], 1.0)]
    assert [by_times(noise, time) for time in (0.1, 0.25, 0.8)] == [([False] * 3, 0.0), ([True, False, False], 4.0), ([True, False, True], 1.25)]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_each_token_weighs_1_over_all_masks(length):
    """So that a model that finds every token as likely under every mask has the bound that is its likelihood."""
    masks = list(every_mask(length))
    assert len({tuple(each.masked) for each in masks}) == 2**length - 1
    for place in range(length):
        assert sum(each.weight for each in masks if each.masked[place]) == pytest.approx(1)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_drawn_masks_weigh_on_average_what_all_masks_do(estimator):
    """Of every mask of three tokens: over many draws, its weight times how often it is drawn."""
    runs, sums = 1500, {}
    for run in range(runs):
        for masked, weight in masks_of(3, Draws(4, estimator), run):
            sums.setdefault(tuple(masked), []).append(weight)
    for masked, weight in every_mask(3):
        values = sums[tuple(masked)]
        mean = sum(values) / runs
        error = math.sqrt(sum(each * each for each in values)) / runs
        assert abs(mean - weight) < 4 * error and error < 0.1 * weight + 0.02


def test_as_many_masks_as_there_are_draws_are_all_taken():
    assert [length for length in range(1, 9) if Draws(31).take_all(length)] == [1, 2, 3, 4, 5] and not Draws(30).take_all(5) and not Draws(2).take_all(2)
    assert masks_of(5, Draws(31), "key") == list(every_mask(5)) and Draws(1).take_all(1)


@pytest.mark.parametrize(("count", "wanted"), [(1, [1]), (2, [2]), (3, [3]), (5, [2, 3]), (8, [2, 2, 2, 2])])
def test_two_draws_have_their_times_in_each_part_of_all(count, wanted):
    assert [len(each) for each in strata(count)] == wanted
    if count > 3:
        length = 1000  # how many are masked tells the time
        times = [sum(masked) / length for masked, _ in masks_of(length, Draws(count), 0)]
        for stratum in strata(count):
            for draw in stratum:
                assert stratum.start / count <= times[draw] <= stratum.stop / count + 1 / length


def test_masks_hang_on_seed_and_key_alone_and_answers_of_one_key_share_their_first_tokens_noise():
    first, again, longer, other, seeded = (
        [each.masked for each in masks_of(length, Draws(16, "times", seed), key)] for length, key, seed in ((40, "a", 0), (40, "a", 0), (60, "a", 0), (40, "b", 0), (40, "a", 1))
    )
    assert first == again and [each[:40] for each in longer] == first
    assert first != other and first != seeded and len(first) == 16


def test_the_standard_error_by_hand():
    assert standard_error([1.0, 3.0, 10.0, 10.0]) == 0.5
    assert standard_error([1.0, 2.0, 6.0]) == pytest.approx(math.sqrt(7 / 3))  # of three the variance is 7
    assert standard_error([1.0]) is None


def test_the_standard_error_is_that_of_many_estimates():
    """Draws of unequal strata: the mean of the squared errors is the variance of the mean, which plain draws would tell three times too high."""
    draw = random.Random(0)
    squares, means, runs = [], [], 2500
    for _ in range(runs):
        values = [3.0 * part + draw.gauss(0, 1 + part) for part, own in enumerate(strata(9)) for _ in own]
        means.append(sum(values) / 9)
        squares.append(standard_error(values) ** 2)
    centre = sum(means) / runs
    assert sum(squares) / runs == pytest.approx(sum((each - centre) ** 2 for each in means) / runs, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"count": 0}, "draws must be a whole number of at least 1, got 0"),
        ({"count": 2.5}, "draws must be a whole number of at least 1, got 2.5"),
        ({"estimator": "count"}, "no estimator 'count': did you mean counts"),
        ({"estimator": "monte carlo"}, "choose one of counts, times"),
    ],
)
def test_values_out_of_range_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        Draws(**settings)
