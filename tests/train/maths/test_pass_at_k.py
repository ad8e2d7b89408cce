from itertools import combinations

import pytest

from seodang.train.maths.pass_at_k import pass_at_k


@pytest.mark.parametrize("right", range(6))
@pytest.mark.parametrize("k", range(1, 6))
def test_it_is_the_share_of_the_subsets_that_hold_a_right_sample(right, k):
    ways = [any(sample < right for sample in chosen) for chosen in combinations(range(5), k)]
    assert pass_at_k(5, right, k) == pytest.approx(sum(ways) / len(ways))


def test_more_than_there_are_cannot_be_drawn():
    for k in (0, 6):
        with pytest.raises(ValueError, match="k must be in 1 to 5"):
            pass_at_k(5, 1, k)
