"""How many tokens become certain at once: by a threshold and by a bound, against every set that could."""

import doctest
import math
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from seodang.infer.diffusion import commit
from seodang.infer.diffusion.commit import bounded, confident


def test_their_examples_hold():
    assert doctest.testmod(commit).failed == 0


@given(st.lists(st.integers(0, 40).map(lambda n: n / 8), min_size=1, max_size=7), st.integers(0, 60).map(lambda n: n / 8))
def test_of_positions_by_entropy_a_bound_takes_as_many_as_any_set_within_it_has(entropies, bound):
    entropies.sort()
    within = [
        size for size in range(1, len(entropies) + 1) for some in combinations(entropies, size) if math.fsum(some) - max(some) <= bound
    ]  # fmt: skip
    assert bounded(entropies, bound) == list(range(max(within)))


def test_a_threshold_asks_each_place_by_itself_and_takes_the_surest_where_none_reaches_it():
    assert confident([0.5, 0.2, 0.9], 0.5) == [0, 2]
    assert confident([1.0, 1.0], 1.01) == [0]
    assert bounded([0.0, 0.0, 0.1], 0.0) == [0, 1, 2]  # what is drawn of a certain distribution hangs on nothing
    assert bounded([0.1, 0.2], 0.0) == [0]
