"""The runner: the same logits as the model itself, however rows are cut into passes."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from seodang.data.errors import UserError
from seodang.infer.runners.architecture import context_limit
from seodang.infer.runners.native_runner import NativeRunner
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.ragged import RaggedRunner

KINDS = ["llama", "gpt2", "qwen3", "mistral", "gemma", "gemma2", "granite", "cohere"]


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def whole(model, tokens: list[int]) -> torch.Tensor:
    """The model's own logits of a whole row, [n, vocab], without any cache."""
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_the_models_own_however_the_rows_are_cut(tiny, kind):
    model = tiny(kind)
    runner = open_runner(model)
    assert isinstance(runner, RaggedRunner)
    a, b, c = ids(20, 1), ids(13, 2), ids(9, 3)
    rows = [runner.allocate() for _ in range(3)]
    first = runner.forward(rows, [a[:7], b[:1], c[:9]], [7, 1, 1])  # prompts of unlike lengths
    second = runner.forward([rows[1], rows[0]], [b[1:2], a[7:8]], [1, 1])  # steps, in another order
    third = runner.forward([rows[0], rows[1]], [a[8:20], b[2:3]], [12, 1])  # a long piece beside a step
    fourth = runner.forward([rows[1]], [b[3:13]], [10])
    got_a = torch.cat([first[:7], second[1:2], third[:12]])
    got_b = torch.cat([first[7:8], second[:1], third[12:], fourth])
    torch.testing.assert_close(got_a, whole(model, a), rtol=0, atol=4e-5)
    torch.testing.assert_close(got_b, whole(model, b), rtol=0, atol=4e-5)
    torch.testing.assert_close(first[8:], whole(model, c)[-1:], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_forks_and_truncated_rows_go_on_as_if_nothing_had_been_there(tiny, kind):
    model = tiny(kind)
    runner = open_runner(model)
    stem, guess, left, right = ids(8, 1), ids(4, 2), ids(3, 3), ids(5, 4)
    row = runner.allocate()
    runner.forward([row], [stem], [1])
    runner.forward([row], [guess], [4])
    runner.truncate(row, len(stem))  # the guess was wrong
    [fork] = runner.fork([row])
    logits = runner.forward([row, fork], [left, right], [1, 1])
    torch.testing.assert_close(logits[0], whole(model, stem + left)[-1], rtol=0, atol=2e-5)
    torch.testing.assert_close(logits[1], whole(model, stem + right)[-1], rtol=0, atol=2e-5)
    assert (runner.length(row), runner.length(fork)) == (11, 13)


@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-12), (torch.bfloat16, 0.3)])
def test_runs_in_the_models_dtype(fresh_tiny, dtype, error):
    model = fresh_tiny("llama").to(dtype)
    tokens = ids(12)
    runner = open_runner(model)
    row = runner.allocate()
    runner.forward([row], [tokens[:8]], [1])
    steps = torch.cat([runner.forward([row], [[token]], [1]) for token in tokens[8:]])
    assert steps.dtype == (torch.float32 if isinstance(runner, NativeRunner) else dtype)  # which need not round them
    torch.testing.assert_close(steps.to(dtype), whole(model, tokens)[8:], rtol=0, atol=error)


def test_a_row_may_outgrow_its_place_among_others(tiny):
    model = tiny("llama", max_position_embeddings=2048)
    runner = open_runner(model)
    short, long = ids(5, 1), ids(600, 2)
    rows = [runner.allocate(), runner.allocate()]
    runner.forward(rows, [short, long[:200]], [1, 1])
    for start in range(200, 600, 100):
        runner.forward([rows[1]], [long[start : start + 100]], [1])
    logits = runner.forward(rows, [[7], [8]], [1, 1])
    torch.testing.assert_close(logits[0], whole(model, [*short, 7])[-1], rtol=0, atol=5e-5)
    torch.testing.assert_close(logits[1], whole(model, [*long, 8])[-1], rtol=0, atol=5e-5)


def test_the_model_stays_its_owners(fresh_tiny):
    model = fresh_tiny("llama", attention_dropout=0.5)
    tokens = torch.tensor([ids(10)])
    model.train()
    model.model.layers[0].eval()  # a caller may hold one layer still
    before = {name: module.training for name, module in model.named_modules()}
    runner = open_runner(model)
    first = runner.forward([runner.allocate()], [tokens[0].tolist()], [1])
    again = runner.forward([runner.allocate()], [tokens[0].tolist()], [1])
    assert torch.equal(first, again)  # no dropout
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.config._attn_implementation == "sdpa"
    model(input_ids=tokens, labels=tokens).loss.backward()  # and goes on training
    assert model.lm_head.weight.grad.abs().sum() > 0
    torch.testing.assert_close(whole(model.eval(), tokens[0].tolist())[-1:], first, rtol=0, atol=2e-5)


def test_the_model_is_given_back_when_a_pass_fails(fresh_tiny):
    model = fresh_tiny("llama")
    runner = open_runner(model)
    model.config.vocab_size = 10_000  # more than it has
    with pytest.raises(IndexError):
        runner.forward([runner.allocate()], [[5000]], [1])
    assert model.config._attn_implementation == "sdpa"


