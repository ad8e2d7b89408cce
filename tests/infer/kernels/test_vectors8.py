"""Vectors in 8 bits: levels, scales and the matrix that keys are turned by, by hand."""

import torch

from seodang.infer.kernels.vectors8 import SCALE, hadamard, in_8_bits, widened


def test_a_vector_is_rounded_to_steps_of_a_127th_of_its_largest_rounded_up_to_a_bfloat16():
    packed = in_8_bits(torch.tensor([[127.0, -127.0, 0.4, 0.6, -63.5], [0.0, 0.0, 0.0, 0.0, 0.0], [254.0, 2.0, -3.1, 0.0, 1.1]]))
    assert packed.dtype == torch.int8 and packed.shape == (3, 5 + SCALE)
    assert packed[:, :5].tolist() == [[127, -127, 0, 1, -64], [0] * 5, [127, 1, -2, 0, 1]]
    assert packed[:, 5:].contiguous().view(torch.bfloat16).flatten().tolist() == [1.0, 0.0, 2.0]
    [inexact] = in_8_bits(torch.tensor([[1.0, -0.5]]))  # 1 / 127 is 0.0078740, of which bfloat16 has 0.0078735 and 0.0079346
    assert inexact[2:].view(torch.bfloat16).item() == 0.0079345703125 and inexact[:2].tolist() == [126, -63]


def test_no_number_is_off_by_more_than_half_a_step():
    x = torch.randn(2000, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 30, 2000)[:, None]
    packed = in_8_bits(x)
    scale = packed[:, 40:].contiguous().view(torch.bfloat16).double()
    exact = packed[:, :40].double() * scale
    assert torch.equal(widened(packed).double(), exact)  # products of 7 and 8 bits
    assert ((exact - x.double()).abs() <= 0.5001 * scale).all()
    largest = x.abs().amax(dim=1, keepdim=True).double()
    assert (scale * 127 >= largest).all() and (scale * 127 < largest * 129 / 128).all()


def test_what_is_too_small_for_a_scale_becomes_nothing_and_what_is_not_finite_nan():
    assert not widened(in_8_bits(torch.full((1, 8), 1e-38))).any()
    for strange in (torch.nan, torch.inf, -torch.inf):
        x = torch.ones(2, 8)
        x[0, 3] = strange
        back = widened(in_8_bits(x))
        assert back[0].isnan().all() and torch.allclose(back[1], torch.ones(8), atol=0.004)


def test_keys_are_turned_by_hadamards_matrix_in_blocks_and_back():
    four = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    device = torch.device("cpu")
    assert torch.equal(hadamard(4, device), four) and torch.equal(hadamard(12, device), torch.block_diag(four, four, four))
    assert torch.equal(hadamard(7, device), torch.eye(7))
    for width in (2, 10, 64, 96, 128):
        assert torch.allclose(hadamard(width, device) @ hadamard(width, device), torch.eye(width), atol=1e-6)
