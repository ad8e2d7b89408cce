"""The direct runner: the same numbers as the transformers model, from the model's own weights."""

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForCausalLM

from seodang.infer.kernels.fused_projections import fuse_projections, fused_view
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.layers import supports_direct
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.ragged import RaggedRunner

QWEN2 = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
KINDS = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3 rotation": ("llama", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}}),
    "yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}}),
    "gelu": ("llama", {"hidden_act": "gelu"}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", QWEN2),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gpt2": ("gpt2", {}),
    "phi3": ("phi3", {}),
    "phi3 that turns in part": ("phi3", {"sliding_window": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "olmo2": ("olmo2", {"attention_bias": True}),
    "smollm3": ("smollm3", {}),
    "smollm3 with windows": ("smollm3", {"use_sliding_window": True, "sliding_window": 5}),
    "qwen3_moe": ("qwen3_moe", {"norm_topk_prob": True}),
    "qwen3_moe with a plain layer": ("qwen3_moe", {"mlp_only_layers": [1], "use_sliding_window": True, "sliding_window": 5}),
    "gpt2 scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": 48}),
}  # fmt: skip


@pytest.fixture
def exact(fresh_tiny):
    """`exact(name)`: a random model in float64, its norms and biases random too."""
    def build(name):
        kind, changes = KINDS[name]
        model = fresh_tiny(kind, **changes)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
        return model.double()

    return build


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def whole(model, tokens: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def error_of(name: str) -> float:
    """What transformers itself loses: its Gemma 2 takes the softmax in float32."""
    return 1e-5 if name == "gemma2" else 1e-9


def close(got, wanted, error=1e-9):
    torch.testing.assert_close(got, wanted, rtol=0, atol=error)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_logits_equal_the_models_own_and_the_ragged_runners(exact, name, together):
    model = exact(name)
    if together:
        fuse_projections(model)
    runner, ragged = open_runner(model), RaggedRunner(model)
    assert type(runner) is DirectRunner
    texts = [ids(30, 1), ids(30, 2), ids(30, 3)]
    want = [whole(model, tokens) for tokens in texts]
    rows, other = [runner.allocate() for _ in texts], [ragged.allocate() for _ in texts]
    at = [0, 0, 0]
    for cut in ([7, 1, 9], [1, 1, 1], [1, 2, 1], [1, 1, 1], [12, 1, 3], [1, 1, 1]):  # prompts, steps, drafts
        new = [tokens[a : a + c] for tokens, a, c in zip(texts, at, cut)]
        keep = [min(2, c) for c in cut]
        got = runner.forward(rows, new, keep)
        close(got, ragged.forward(other, new, keep))
        at = [a + c for a, c in zip(at, cut)]
        close(got, torch.cat([w[a - k : a] for w, a, k in zip(want, at, keep)]), error_of(name))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2"])
def test_steps_of_rows_side_by_side_equal_each_rows_own(exact, name):
    model = exact(name)
    runner = open_runner(model)
    texts = [ids(12, seed) for seed in range(5)]
    rows = [runner.allocate() for _ in texts]
    runner.forward(rows, [tokens[:4] for tokens in texts], [1] * 5)
    for i in range(4, 12):  # all at the same position: written as one slice
        got = runner.forward(rows, [[tokens[i]] for tokens in texts], [1] * 5)
        close(got, torch.stack([whole(model, tokens)[i] for tokens in texts]), error_of(name))
    assert runner.forward(rows[:1], [[7]], [0]).shape == (0, 128)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_forks_copies_and_truncated_rows_go_on_as_if_nothing_had_been_there(exact, name):
    model = exact(name)
    runner = open_runner(model)
    stem, guess, left, right = ids(8, 1), ids(4, 2), ids(3, 3), ids(5, 4)
    row = runner.allocate()
    runner.forward([row], [stem], [1])
    runner.forward([row], [guess], [4])
    runner.truncate(row, len(stem))
    [fork] = runner.fork([row])
    logits = runner.forward([row, fork], [left, right], [1, 1])
    close(logits, torch.stack([whole(model, stem + left)[-1], whole(model, stem + right)[-1]]), error_of(name))
    runner.copy(fork, row, len(stem))
    close(runner.forward([row], [[9]], [1])[0], whole(model, [*stem, *right, 9])[-1], error_of(name))


def test_a_row_may_outgrow_its_place_among_others(exact):
    model = exact("llama")
    runner = open_runner(model)
    rows, long = [runner.allocate(), runner.allocate()], ids(250, 2)
    runner.forward(rows, [ids(5, 1), long[:100]], [1, 1])
    for i in range(100, 250, 50):
        runner.forward([rows[1]], [long[i : i + 50]], [1])
    rows.append(runner.allocate())
    logits = runner.forward(rows, [[7], [8], ids(3, 5)], [1, 1, 1])
    close(logits[:2], torch.stack([whole(model, [*ids(5, 1), 7])[-1], whole(model, [*long, 8])[-1]]))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_hidden_states_and_hidden_positions_are_the_ragged_runners(exact, name):
    model = exact(name)
    runner, ragged = open_runner(model), RaggedRunner(model)
    found = []
    for each in (runner, ragged):
        rows = [each.allocate(), each.allocate()]
        if name != "gemma2":  # which has a window
            each.mask(rows[0], [2, 3, 9])
        each.observe(rows, [ids(6, 1), ids(4, 2)], [1, 2], [0, 1, 2])
        found.append(each.observe(rows, [ids(4, 3), [5]], [2, 1], [0, 1, 2]))
        found.append(each.observe(rows, [[6], [7]], [1, 1], [1]))
    for got, wanted in zip(found[:2], found[2:]):
        close(got.logits, wanted.logits)
        assert got.states.keys() == wanted.states.keys()
        for layer in got.states:
            close(got.states[layer], wanted.states[layer])
    assert type(open_runner(model)) is DirectRunner  # what collects hidden states leaves hooks behind that change nothing


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_is_as_near_to_the_exact_logits_as_transformers_bfloat16(exact, name):
    model = exact(name).bfloat16().double()
    wanted = whole(model, ids(20))
    model = model.bfloat16()
    runner = open_runner(model)
    row = runner.allocate()
    first = runner.forward([row], [ids(20)[:15]], [15])
    got = torch.cat([first, *(runner.forward([row], [[id]], [1]) for id in ids(20)[15:])])
    ours, theirs = (logits.double().sub(wanted).square().mean().sqrt() for logits in (got, whole(model, ids(20))))
    assert ours < 1.3 * theirs


def test_a_change_of_the_weights_is_seen_in_the_next_pass(exact):
    model = exact("qwen3")
    fuse_projections(model)
    runner = open_runner(model)
    tokens = ids(9)
    runner.forward([runner.allocate()], [tokens], [1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=torch.tensor([tokens]), labels=torch.tensor([tokens])).loss.backward()
    optimizer.step()
    close(runner.forward([runner.allocate()], [tokens], [9]), whole(model, tokens))
    model.float().double()  # moves every parameter
    close(runner.forward([runner.allocate()], [tokens], [9]), whole(model, tokens))
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)  # replaces one
    runner.refresh()
    close(runner.forward([runner.allocate()], [tokens], [9]), whole(model, tokens))



@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_adapter_put_in_and_a_model_converted_later_are_seen_after_refresh(exact, name):
    model, tokens = exact(name), ids(9)
    runner = open_runner(model)
    model.float()  # no row has a past yet
    close(runner.forward([runner.allocate()], [tokens], [9]), whole(model, tokens), 1e-4)
    target = "c_attn" if name == "gpt2" else "v_proj"
    adapted = get_peft_model(model.double(), LoraConfig(target_modules=[target], init_lora_weights=False, fan_in_fan_out=name == "gpt2"))
    for state in (adapted, adapted.merge_and_unload):
        model = state if state is adapted else state()
        runner.refresh()
        row = runner.allocate()
        close(runner.forward([row], [tokens[:8]], [8]), whole(model, tokens)[:8])
        close(runner.forward([row], [tokens[8:]], [1]), whole(model, tokens)[8:])


def test_weights_laid_together_are_one_product_without_a_copy(exact):
    model = exact("llama with biases")
    attention = model.model.layers[0].self_attn
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    before = [linear.weight.detach().clone() for linear in parts]
    assert fused_view([linear.weight for linear in parts]) is None
    fuse_projections(model)
    joined = fused_view([linear.weight for linear in parts])
    assert torch.equal(joined, torch.cat(before)) and all(map(torch.equal, before, [linear.weight for linear in parts]))
    with torch.no_grad():
        attention.k_proj.weight.zero_()
    assert not joined[32:48].any() and joined[:32].any() and joined[48:].any()  # a view of the parameters themselves


def test_a_model_laid_together_trains_and_saves_as_before(fresh_tiny, tmp_path):
    apart, joined = fresh_tiny("llama"), fresh_tiny("llama")
    fuse_projections(joined)
    tokens = torch.tensor([ids(12)])
    for model in (apart, joined):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(3):
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    joined.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for (name, a), b, c in zip(apart.named_parameters(), joined.parameters(), loaded.parameters()):
        assert torch.equal(a, b) and torch.equal(b, c), name


def test_a_weight_that_was_moved_by_itself_is_found_once_a_slot_is_new_and_a_model_at_once(fresh_tiny):
    model = fresh_tiny("llama")
    runner = open_runner(model)
    slot = runner.allocate()
    runner.forward([slot], [ids(5)], [1])
    model.model.layers[1].mlp.down_proj.weight.data = torch.zeros(model.model.layers[1].mlp.down_proj.weight.shape)
    moved = runner.forward([runner.allocate()], [ids(5)], [1])
    close(moved, whole(model, ids(5))[-1:], 2e-5)
    model.double()
    assert runner._ready("cpu") and runner._addresses == runner.decoder.addresses()


def test_models_with_something_put_in_go_through_transformers(fresh_tiny):
    assert supports_direct(fresh_tiny("llama"))
    adapted = get_peft_model(fresh_tiny("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    assert type(open_runner(adapted)) is RaggedRunner
    hooked = fresh_tiny("llama")
    hooked.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output * 2)
    assert type(open_runner(hooked)) is RaggedRunner
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert not supports_direct(fresh_tiny("llama", rope_parameters=dynamic))
    half = fresh_tiny("llama")
    half.lm_head.to(torch.bfloat16)
    assert not supports_direct(half)
    for kind in ("granite", "cohere"):
        assert not supports_direct(fresh_tiny(kind))
    assert not supports_direct(type("Mine", (type(hooked),), {})(hooked.config))


def test_autocast_is_honoured(fresh_tiny):
    model = fresh_tiny("llama")
    runner, ragged = open_runner(model), RaggedRunner(model)
    with torch.autocast("cpu", torch.bfloat16):
        got = [each.forward([each.allocate()], [ids(9)], [9]) for each in (runner, ragged)]
    assert torch.equal(*got) and got[0].dtype == torch.bfloat16


def test_what_saves_by_storages_finds_every_weight_of_a_model_laid_together(fresh_tiny, tmp_path):
    model = fresh_tiny("llama", attention_bias=True)
    fuse_projections(model)
    Accelerator(cpu=True).save_model(model, str(tmp_path))  # of tensors that share a storage it keeps one
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(saved[name], weight) for name, weight in model.state_dict().items())


def test_weights_laid_together_leave_nothing_behind_when_they_move(fresh_tiny):
    model = fresh_tiny("llama")
    fuse_projections(model)
    attention = model.model.layers[0].self_attn
    parts = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    alive = StorageWeakRef(fused_view(parts).untyped_storage())
    assert not alive.expired()
    model.bfloat16()
    assert alive.expired() and fused_view(parts) is None


def test_a_large_state_in_float16_does_not_overflow_in_the_norm(fresh_tiny):
    model = fresh_tiny("llama").half()
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = torch.zeros(32).index_fill(0, torch.tensor(3), 30_000.0)
        model.model.layers[0].input_layernorm.weight[3] = 4.0
    runner = open_runner(model)
    assert type(runner) is DirectRunner
    close(runner.forward([runner.allocate()], [[5, 6, 7]], [3]), whole(model, [5, 6, 7]), 0.05)
