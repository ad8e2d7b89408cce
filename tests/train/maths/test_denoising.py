import itertools
import math

import pytest

from seodang.train.maths.denoising import context_weights, ratio_with_error, stratified_time


def test_context_weights_by_hand():
    """p = 1/2. The first mask has a clean token at 1 before it and one at 2 behind: (1 + 1/2) p / 2; the second the same the other way round."""
    assert context_weights([False, True, True, False], 0.5) == [0.0, 0.375, 0.375, 0.0]
    assert context_weights([True, True], 0.5) == [0.0, 0.0]
    assert context_weights([False, True], 0.2) == [0.0, pytest.approx(0.1)]


@pytest.mark.parametrize("masked", [list(bits) for bits in itertools.product([False, True], repeat=5)][::3])
def test_context_weights_are_the_sum_over_all_pairs(masked):
    p = 0.3
    for n, weight in enumerate(context_weights(masked, p)):
        expected = sum(0.5 * p * (1 - p) ** (abs(n - i) - 1) for i, hidden in enumerate(masked) if not hidden and i != n)
        assert weight == pytest.approx(expected if masked[n] else 0.0)


def test_of_so_many_times_one_falls_into_each_stratum():
    for offset in (0.0, 0.37, 0.999):
        times = [stratified_time(offset, place, 8) for place in range(8)]
        assert sorted(int(8 * time) for time in times) == list(range(8))
        assert times[0] == offset and all(0 <= time < 1 for time in times)


def test_a_ratio_and_its_error_by_hand():
    assert ratio_with_error([2.0, 6.0], [1, 1]) == (4.0, 2.0)
    ratio, error = ratio_with_error([1.0, 5.0, 6.0], [1, 2, 3])  # 2 a token; what is left over is -1, 1 and 0
    assert ratio == 2.0 and error == pytest.approx(math.sqrt(2 * 3 / 2) / 6)
    assert ratio_with_error([3.0], [2]) == (1.5, None)
