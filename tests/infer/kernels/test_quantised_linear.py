"""Weights in 8 and 4 bits: the products, the fit of the 4 bits, and whole models."""

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import open_runner
from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.quantise import quantise
from seodang.infer.kernels import int4_layout
from seodang.infer.kernels import quantised_linear as quantised
from seodang.infer.kernels.int4_layout import BLOCK
from seodang.infer.kernels.quantised_linear import GROUP, Linear4, Linear8, four_bits, padded, rounded_rows
from seodang.infer.runners.direct import DirectRunner


def weight(out: int = 100, width: int = 96) -> torch.Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(0)) * 0.1


def inputs(rows: int, width: int = 96) -> torch.Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)).bfloat16()
    x[:, 5] *= 50  # an outlier, as real states have
    return x


def test_8_bits_round_each_weight_by_at_most_half_a_step():
    linear = Linear8(weight())
    step = linear.scale.float()[:100, None]
    assert ((linear.dequantised() - weight()).abs() <= 0.51 * step + 1e-6).all()
    assert linear.weight.dtype == torch.int8 and len(linear.weight) % BLOCK == 0


@pytest.mark.parametrize("kind", [Linear8, Linear4])
@pytest.mark.parametrize("rows", [1, 3, 5, 6, 17, 63, 64, 100])
@pytest.mark.parametrize("fast", [False, True])
def test_the_product_is_that_with_the_dequantised_weight_whatever_the_cpu_is_fast_at(kind, rows, fast, monkeypatch):
    monkeypatch.setattr(quantised, "integer_product_is_fast", lambda: fast)
    monkeypatch.setattr(quantised, "cpu_has_bfloat16", lambda: fast)
    bias = torch.randn(100)
    linear, x = kind(weight(), bias), inputs(rows)
    wanted = x.double() @ linear.dequantised().double().T + bias.bfloat16().double()
    size = x.double().abs() @ linear.dequantised().double().abs().T  # what rounding errors are measured by
    assert ((linear.product(x).double() - wanted).abs() <= 2**-7 * size).all()
    assert linear(x[None]).shape == (1, rows, 100)


def test_integers_are_multiplied_only_where_their_largest_products_come_out_right(monkeypatch):
    def overflowing(a, b):
        return (a.int()[:, None] * b.t().int()).view(len(a), b.shape[1], -1, 2).sum(-1).clamp(-32768, 32767).sum(-1)

    monkeypatch.setattr(quantised, "integer_product_is_fast", lambda: True)
    assert Linear8(weight()).borders() == (6,) and Linear8(weight(), always=True).borders() == (1,)
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: overflowing((a.int() + 128), b) - 128 * b.int().sum(0))  # pairs of 0..255 by -127..127
    monkeypatch.setattr(quantised, "integer_product_is_exact", quantised.integer_product_is_exact.__wrapped__)
    assert Linear8(weight(), always=True).borders() == (64,)


def test_one_term_of_the_inputs_loses_what_half_a_step_can_and_two_lose_nothing():
    x = inputs(9)
    (one, scale), (two, _) = rounded_rows(x, 1), rounded_rows(x, 2)
    assert ((one * scale - x).abs() <= 0.501 * scale).all()
    assert ((two[:9] * scale + two[9:] * scale / 254 - x).abs() <= 0.51 / 254 * scale).all()
    zeros, scale = rounded_rows(torch.zeros(2, 32, dtype=torch.bfloat16), 2)
    assert not zeros.any() and scale.isfinite().all()


@pytest.mark.parametrize("kind", [Linear8, Linear4])
@pytest.mark.parametrize("rows", [5, 40, 100])
def test_a_row_is_the_same_whatever_the_other_rows_hold(kind, rows):
    linear, x = kind(weight()), inputs(rows)
    other = x.clone()
    other[1:] = 1000 * torch.randn(rows - 1, 96)
    assert torch.equal(linear.product(x)[0], linear.product(other)[0])


def test_4_bits_hold_what_was_in_4_bits_before():
    """Sixteen levels of a scale and a zero that bfloat16 holds, as in a Q4_1 file, come back as they were."""
    levels = torch.randint(0, 16, (BLOCK, 4, GROUP), generator=torch.Generator().manual_seed(0))
    levels[..., 0], levels[..., 1] = 0, 15
    was = ((levels - 8) * 0.0625 + 0.25).view(BLOCK, -1)
    found, scale, zero = four_bits(was)
    assert torch.equal((found.view_as(levels) - 8) * scale[..., None].float() + zero[..., None].float(), was.view_as(levels))
    torch.testing.assert_close(Linear4(was).dequantised(), was)


