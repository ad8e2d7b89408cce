"""Weights in a GGUF file's own blocks: random bytes of every kind beside gguf's dequantiser, products beside exact sums."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, quants
from gguf import GGMLQuantizationType as Kind

from seodang.data.errors import UserError
from seodang.infer.gguf.blocks import AT_A_TIME, BLOCKS, floats_of, layer_of
from seodang.infer.kernels.kernel_check import refuse_wrong_kernels
from seodang.infer.kernels.linear_kernel import linear_kernel
from seodang.infer.kernels.quantised_linear import GROUP

BUILDS = [None, ("haswell", "avx2"), ("x86-64", "sse4_1")]
HALVES = {Kind.Q8_0: [0], Kind.Q4_0: [0], Kind.Q4_1: [0, 2], Kind.Q5_0: [0], Kind.Q5_1: [0, 2], Kind.Q4_K: [0, 2], Kind.Q5_K: [0, 2], Kind.Q6_K: [208]}
named = pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
built = pytest.mark.parametrize("build", BUILDS, ids=lambda build: build[0] if build else "native")


def blocks(kind, outputs=37, inputs=512, scale=0.01, fill=None, seed=0):
    """A weight's rows as a file has them: bytes at random, or all the same, with float16 numbers where a kind has such, a few of them zeros and negative."""
    block, size = GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (outputs, inputs // block, size), dtype=np.uint8) if fill is None else np.full((outputs, inputs // block, size), fill, np.uint8)
    for at in HALVES[kind]:
        numbers = random.standard_normal((*raw.shape[:2], 1)) * scale if fill is None else np.full((*raw.shape[:2], 1), scale)
        if fill is None:
            numbers[1, 0] = 0
        raw[..., at : at + 2] = numbers.astype(np.float16).view(np.uint8)
    return raw.reshape(outputs, -1)


def written(raw, kind):
    return torch.from_numpy(quants.dequantize(raw, kind))


def exact_inputs(rows, width, seed=1):
    """Inputs that 8 bits hold exactly: whole numbers up to 127, which is in every group, times a power of two."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-127, 128, (rows, width // GROUP, GROUP), generator=generator).float()
    x[..., 0] = 127
    return (x * 2.0 ** torch.randint(-6, 6, (rows, width // GROUP, 1), generator=generator)).view(rows, width)


@named
def test_blocks_become_packs_and_nothing_is_rounded(kind):
    raw = blocks(kind)
    layer = layer_of(torch.from_numpy(raw), kind, None)
    assert torch.equal(layer.dequantised(), written(raw, kind))
    bits = 8 * layer.packed.numel() / (48 * 512)  # of three packs
    assert bits <= 8 * GGML_QUANT_SIZES[kind][1] / GGML_QUANT_SIZES[kind][0] + (0.5 if kind in (Kind.Q4_0, Kind.Q5_0) else 0.126)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(floats_of(torch.from_numpy(raw), kind, dtype), written(raw, kind).to(dtype))


def test_a_tall_weight_is_packed_by_parts():
    raw = blocks(Kind.Q4_1, outputs=AT_A_TIME + 21, inputs=32)
    layer = layer_of(torch.from_numpy(raw), Kind.Q4_1, None)
    assert torch.equal(layer.dequantised(), written(raw, Kind.Q4_1))
    assert torch.equal(floats_of(torch.from_numpy(raw), Kind.Q4_1, torch.float32), written(raw, Kind.Q4_1))


@built
@named
def test_products_are_those_of_the_dequantised_weight_and_a_row_hangs_on_no_other(other_build, kind, build):
    if build:
        other_build(*build)
    raw, bias = blocks(kind), torch.randn(37).bfloat16()
    layer, x = layer_of(torch.from_numpy(raw), kind, bias), exact_inputs(23, 512)
    whole = layer.product(x)
    wanted, sizes = x.double() @ written(raw, kind).double().T + bias.double(), x.double().abs() @ written(raw, kind).double().abs().T
    assert ((whole.double() - wanted).abs() <= 2e-6 * sizes + 1e-6).all()  # what float32 rounds of sums; offsets cancel what levels add
    for rows in range(1, 18):
        for first in (0, 5):
            assert torch.equal(layer.product(x[first : first + rows]), whole[first : first + rows]), (rows, first)


@built
@pytest.mark.parametrize("fill", [0xFF, 0x80, 0x7F], ids=hex)
@named
def test_sums_of_the_greatest_levels_do_not_overflow(other_build, kind, fill, build):
    """Also -128 of 8 bits, which llama.cpp never writes, and shares of -128 and 255."""
    if build:
        other_build(*build)
    raw = blocks(kind, outputs=16, scale=0.25, fill=fill)
    x = torch.cat([torch.full((2, 512), 127.0), torch.full((1, 512), -127.0)])
    x[1, ::2] = -127
    whole = layer_of(torch.from_numpy(raw), kind, None).product(x).double()
    wanted = x.double() @ written(raw, kind).double().T
    assert ((whole - wanted).abs() <= 1e-6 * (x.double().abs() @ written(raw, kind).double().abs().T)).all()


@named
def test_kernels_are_tried_on_weights_that_are_known(kind, monkeypatch):
    layer = layer_of(torch.from_numpy(blocks(kind)), kind, None)
    refuse_wrong_kernels([layer])
    right = type(layer).product
    monkeypatch.setattr(type(layer), "product", lambda self, x: right(self, x) * 1.05)
    with pytest.raises(UserError, match=f"{type(layer).__name__} multiplies wrongly"):
        refuse_wrong_kernels([layer])


@named
def test_scales_that_are_no_numbers_are_refused(kind):
    with pytest.raises(UserError, match="a block's scale is no number: the file is damaged"):
        layer_of(torch.from_numpy(blocks(kind, scale=np.inf, fill=1)), kind, None)


def test_a_scale_too_great_for_its_offset_is_refused():
    raw = torch.from_numpy(blocks(Kind.Q4_0, scale=20000.0, fill=1))
    with pytest.raises(UserError, match="a block's scale is 2e\\+04, 8 times of which float16 does not hold"):
        layer_of(raw, Kind.Q4_0, None)


def test_what_has_no_kernel_is_dequantised():
    random = np.random.default_rng(0)
    raw = random.integers(0, 100, (3, GGML_QUANT_SIZES[Kind.Q3_K][1]), dtype=np.uint8)
    assert torch.equal(floats_of(torch.from_numpy(raw), Kind.Q3_K, torch.float32), written(raw, Kind.Q3_K))
    with pytest.raises(UserError, match="weights of the kind Q8_1 cannot be read"):
        floats_of(torch.zeros(2, 40, dtype=torch.uint8), Kind.Q8_1, torch.float32)


def test_layers_in_different_blocks_stand_side_by_side_in_torchs_passes():
    layers = [layer_of(torch.from_numpy(blocks(kind, outputs=16, seed=i)), kind, None) for i, kind in enumerate((Kind.Q4_K, Kind.Q6_K, Kind.Q4_K))]
    x = exact_inputs(3, 512)
    assert torch.equal(linear_kernel(layers)(x), torch.cat([layer.product(x) for layer in layers], dim=1))
