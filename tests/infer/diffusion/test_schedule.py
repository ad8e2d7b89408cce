"""How many positions become certain when: all of them, none in an idle pass; and D3PM's law of one position's step."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seodang.infer.diffusion import schedule
from seodang.infer.diffusion.schedule import arrival, blocks_of, counts, steps_of


def test_its_examples_hold():
    assert doctest.testmod(schedule).failed == 0


@given(st.integers(1, 300), st.integers(1, 300), st.one_of(st.none(), st.integers(1, 64)))
def test_every_position_becomes_certain_once_in_passes_that_differ_by_one_at_most(length, steps, block_length):
    blocks = blocks_of(length, block_length)
    assert [position for block in blocks for position in block] == list(range(length))
    shares = steps_of(blocks, steps)
    for block, share in zip(blocks, shares, strict=True):
        found = counts(len(block), share)
        assert sum(found) == len(block) and len(found) == min(share, len(block)) and min(found) >= 1 and max(found) - min(found) <= 1
    assert sum(shares) == max(steps, len(blocks))
    assert [counts(len(block), share) for block, share in zip(blocks, steps_of(blocks, None))] == [[1] * len(block) for block in blocks]


@pytest.mark.parametrize("steps", [1, 3, 16])
def test_a_positions_step_is_drawn_by_the_products_of_dreams_transfer_probabilities(steps):
    times = torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64)
    stays, law = 1.0, []
    for step in range(steps):
        moves = 1.0 if step == steps - 1 else float(1 - times[step + 1] / times[step])
        law.append(stays * moves)
        stays *= 1 - moves
    noise = [(n + 0.5) / 20_000 for n in range(20_000)]
    found = torch.bincount(torch.tensor([arrival(each, steps) for each in noise]), minlength=steps) / 20_000
    torch.testing.assert_close(found.double(), torch.tensor(law, dtype=torch.float64), rtol=0, atol=1e-4)
