"""ReMDM's law: whatever is taken back, each position is certain after a step with the probability that the schedule says."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seodang.infer.diffusion import remasking
from seodang.infer.diffusion.remasking import commit_chance, remask_chance, share_at


def test_its_examples_hold():
    assert doctest.testmod(remasking).failed == 0


@given(st.integers(1, 60), st.floats(0.001, 1.0))
def test_a_position_is_certain_after_each_step_with_the_schedules_probability(steps, cap):
    certain = 0.0
    for step in range(steps):
        before, after = share_at(step, steps), share_at(step + 1, steps)
        sigma = remask_chance(before, after, cap)
        moves = commit_chance(before, after, sigma)
        assert 0 <= sigma <= cap and 0 <= moves <= 1 + 1e-12
        certain = certain * (1 - sigma) + (1 - certain) * moves
        assert certain == pytest.approx(after)
    assert certain == pytest.approx(1) and sigma == 0.0


def test_by_hand():
    assert remask_chance(0.25, 0.5, 1.0) == 1.0 and remask_chance(0.8, 0.9, 1.0) == pytest.approx(0.125) and remask_chance(0.8, 0.9, 0.1) == 0.1
    assert commit_chance(0.5, 0.75, 0.0) == 0.5 and commit_chance(0.5, 0.75, 0.5) == 1.0  # half of the certain ones go, so all others come
