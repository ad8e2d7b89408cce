"""Error-compensating rounding beside the same written slowly, by eliminating one input after the other, and beside plain rounding."""

import pytest
import torch

from seodang.infer.kernels.compensated_rounding import compensated
from seodang.infer.kernels.four_bits import GROUP, Grid, four_bits, written_out

GRID = Grid(0, torch.float16)


def together(inputs=96, seed=0, rows=400):
    """Inputs of which neighbours go together, of very different sizes: [rows, inputs]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(inputs) + 0.5 * torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    shared = torch.randn(4, inputs, generator=generator)
    own, common = torch.randn(rows, inputs, generator=generator), torch.randn(rows, 4, generator=generator)
    return (own @ mix + common @ shared) * torch.logspace(-1, 1, inputs)


def weight(outputs=8, inputs=96, seed=1):
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def loss(weight, rounded, x):
    return ((weight - rounded).double() @ x.double().T).square().mean().item()


def slowly(weight, moments, damping):
    """Optimal brain surgery as Frantar et al. begin with it: round one input, move those that are left by the inverse of their own moments, and go on."""
    hessian = moments.double() + damping * moments.diagonal().mean().double() * torch.eye(len(moments), dtype=torch.float64)
    rest, inverse, fitted = weight.double().clone(), torch.linalg.inv(hessian), []
    for begin in range(0, weight.shape[1], GROUP):
        ahead, costs = inverse.clone(), []
        for _ in range(GROUP):  # what the error of each costs once those before it are settled
            costs.append(1 / ahead[0, 0])
            ahead = ahead[1:, 1:] - ahead[1:, :1] @ ahead[:1, 1:] / ahead[0, 0]
        _, scale, zero = four_bits(rest[:, begin : begin + GROUP].float().contiguous(), *GRID, torch.stack(costs).float())
        levels = []
        for i in range(begin, begin + GROUP):
            level = ((rest[:, i] - zero[:, 0].double()) / scale[:, 0].double()).round().clamp(0, 15)
            error = rest[:, i] - (level * scale[:, 0].double() + zero[:, 0].double())
            rest[:, i:] -= error[:, None] * inverse[0] / inverse[0, 0]
            inverse = inverse[1:, 1:] - inverse[1:, :1] @ inverse[:1, 1:] / inverse[0, 0]
            levels.append(level)
        fitted.append((torch.stack(levels, dim=1), scale, zero))
    return tuple(torch.cat(parts, dim=1) for parts in zip(*fitted))


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_levels_scales_and_zeros_are_those_of_eliminating_one_input_after_the_other(damping):
    x = together()
    found, wanted = compensated(weight(), x.T @ x / len(x), GRID, damping), slowly(weight(), x.T @ x / len(x), damping)
    assert all(map(torch.equal, (found[0].double(), *found[1:]), wanted))
    assert found[1].dtype == found[2].dtype == torch.float16 and found[0].min() == 0 and found[0].max() == 15


def test_outputs_are_nearer_than_by_rounding_each_weight_for_itself_also_on_inputs_that_were_not_seen():
    seen, other = together(rows=4000).split(2000)
    for grid in (GRID, Grid(-8, torch.bfloat16)):
        plain = written_out(four_bits(weight(), *grid), grid)
        better = written_out(compensated(weight(), seen.T @ seen / len(seen), grid, 0.01), grid)
        assert loss(weight(), better, seen) < 0.75 * loss(weight(), plain, seen)
        assert loss(weight(), better, other) < 0.75 * loss(weight(), plain, other)
        assert (better - weight()).norm() > (plain - weight()).norm()  # it is not the weights that are nearer


def test_inputs_that_are_always_alike_count_by_the_sum_of_their_weights_alone():
    """x_1 = -x_2 = x_3 = ...: what one weight loses the next makes up for, so the sum is as near as one step, where plain errors add up."""
    signs = torch.ones(GROUP)
    signs[1::2] = -1
    rounded = compensated(weight(64, GROUP), signs.outer(signs), GRID, damping=1e-6)
    apart = ((written_out(rounded, GRID) - weight(64, GROUP)) @ signs).abs()
    plain = ((written_out(four_bits(weight(64, GROUP), *GRID), GRID) - weight(64, GROUP)) @ signs).abs()
    within = apart <= 0.51 * rounded[1][:, 0].float()  # all but where the last would lie beyond the levels
    assert within.float().mean() > 0.9 and plain.mean() > 4 * apart.mean()


@pytest.mark.parametrize("moments", [torch.eye(96), 7 * torch.eye(96), torch.zeros(96, 96)], ids=["one", "seven", "no inputs"])
def test_inputs_that_do_not_go_together_leave_rounding_as_it_is(moments):
    assert all(map(torch.equal, compensated(weight(), moments, GRID, 0.01), four_bits(weight(), *GRID)))


def test_an_input_that_was_never_seen_keeps_its_weights_and_groups_of_zeros_stay():
    x = together()
    x[:, 40:50] = 0
    zeroed = weight()
    zeroed[2, 32:64] = 0
    levels, scales, zeros = fitted = compensated(zeroed, x.T @ x / len(x), GRID, 0.01)
    apart = (written_out(fitted, GRID) - zeroed).abs()
    steps = scales.float().repeat_interleave(GROUP, dim=1)
    assert (apart[:, 40:50] <= 8 * steps[:, 40:50] + 1e-6).all() and all(part.isfinite().all() for part in fitted)
    still = compensated(torch.zeros(4, 96), x.T @ x / len(x), GRID, 0.01)
    assert not written_out(still, GRID).any()


def test_moments_that_no_inputs_have_are_refused():
    with pytest.raises(torch.linalg.LinAlgError):
        compensated(weight(), -torch.eye(96), GRID, 0.01)
