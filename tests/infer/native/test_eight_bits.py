"""Linear layers in 8 bits by groups: levels and scales by hand, products beside exact integers, models beside their dequantised weights."""

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import open_runner
from seodang.infer.checkpoint.quantise import quantise
from seodang.infer.kernels.quantised_linear import GROUP, Linear8
from seodang.infer.runners import native_runner
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.native import grouped_linear
from seodang.infer.runners.native.compiler import NotBuilt, built
from seodang.infer.runners.native.grouped_linear import GroupedLinear8, levels_and_scales, missing_kernels, pack8, unpack8
from seodang.infer.runners.native.library import SOURCE
from seodang.infer.runners.native_runner import MANY, NativeRunner
from seodang.infer.runners.ragged import RaggedRunner

BUILDS = [None, ("haswell", "avx2"), ("x86-64", "sse4_1")]


def weight(outputs=50, inputs=96, seed=0):
    """Groups of very different sizes, as a trained layer has them, one of zeros."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randn(outputs, inputs // GROUP, GROUP, generator=generator) * torch.logspace(-3, 1, outputs)[:, None, None]
    groups[1, 0] = 0
    return groups.view(outputs, inputs)


def inputs(rows, width=96, seed=1):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-2, 2, rows)[:, None]


def slowly(layer, x, fused):
    """The product of a layer's levels with those of the inputs, by integers and then in float64: [rows, out]. Levels are rounded at once where the CPU fuses."""
    levels, scales = unpack8(layer.packed, layer.in_features)
    levels, scales = levels[: layer.out_features], scales[: layer.out_features]
    groups = x.view(len(x), -1, GROUP)
    largest = groups.abs().amax(dim=-1)
    by = (127 / largest)[..., None]
    rounded = (groups.double() * by.double() if fused else groups * by).round()
    dots = torch.einsum("rgi,ogi->rog", rounded.double(), levels.view(len(levels), -1, GROUP).double())
    product = (dots * (largest / 127).double()[:, None] * scales.double()).sum(dim=-1)
    return product if layer.bias is None else product + layer.bias.double()


def test_a_group_is_rounded_to_steps_of_a_127th_of_its_largest():
    group = torch.zeros(2, GROUP)
    group[0, :5] = torch.tensor([12.7, -12.7, 0.1, 0.149, -6.36])
    levels, scales = levels_and_scales(group)
    step = torch.tensor(0.1, dtype=torch.float16)
    assert torch.equal(scales, torch.stack([step, 0 * step])[:, None])
    assert levels[0, :6].tolist() == [127, -127, 1, 1, -64, 0] and not levels[1].any()


def test_weights_too_small_for_a_normal_float16_scale_keep_what_a_subnormal_one_can_say():
    tiny = torch.full((1, GROUP), 127 * 2.0**-22)  # a scale of 4 units of 2^-24
    layer = GroupedLinear8(tiny)
    assert torch.equal(layer.dequantised(), tiny)
    torch.testing.assert_close(layer.product(torch.ones(1, GROUP)), torch.full((1, 1), GROUP * 127 * 2.0**-22))


def test_a_weight_beyond_float16_scales_is_refused_with_its_value():
    with pytest.raises(UserError, match=r"weights in few bits have no scale for a weight of 1e\+07: leave weights out"):
        GroupedLinear8(torch.full((1, GROUP), 1e7))