def test_4_bits_are_fitted_better_than_between_the_extremes_of_a_group():
    groups = weight(128, 512).view(-1, GROUP)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    plain = ((groups - low) / (high - low) * 15).round() / 15 * (high - low) + low
    fitted = Linear4(groups.view(128, 512)).dequantised().view_as(groups)
    assert (fitted - groups).square().sum() < 0.9 * (plain - groups).square().sum()


def test_a_group_of_one_value_keeps_it():
    constant = torch.full((BLOCK, GROUP), 0.75)
    assert torch.equal(Linear4(constant).dequantised(), constant)
    assert not Linear4(torch.zeros(BLOCK, GROUP)).dequantised().any()


def halves(block: int):
    """Bytes whose lower half is of a block's first rows and whose upper half of the others, as with AVX2 (32) and AVX512 (64)."""
    return lambda levels: join(*levels.view(-1, 2, block // 2, levels.shape[1]).unbind(1), levels)


def neighbours(levels):
    """Bytes of two neighbouring rows, 32 rows together, as without AVX2."""
    return join(*levels.view(-1, 16, 2, levels.shape[1]).unbind(2), levels)


def join(lower, upper, levels):
    return (lower + 16 * upper).transpose(1, 2).to(torch.uint8).reshape(len(levels), -1)


@pytest.mark.parametrize("packing", [halves(32), halves(64), neighbours], ids=["avx2", "avx512", "default"])
def test_the_layout_of_4_bits_is_found_by_packing_known_ones(packing, monkeypatch):
    levels = torch.randint(0, 16, (192, 96), dtype=torch.int32)
    monkeypatch.setattr(int4_layout, "pack", packing)
    monkeypatch.setattr(int4_layout, "found_layout", int4_layout.found_layout.__wrapped__)
    assert torch.equal(int4_layout.unpack(packing(levels), 96).int(), levels)


def test_a_layout_that_no_order_of_rows_explains_is_refused(monkeypatch):
    monkeypatch.setattr(int4_layout, "pack", lambda levels: halves(32)(levels.flip(1)))  # columns from the end
    with pytest.raises(UserError, match="packs 4 bits in an unknown order"):
        int4_layout.found_layout.__wrapped__()


@pytest.mark.parametrize(
    ("weights", "kernel", "named"),
    [
        ("int8", "_product_of_integers", "Linear8 .* 32 inputs and 6 rows"),
        ("int8", "_few_rows", "Linear8 .* 32 inputs and 1 rows"),
        ("int4", "_product_of_floats", "Linear4 .* 32 inputs and 64 rows"),
        ("int4", "_few_rows", "Linear4 .* 32 inputs and 1 rows"),
    ],
)
def test_a_kernel_that_multiplies_wrongly_is_refused_when_the_model_is_opened(fresh_tiny, weights, kernel, named, monkeypatch):
    monkeypatch.setattr(quantised, "integer_product_is_fast", lambda: True)
    monkeypatch.setenv("SEODANG_NATIVE", "0")
    kind = Linear8 if weights == "int8" else Linear4
    right = getattr(kind, kernel)
    monkeypatch.setattr(kind, kernel, lambda self, x: right(self, x) * 1.05)
    with pytest.raises(UserError, match=named + r" the product is off by 0\.0[456]\d* of its size"):
        quantise(fresh_tiny("llama"), weights)


def test_weights_in_the_order_of_another_cpu_are_refused_when_the_model_is_opened(fresh_tiny, monkeypatch):
    monkeypatch.setenv("SEODANG_NATIVE", "0")
    upside_down = tuple(reversed(int4_layout.found_layout()))
    monkeypatch.setattr(int4_layout, "found_layout", lambda: upside_down)
    with pytest.raises(UserError, match=r"Linear4 .* 64 rows the product is off by 1\.\d+ of its size, where 0.02 is allowed"):
        quantise(fresh_tiny("llama"), "int4")


def test_padding_adds_rows_of_zeros_to_whole_blocks():
    assert padded(torch.ones(65, 4)).sum(dim=1).tolist() == [4.0] * 65 + [0.0] * 63


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gemma2", "gpt2", "smollm3", "olmo2", "phi3"])
def test_a_quantised_model_computes_what_its_dequantised_weights_do(fresh_tiny, kind, weights, monkeypatch):
    """Against the same architecture with the dequantised weights, in float64: what is left is rounding, bfloat16's and that of inputs."""
    monkeypatch.setenv("SEODANG_NATIVE", "0")
    torch.manual_seed(0)
    model, twin = fresh_tiny(kind), fresh_tiny(kind)
    quantise(model, weights)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in twin.named_modules():
        stand_in = modules.get(name)
        if hasattr(stand_in, "whole"):
            module.weight.data = stand_in.whole.dequantised()[stand_in.start : stand_in.stop]
        elif hasattr(stand_in, "dequantised"):
            turned = kind == "gpt2" and name != "lm_head"
            part = stand_in.dequantised()
            module.weight = torch.nn.Parameter(part.T.contiguous() if turned else part)  # a tied head is the head's own
    tokens = torch.randint(3, 128, (20,)).tolist()
    with torch.no_grad():
        wanted = twin.double()(input_ids=torch.tensor([tokens])).logits[0]
        through_transformers = model(input_ids=torch.tensor([tokens])).logits[0].double()
        rounded = twin.bfloat16()(input_ids=torch.tensor([tokens])).logits[0].double()
    runner = open_runner(model)
    assert type(runner) is DirectRunner
    row = runner.allocate()
    got = torch.cat([runner.forward([row], [tokens[:12]], [12]), *(runner.forward([row], [[id]], [1]) for id in tokens[12:])]).double()
    allowed = (3 if weights == "int8" else 1.5) * (rounded - wanted).square().mean().sqrt()
    assert (got - wanted).square().mean().sqrt() < allowed and (through_transformers - wanted).square().mean().sqrt() < allowed


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_no_float_weights_stay_but_the_embedding_and_the_norms(fresh_tiny, weights):
    model = fresh_tiny("llama", tie_word_embeddings=True)
    quantise(model, weights)
    left = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    assert left == {"model.embed_tokens.weight"}
    assert {b.dtype for n, b in model.named_buffers() if "weight" in n or "packed" in n} <= {torch.int8, torch.uint8}
    assert model.dtype == torch.bfloat16 and not any(p.requires_grad for p in model.parameters())


def test_refuses_what_cannot_be_quantised_by_name(fresh_tiny, tmp_path):
    with pytest.raises(UserError, match="choose int8 or int4"):
        load("default", weights="int3")
    with pytest.raises(UserError, match="computes in bfloat16, got dtype='float32'"):
        load("default", weights="int8", dtype="float32")
    with pytest.raises(UserError, match="computes on the CPU, got device='cuda'"):
        load("default", weights="int8", device="cuda")
    with pytest.raises(UserError, match="not for granite"):
        quantise(fresh_tiny("granite"), "int8")
    with pytest.raises(UserError, match="groups of 32, and llama's .* has 48"):
        quantise(fresh_tiny("llama", intermediate_size=48), "int4")
    model = fresh_tiny("llama")
    quantise(model, "int8")
    with pytest.raises(UserError, match="cannot be saved by save_pretrained: `seodang export MODEL FOLDER --weights int4`"):
        model.save_pretrained(tmp_path)


def test_an_adapter_is_merged_before_quantising(fresh_tiny, tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = fresh_tiny("llama", vocab_size=len(tokenizer))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    model, _ = load(tmp_path / "base", adapter=tmp_path / "adapter", weights="int8")
    merged = adapted.merge_and_unload().model.layers[0].mlp.down_proj.weight
    error = (model.model.layers[0].mlp.down_proj.dequantised() - merged).abs().amax()
    assert error <= merged.abs().amax() / 254 * 1.02


def test_an_adapter_that_no_weights_can_hold_is_named(fresh_tiny, tiny_tokenizer, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    base = fresh_tiny("llama")
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(tmp_path / "adapter")
    for asked in ({"weights": "int8"}, {"kv_cache_dtype": "int8"}):
        with pytest.raises(UserError, match="is an adapter of the kind PROMPT_TUNING, which no weights can hold"):
            load(tmp_path / "base", adapter=tmp_path / "adapter", **asked)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_layers_below_are_read_through_a_head_in_few_bits(fresh_tiny, weights):
    model = fresh_tiny("llama")
    quantise(model, weights)
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    wanted = states.double() @ model.lm_head.dequantised().double().T
    found = open_runner(model).head(states).double()
    assert ((found - wanted).abs() <= 0.02 * (states.double().abs() @ model.lm_head.dequantised().double().abs().T)).all() and found.std() > 0.5


@pytest.mark.full
def test_speaks_in_4_bits(tokenizer):
    from seodang.infer import SamplingParams, generate

    model, tokenizer = load("default", weights="int4")
    question = [{"role": "user", "content": "Which country is the city of Suwon located in?"}]
    [result] = generate(model, tokenizer, [question], SamplingParams(temperature=0.0, max_new_tokens=24))
    assert "Korea" in result.text