def test_an_adapter_takes_part(fresh_tiny):
    model = get_peft_model(fresh_tiny("llama"), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.eval()
    tokens = ids(9)
    adapted = open_runner(model)
    got = adapted.forward([adapted.allocate()], [tokens], [9])
    torch.testing.assert_close(got, whole(model, tokens), rtol=0, atol=2e-5)
    with model.disable_adapter():
        assert (whole(model, tokens) - got).abs().max() > 0.1


def test_refresh_forgets_what_the_old_weights_computed(fresh_tiny):
    model = fresh_tiny("llama")
    runner = open_runner(model)
    runner.forward([runner.allocate()], [ids(9)], [1])
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    runner.refresh()
    assert runner.live == 0
    got = runner.forward([runner.allocate()], [ids(9)], [9])
    torch.testing.assert_close(got, whole(model, ids(9)), rtol=0, atol=5e-5)


def test_logits_are_computed_where_they_are_wanted_alone(fresh_tiny):
    model = fresh_tiny("llama")
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    runner = open_runner(model)
    seen.clear()  # of the probe
    rows = [runner.allocate(), runner.allocate()]
    logits = runner.forward(rows, [ids(10), ids(6)], [1, 3])
    assert seen == [(1, 4, 128)] and logits.shape == (4, 128)
    assert (runner.passes, runner.positions) == (1, 16)


def test_windows_that_an_architecture_puts_into_the_mask_alone_are_honoured():
    sizes = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2_moe", **sizes, **experts, **window)).eval()
    runner = open_runner(model)
    row = runner.allocate()
    runner.forward([row], [ids(12)[:6]], [1])
    got = torch.cat([runner.forward([row], [[token]], [1]) for token in ids(12)[6:]])
    torch.testing.assert_close(got, whole(model, ids(12))[6:], rtol=0, atol=2e-5)


def test_attention_sinks_are_honoured():
    sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "num_local_experts": 2, "num_experts_per_tok": 1}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_oss", **sizes, **heads)).eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks)
    runner = open_runner(model)
    row = runner.allocate()
    runner.forward([row], [ids(12)[:6]], [1])
    got = torch.cat([runner.forward([row], [[token]], [1]) for token in ids(12)[6:]])
    torch.testing.assert_close(got, whole(model, ids(12))[6:], rtol=0, atol=2e-5)


def test_refuses_by_name_models_that_do_not_speak_from_left_to_right(fresh_tiny):
    with pytest.raises(UserError, match="t5 is an encoder-decoder"):
        RaggedRunner(fresh_tiny("t5"))
    with pytest.raises(UserError, match="both directions"):
        open_runner(fresh_tiny("llama", is_causal=False))
    with pytest.raises(UserError, match="no language model head"):
        open_runner(fresh_tiny("llama").model)
    with pytest.raises(UserError, match="expected a transformers model"):
        open_runner(torch.nn.Linear(2, 2))


def test_takes_the_limit_from_the_config(tiny):
    assert open_runner(tiny("llama")).limit == 256
    assert open_runner(tiny("gpt2")).limit == 256
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}
    long = tiny("llama", rope_parameters=rope)
    assert open_runner(long).limit == 256 and context_limit(long) == 64  # beyond it, one long row of the model's own pass changes the others
    dynamic = tiny("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    assert open_runner(dynamic).limit == 512 and context_limit(dynamic) == 256


@pytest.mark.parametrize(
    "rows, ids, keep, words",
    [
        ([0], [[5, 128]], [1], "slot 0 has the id 128, but the model's ids are those from 0 to 127"),
        ([0, 1], [[5], [-1]], [1, 1], "slot 1 has the id -1"),
        ([0], [[5], [6]], [1], "1 slots, 2 lists of ids and 1 numbers of logits"),
        ([0, 0], [[5], [6]], [1, 1], "name one twice"),
        ([0, 1], [[5], []], [1, 0], "slot 1 has no new ids"),
        ([0], [[5, 6]], [3], "slot 0 is to keep the logits of 3 positions, but has 2 new ids"),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "bart", "mamba", "falcon"])
def test_what_no_runner_can_run_is_refused_before_anything_is_computed(tiny, kind, rows, ids, keep, words):
    runner = open_runner(tiny(kind) if kind in ("llama", "bart") else other(kind))
    for _ in range(2):
        runner.allocate(*([[5]] if kind == "bart" else []))
    with pytest.raises(UserError, match=words):
        runner.forward(rows, ids, keep)
    assert (runner.passes, runner.length(0)) == (0, 0)
    if kind != "mamba":
        with pytest.raises(UserError, match="slot 0 has 0 positions in the cache and cannot be cut to 1"):
            runner.truncate(0, 1)


def other(kind: str):
    """A tiny model of a runner of its own."""
    sizes = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 1}
    more = {"mamba": {"state_size": 4, "intermediate_size": 64}, "falcon": {"num_attention_heads": 4, "alibi": True}}[kind]
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **more)).eval()


def test_a_source_of_ids_beyond_the_encoder_is_refused(tiny):
    with pytest.raises(UserError, match="the source has the id 128, but the model's ids are those from 0 to 127"):
        open_runner(tiny("t5")).allocate([5, 128])
