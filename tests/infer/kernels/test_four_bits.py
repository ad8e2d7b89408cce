"""Sixteen levels of a group beside a search through all scales and zeros, ties, and what an input counts."""

import pytest
import torch

from seodang.infer.kernels.four_bits import GROUP, Grid, four_bits, nearest_levels, written_out

GRIDS = [Grid(0, torch.float16), Grid(-8, torch.bfloat16)]


def errors(weight, grid, importance=None):
    apart = (written_out(four_bits(weight, *grid, importance), grid) - weight).square()
    return (apart if importance is None else apart * importance).view(len(weight), -1, GROUP).sum(dim=-1)


def best_of_all(group, counts, steps=120):
    """The least error of one group over so many lowest and highest values that a grid may have, each from outside the group to far inside."""
    low, high = group.min(), group.max()
    reach = torch.linspace(-0.1, 0.4, steps) * (high - low)
    zero, scale = (low + reach)[:, None, None], ((high - low - reach[None, :] - reach[:, None]) / 15)[..., None]
    levels = ((group - zero) / scale).round().clamp(0, 15)
    return ((levels * scale + zero - group).square() * counts).sum(dim=-1).min()


@pytest.mark.parametrize("grid", GRIDS, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_group_loses_hardly_more_than_by_the_best_of_all_grids(grid, weighted):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, GROUP, generator=generator)
    counts = torch.rand(GROUP, generator=generator) ** 3 + 0.01 if weighted else torch.ones(GROUP)
    best = torch.stack([best_of_all(row, counts) for row in weight])
    found = errors(weight, grid, counts if weighted else None)[:, 0]
    assert found.sum() < (1.08 if weighted else 1.03) * best.sum() and (found < 1.6 * best).all()


@pytest.mark.parametrize("grid", GRIDS, ids=["float16", "bfloat16"])
def test_what_was_in_4_bits_stays_as_it_was_whatever_inputs_count(grid):
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 16, (64, 4, GROUP), generator=generator)
    levels[..., 5], levels[..., 9] = 0, 15  # as min and max of a group, by which llama.cpp makes Q4_1
    step, low = torch.rand(2, 64, 4, 1, generator=generator)
    was = (step.to(grid.dtype).float() * levels + (low - 1).to(grid.dtype).float()).view(64, -1)
    grid = Grid(0, grid.dtype)
    importance = torch.ones(4 * GROUP)
    importance[[0, 40, 73]] = 1e6
    for counts in (None, importance, torch.rand(4 * GROUP, generator=generator) + 0.01):
        torch.testing.assert_close(written_out(four_bits(was, *grid, counts), grid), was, rtol=0, atol=1e-5)


def test_an_input_that_counts_much_is_held_at_the_cost_of_the_others():
    weight = torch.randn(16, 2 * GROUP, generator=torch.Generator().manual_seed(0))
    importance = torch.ones(2 * GROUP)
    importance[[3, 40]] = 1e4
    even, uneven = (written_out(four_bits(weight, 0, torch.float16, counts), GRIDS[0]) - weight for counts in (torch.ones(2 * GROUP), importance))
    assert uneven[:, [3, 40]].abs().max() < 0.01 < even[:, [3, 40]].abs().mean()
    assert torch.equal(even, written_out(four_bits(weight, 0, torch.float16), GRIDS[0]) - weight)


def test_ties_go_to_the_even_level_and_a_scale_of_zero_has_one_value():
    halves = torch.tensor([[-3.0, 0.25, 0.75, 1.25, 7.25, 8.0]])
    assert nearest_levels(halves, torch.tensor(0.5), torch.tensor(0.0), 0).tolist() == [[0, 0, 2, 2, 14, 15]]
    assert nearest_levels(halves - 4, torch.tensor(0.5), torch.tensor(0.0), -8).tolist() == [[-8, -8, -6, -6, 6, 7]]
    constant = torch.cat([torch.zeros(1, GROUP), torch.full((1, GROUP), 0.75)])
    for grid in GRIDS:
        assert torch.equal(written_out(four_bits(constant, *grid), grid), constant)


@pytest.mark.parametrize("grid", GRIDS, ids=["float16", "bfloat16"])
def test_what_is_written_out_is_level_times_scale_plus_zero(grid):
    levels = torch.arange(2 * GROUP, dtype=torch.uint8).view(1, -1) % 16
    scale, zero = torch.tensor([[0.5, 0.25]], dtype=grid.dtype), torch.tensor([[1.0, -2.0]], dtype=grid.dtype)
    out = written_out((levels, scale, zero), grid)
    assert out[0, [0, 1, 15, 32, 47]].tolist() == [value + (0.5 if i < 3 else 0.25) * grid.lowest for i, value in enumerate([1.0, 1.5, 8.5, -2.0, 1.75])]
