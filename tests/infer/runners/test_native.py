"""The native runner: the numbers of the transformers model in float64, to the rounding of its own dtype, whatever a pass is made of."""

import copy
import shlex

import pytest
import torch

from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.native.compiler import compilers
from seodang.infer.runners.native_runner import MANY, NativeRunner, speaks_natively
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.ragged import RaggedRunner

ODD = {"hidden_size": 54, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "intermediate_size": 75, "vocab_size": 131}
KINDS = {
    "llama": ("llama", {}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "sizes that no vector divides": ("llama", {**ODD, "attention_bias": True, "mlp_bias": True}),
    "sizes of whole vectors": ("llama", {"hidden_size": 128, "head_dim": 64, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "one head": ("llama", {"num_attention_heads": 1, "num_key_value_heads": 1}),
    "a key head for each": ("llama", {"num_key_value_heads": 4}),
    "three heads a key head": ("llama", {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "llama3": ("llama", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}}),
    "yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}}),
    "mistral": ("mistral", {"sliding_window": 6}),
    "qwen2": ("qwen2", {}),
    "qwen2 with a window above": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "gelu": ("llama", {"hidden_act": "gelu"}),
    "relu": ("llama", {"hidden_act": "relu"}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 5, "hidden_activation": "gelu_pytorch_tanh"}),
    "gemma2, odd": ("gemma2", {**ODD, "attention_bias": True}),
    "smollm3": ("smollm3", {}),
    "smollm3 with windows": ("smollm3", {"use_sliding_window": True, "sliding_window": 5, "mlp_bias": True}),
    "olmo2": ("olmo2", {}),
    "olmo2, odd": ("olmo2", {**ODD, "attention_bias": True}),
    "phi3": ("phi3", {"sliding_window": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "phi3, odd": ("phi3", {**ODD, "num_key_value_heads": 3}),
    "gpt2": ("gpt2", {}),
    "gpt2, odd": ("gpt2", {"n_embd": 54, "n_head": 3, "n_inner": 75, "vocab_size": 131, "scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu"}),
    "experts": ("qwen3_moe", {}),
    "experts, odd": ("qwen3_moe", {**ODD, "moe_intermediate_size": 21, "num_experts": 19, "num_experts_per_tok": 5, "norm_topk_prob": True}),
    "experts above a plain layer": ("qwen3_moe", {"mlp_only_layers": [0], "use_sliding_window": True, "sliding_window": 5}),
}  # fmt: skip


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def whole(model, tokens: list[int]):
    """The model's own output without a cache, its logits and all hidden states, [n, ...] each."""
    out = model(input_ids=torch.tensor([tokens]), use_cache=False, output_hidden_states=True)
    return out.logits[0], [states[0] for states in out.hidden_states]


def passed(runner, texts: list[list[int]]):
    """Texts taken side by side through a runner by guesses and steps: logits and hidden states at all positions, as `whole` gives them."""
    layers = list(range(len(runner.decoder.blocks) + 1))
    slots, at, logits, states = [runner.allocate() for _ in texts], 0, [[] for _ in texts], [[[] for _ in layers] for _ in texts]
    for count in (3, 1, 1, 9, 1, 2, 1, 1, 1, 1, 1, 1, 1):
        out = runner.observe(slots, [text[at : at + count] for text in texts], [count] * len(slots), layers)
        for i in range(len(slots)):
            part = slice(i * count, (i + 1) * count)
            logits[i].append(out.logits[part])
            for layer in layers:
                states[i][layer].append(out.states[layer][part])
        at += count
    return [(torch.cat(logits[i]), [torch.cat(parts) for parts in states[i]]) for i in range(len(texts))]


def off(got: torch.Tensor, wanted: torch.Tensor, experts: bool = False) -> float:
    """How far numbers lie from those wanted, as a root mean square; of `experts` the middle row's, for rounding may choose another here and there."""
    squares = (got.double() - wanted.double()).square()
    return (squares.mean(dim=-1).median() if experts else squares.mean()).sqrt().item()


TEXTS = [ids(24, seed) for seed in (1, 2, 3)]


@pytest.mark.parametrize("name", KINDS)
def test_in_float32_logits_and_hidden_states_are_the_models_own_to_rounding(varied, natively, name):
    kind, changes = KINDS[name]
    model = varied(kind, **changes)
    runner, exact = open_runner(model), copy.deepcopy(model).double()
    assert type(runner) is NativeRunner
    natively.clear()  # of the check
    for text, (logits, states) in zip(TEXTS, passed(runner, TEXTS)):
        (wanted, wanted_states), (theirs, their_states) = whole(exact, text), whole(model, text)
        assert off(logits, wanted) < 1.5 * off(theirs, wanted) + 1e-7
        for ours, own, true in zip(states, their_states, wanted_states, strict=True):
            assert off(ours, true) < 1.5 * off(own, true) + 1e-7
    assert sum(natively) == runner.positions == 72 and len(natively) == runner.passes


@pytest.mark.parametrize("name", KINDS)
def test_in_bfloat16_they_are_no_further_from_the_exact_ones_than_torchs(varied, natively, name):
    kind, changes = KINDS[name]
    model = varied(kind, **changes).bfloat16()
    runner, exact, experts = open_runner(model), copy.deepcopy(model).double(), kind == "qwen3_moe"
    assert type(runner) is NativeRunner
    natively.clear()
    for text, (logits, states), (theirs, their_states) in zip(TEXTS, passed(runner, TEXTS), passed(DirectRunner(model), TEXTS)):
        wanted, wanted_states = whole(exact, text)
        assert off(logits, wanted, experts) < off(theirs, wanted, experts) < 0.05 * max(1, wanted.std())
        for ours, own, true in zip(states, their_states, wanted_states, strict=True):
            assert ours.dtype == own.dtype and off(ours, true, experts) <= 1.1 * off(own, true, experts)
    assert sum(natively) == 72


def spanning(model, dtype: torch.dtype, lengths: list[int]) -> float:
    """How far a guess of three ids behind pasts of these lengths lies from the exact logits at most."""
    model = model.to(dtype)
    runner, exact, furthest = NativeRunner(model), copy.deepcopy(model).double(), 0.0
    text = ids(max(lengths) + 3)
    wanted, _ = whole(exact, text)
    slots = [runner.allocate() for _ in lengths]
    runner.forward(slots, [text[:length] for length in lengths], [0] * len(slots))
    got = runner.forward(slots, [text[length : length + 3] for length in lengths], [3] * len(slots))
    for i, length in enumerate(lengths):
        furthest = max(furthest, off(got[3 * i : 3 * i + 3], wanted[length : length + 3]))
    return furthest


@pytest.mark.parametrize("by_torch", [False, True], ids=["read natively", "read by torch"])
@pytest.mark.parametrize("kind, changes", [("llama", {}), ("mistral", {"sliding_window": 300}), ("llama", ODD), ("gemma2", {"sliding_window": 300})])
def test_pasts_of_several_pieces_are_put_together_right(varied, natively, reading, kind, changes, by_torch):
    reading(not by_torch)
    model = varied(kind, max_position_embeddings=1024, **changes)
    assert spanning(model, torch.float32, [253, 254, 255, 256, 257, 511, 600]) < 3e-6
    assert spanning(model, torch.bfloat16, [254, 257, 600]) < 0.05
    assert natively == ([21, 9] if by_torch else [512] * 4 + [338, 21, 512, 512, 87, 9])


def forked(runner):
    """Slots are forked, cut, copied and released between passes."""
    slots = [runner.allocate(), runner.allocate()]
    yield runner.forward(slots, [ids(8, 1), ids(30, 2)], [8, 0])
    yield runner.forward(slots, [ids(4, 3), [5]], [4, 1])
    runner.truncate(slots[0], 8)
    forks = runner.fork(slots)
    yield runner.forward([*slots, *forks], [ids(3, 4), [6], ids(5, 5), ids(2, 6)], [3, 1, 5, 2])
    runner.copy(forks[0], slots[1], 8)
    runner.release([slots[0]])
    yield runner.forward([slots[1], *forks], [[7], [8], [9]], [1, 1, 1])


def shelved(runner):
    """A slot on the shelf is forked, and runs there too."""
    slots = [runner.allocate() for _ in range(3)]
    yield runner.forward(slots, [ids(9, seed) for seed in range(3)], [1, 1, 1])
    runner.shelve(slots[1:2])
    forks = runner.fork(slots[1:2])
    yield runner.forward([*slots, *forks], [[5], [6], [7], [8]], [1, 1, 1, 1])
    yield runner.forward([*forks, *slots], [[5], [6], [7], ids(4, 8)], [1, 0, 1, 4])


def hidden(runner):
    """Positions are left out of slots, before, in and behind what has been read; all layers are looked at."""
    slots = [runner.allocate(), runner.allocate()]
    runner.mask(slots[0], [2, 3, 9, 40])
    runner.mask(slots[1], [0])
    for new, keep in (([ids(6, 1), ids(4, 2)], [1, 2]), ([ids(4, 3), [5]], [2, 1]), ([[6], [7]], [1, 1])):
        out = runner.observe(slots, new, keep, [0, 1, -1])
        yield from (out.logits, out.states[0], out.states[1], out.states[-1])


def both_ways(runner):
    """Canvases see one another, or but for the first, beside slots that look back."""
    slots = [runner.allocate() for _ in range(4)]
    yield runner.forward(slots[:2], [ids(6, 1), ids(8, 2)], [6, 8])
    runner.attend_both_ways(slots[0], True)
    runner.attend_both_ways(slots[2], True, 3)
    runner.attend_both_ways(slots[3], True, 2)
    yield runner.forward(slots, [ids(14, 3), [5], ids(9, 4), ids(30, 5)], [14, 1, 9, 30])
    runner.truncate(slots[0], 6)
    yield runner.forward(slots, [ids(5, 6), [6], ids(9, 7), [7]], [5, 1, 9, 1])


def rewritten(runner):
    """Ids take the place of others, one and several, and of some the first look back, beside a step."""
    slots = [runner.allocate(), runner.allocate()]
    runner.attend_both_ways(slots[0], True)
    yield runner.forward(slots, [ids(12, 1), ids(8, 2)], [12, 8])
    for at, new, back in ((5, ids(4, 3), 0), (3, [9], 0), (0, ids(12, 4), 0), (4, ids(5, 5), 2)):
        runner.attend_both_ways(slots[0], True, back)
        runner.rewrite(slots[0], at)
        yield runner.forward(slots, [new, [at + 20]], [len(new), 1])


def kept(runner):
    """From no logits to all of them."""
    slots = [runner.allocate(), runner.allocate()]
    for keep in range(6):
        yield runner.forward(slots, [ids(5, keep), ids(6, keep)], [min(keep, 5), 5 - keep])
    yield runner.forward(slots, [[5], [6]], [0, 0])
    yield runner.forward(slots, [[5], [6]], [0, 1])


def crowded(runner):
    """Ninety slots of lengths of their own, in another order than they lie."""
    slots = [runner.allocate() for _ in range(90)]
    yield runner.forward(slots, [ids(1 + i % 12, i) for i in range(90)], [1] * 90)
    yield runner.forward(slots[::-1], [ids(1 + (i % 30 == 0), i) for i in range(90)], [1] * 90)


def beside_prompts(runner):
    """Steps, guesses and prompts, which may be torch's, in any order in one pass, with and without logits."""
    slots = [runner.allocate() for _ in range(5)]
    yield runner.forward(slots[:3], [ids(5, 1), ids(MANY, 2), ids(MANY - 1, 3)], [2, 3, 1])
    for keep in ([0, 0, 0, 0, 0], [1, 2, 0, 3, 40], [1, 0, 1, 0, 0], [0, 40, 0, 3, 0]):
        new = [[5], ids(40, 4), ids(3, 5), ids(4, 6), ids(40, 7)]
        out = runner.observe(slots, new, keep, [0, 2])
        yield from (out.logits, out.states[0], out.states[2])
        for slot in slots[1:]:
            runner.truncate(slot, runner.length(slot) // 2)


# how many rows run natively, and how many more there are of prompts
CALLS = [
    (forked, 8 + 5 + 11 + 3, 30), (shelved, 27 + 4 + 7, 0), (hidden, 17, 0), (both_ways, 14 + 24 + 16, 30), (rewritten, 20 + 5 + 2 + 13 + 6, 0), (kept, 66 + 4, 0), (crowded, 567 + 93, 0),
    (beside_prompts, 21 + 4 * 8, MANY + 4 * 80),
]  # fmt: skip


@pytest.mark.parametrize("calls, rows, prompts", CALLS, ids=lambda each: getattr(each, "__name__", ""))
@pytest.mark.parametrize("name", ["sizes that no vector divides", "by torch", "qwen3", "gpt2, odd", "olmo2, odd", "experts, odd"])
def test_whatever_a_pass_is_its_numbers_are_those_of_the_ragged_runner_in_float64(varied, natively, reading, name, calls, rows, prompts):
    reading(name != "by torch")
    kind, changes = KINDS["sizes that no vector divides" if name == "by torch" else name]
    model = varied(kind, **changes)
    exact = RaggedRunner(copy.deepcopy(model).double())
    for ours, wanted in zip(calls(NativeRunner(model)), calls(exact), strict=True):
        assert ours.shape == wanted.shape and ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), wanted, rtol=0, atol=2e-5)
    assert sum(natively) == rows + (prompts if name not in ("by torch", "gpt2, odd") else 0)


def test_passes_under_autocast_are_torchs(varied, natively):
    model = varied("llama")
    native, ragged = NativeRunner(model), RaggedRunner(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = [runner.forward([runner.allocate()], [[5, 6, 7]], [3]) for runner in (native, ragged)]
    assert torch.equal(*found) and found[0].dtype == torch.bfloat16 and not natively
    native.forward([native.allocate()], [[5]], [1])
    assert natively == [1]


@pytest.mark.parametrize("march, needs", [("x86-64", "sse4_1"), ("haswell", "avx2")])
def test_builds_for_lesser_cpus_compute_the_same(varied, other_build, natively, march, needs):
    built = other_build(march, needs)
    assert built == {"x86-64": "plain C", "haswell": "AVX2"}[march]
    for name in ("sizes that no vector divides", "sizes of whole vectors", "qwen3", "mistral", "gpt2, odd", "gemma2, odd", "experts"):
        kind, changes = KINDS[name]
        model = varied(kind, **changes)
        assert speaks_natively(model)  # which asks whether a row is the same beside another
        [(logits, _)] = passed(NativeRunner(model), TEXTS[:1])
        assert off(logits, wanted := whole(copy.deepcopy(model).double(), TEXTS[0])[0]) < 1.5 * off(whole(model, TEXTS[0])[0], wanted)
        model.bfloat16()
        assert speaks_natively(model)
        [(logits, _)], [(theirs, _)] = passed(NativeRunner(model), TEXTS[:1]), passed(DirectRunner(model), TEXTS[:1])
        assert off(logits, wanted := whole(copy.deepcopy(model).double(), TEXTS[0])[0]) < off(theirs, wanted)
    assert spanning(varied("llama", max_position_embeddings=1024, **ODD), torch.float32, [254, 257, 600]) < 3e-6


def test_a_row_is_the_same_beside_others_where_a_compiler_fuses_no_sums_that_wait_for_each_other(varied, other_build, monkeypatch):
    """As gcc has it for Zen 2 and 3, in the loops of some numbers of rows."""
    monkeypatch.setenv("CC", f"{shlex.join(compilers()[0].command)} -mtune=znver3")
    assert other_build("haswell", "avx2") == "AVX2"
    for dtype in (torch.float32, torch.bfloat16):
        assert speaks_natively(varied("llama").to(dtype))