def test_packs_lie_as_the_kernels_read_them_and_come_back():
    levels = torch.arange(18 * 64).view(18, 64).remainder(255).sub(127).to(torch.int8)
    scales = torch.arange(36).view(18, 2).to(torch.float16)
    packed = pack8(levels, scales)
    assert packed.shape == (2, 64 * 16 + 64)  # a byte an input of 16 outputs; 2 scales of 2 bytes for each
    second = packed[1].view(torch.int8)  # outputs 16 and 17, and 14 of zeros
    assert second[:8].tolist() == [*levels[16, :4].tolist(), *levels[17, :4].tolist()] and not second[8:64].any()
    assert second[64:68].tolist() == levels[16, 4:8].tolist()
    assert packed[1, 1024:].view(torch.float16)[[0, 1, 16, 17]].tolist() == [32, 34, 33, 35]
    back, steps = unpack8(packed, 64)
    assert torch.equal(back[:18], levels) and torch.equal(steps[:18], scales) and not back[18:].any()


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build[0] if build else "native")
@pytest.mark.parametrize("outputs, width", [(50, 96), (16, 32), (3, 576), (33, 1536)])
def test_products_are_those_of_the_integers_and_a_row_hangs_on_no_other(other_build, outputs, width, build):
    if build:
        other_build(*build)
    layer, x = GroupedLinear8(weight(outputs, width), torch.randn(outputs)), inputs(70, width)
    whole = layer.product(x)
    torch.testing.assert_close(whole.double(), slowly(layer, x, build is None or build[1] == "avx2"), rtol=1e-5, atol=1e-6 * whole.abs().max().item())
    for rows in range(1, 41):
        for first in (0, 7, 30):
            assert torch.equal(layer.product(x[first : first + rows]), whole[first : first + rows]), (rows, first)


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build[0] if build else "native")
def test_sums_of_the_greatest_levels_do_not_overflow(other_build, build):
    if build:
        other_build(*build)
    signs = torch.where(torch.rand(16, 64, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
    signs[0], signs[1] = 1, -1
    layer, x = GroupedLinear8(127 * signs), 127 * torch.cat([signs, -signs[:1]])
    assert torch.equal(layer.product(x), 127 * (x @ signs.T))


def test_cpus_with_dot_products_of_256_bits_have_code_of_their_own():
    """Which this one may not have: it is compiled, and said what for."""
    try:
        assert b"AVX2 and VNNI" in built(SOURCE, "alderlake").read_bytes()
    except NotBuilt as error:
        pytest.skip(f"this compiler has no such CPUs: {error}")


def test_what_is_not_finite_makes_its_own_row_nan(other_build):
    layer, x = GroupedLinear8(weight()), inputs(4)
    x[1, 40], x[2, 3] = torch.nan, torch.inf
    y = layer.product(x)
    assert y[1:3].isnan().all() and torch.equal(y[[0, 3]], layer.product(x[[0, 3]]))


@pytest.mark.parametrize("kind, changes", [("llama", {}), ("qwen2", {}), ("mistral", {"sliding_window": 6}), ("qwen3", {"vocab_size": 131})])
@pytest.mark.parametrize("read", [12, 2 * MANY], ids=["guesses", "a prompt"])
def test_a_model_in_8_bits_gives_what_its_dequantised_weights_do(varied, dequantised, kind, changes, read):
    model = varied(kind, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=96, **changes)
    quantise(model, "int8")
    tokens = torch.randint(3, 128, (2 * MANY + 8,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        wanted = dequantised(model).double()(input_ids=torch.tensor([tokens])).logits[0]
        rounded = dequantised(model).bfloat16()(input_ids=torch.tensor([tokens])).logits[0]
    runner = open_runner(model)
    assert type(runner) is NativeRunner and runner._laid_out()
    slot = runner.allocate()
    got = torch.cat([runner.forward([slot], [tokens[:read]], [read]), *(runner.forward([slot], [[id]], [1]) for id in tokens[read:])])
    error, allowed = (got.double() - wanted).square().mean().sqrt(), (rounded.double() - wanted).square().mean().sqrt()
    assert error < 3 * allowed


def test_steps_in_8_bits_are_the_same_alone_and_among_others(varied):
    model = varied("llama", hidden_size=64, head_dim=16, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96)
    quantise(model, "int8")
    runner = NativeRunner(model)
    slots = [runner.allocate() for _ in range(MANY)]
    runner.forward(slots, [[5 + i] * (1 + i) for i in range(MANY)], [0] * MANY)
    alone = []
    for i, slot in enumerate(slots):
        alone.append(runner.forward([slot], [[40 + i]], [1]))
        runner.truncate(slot, 1 + i)
    assert len({row[0, 0].item() for row in alone}) == MANY
    for count in range(1, MANY + 1):
        together = runner.forward(slots[:count], [[40 + i] for i in range(count)], [1] * count)
        assert torch.equal(together, torch.cat(alone[:count])), count
        for i in range(count):
            runner.truncate(slots[i], 1 + i)


def test_prompts_are_read_natively_in_calls_of_so_many_rows(varied, monkeypatch):
    model = varied("llama", hidden_size=64, head_dim=16, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96)
    quantise(model, "int8")
    monkeypatch.setattr(RaggedRunner, "_run", None)  # torch's road
    monkeypatch.setattr(DirectRunner, "_run", None)
    prompts = [torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (40, 1, 23)]
    told = []
    for at_once in (512, 64, 16, 9):
        monkeypatch.setattr(native_runner, "AT_ONCE", at_once)
        runner = NativeRunner(model)
        slots = [runner.allocate() for _ in prompts]
        out = runner.observe(slots, prompts, [3, 1, 23], [1])
        told.append([out.logits, out.states[1], runner.forward(slots, [[5], [6], [7]], [1, 1, 1])])
    assert told[0][0].shape == (27, 128) and told[0][0].std() > 0.1
    for other in told[1:]:
        assert all(map(torch.equal, other, told[0]))


def test_a_prompt_that_is_read_both_ways_is_in_one_call_and_close_to_torchs_with_our_products(varied, natively, monkeypatch):
    model = varied("llama", hidden_size=64, head_dim=16, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96)
    quantise(model, "int8")
    monkeypatch.setattr(native_runner, "AT_ONCE", 16)
    tokens = torch.randint(3, 128, (2 * MANY,), generator=torch.Generator().manual_seed(0)).tolist()
    told = []
    for kind in (NativeRunner, DirectRunner):
        runner = kind(model)
        slots = [runner.allocate() for _ in range(2)]
        runner.attend_both_ways(slots[1], True)
        told.append(runner.forward(slots, [[5], tokens], [0, len(tokens)]).float())
    assert natively == [1, len(tokens)]
    assert not torch.equal(*told) and (told[0] - told[1]).square().mean().sqrt() < 0.1 * told[0].std()


@pytest.mark.parametrize("reason", ["off", "not built", "wrong"])
def test_without_the_kernels_8_bits_are_torchs(fresh_tiny, monkeypatch, reason):
    monkeypatch.setattr(grouped_linear, "wrong_kernels", grouped_linear.wrong_kernels.__wrapped__)
    if reason == "off":
        monkeypatch.setenv("SEODANG_NATIVE", "0")
    elif reason == "not built":
        monkeypatch.setattr(grouped_linear, "library", lambda: (_ for _ in ()).throw(NotBuilt("no C compiler is there")))
    else:
        right = GroupedLinear8.product
        monkeypatch.setattr(GroupedLinear8, "product", lambda self, x: right(self, x) * 1.05)
    said = {"off": "SEODANG_NATIVE=0", "not built": "no C compiler", "wrong": "multiplies wrongly"}
    assert said[reason] in missing_kernels()
    model = fresh_tiny("llama")
    quantise(model, "int8")
    assert type(model.lm_head) is Linear8
