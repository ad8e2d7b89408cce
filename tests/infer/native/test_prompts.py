"""Prompts, read natively: to the bit what their ids get one by one, as exact as torch's, in parts, beside steps; and who reads them."""

import copy

import pytest
import torch

from seodang.infer.runners import native_runner
from seodang.infer.runners.native import library as native_library
from seodang.infer.runners.native_runner import MANY, NativeRunner, calls
from seodang.infer.runners.ragged import RaggedRunner
from seodang.infer.runners.ragged_attention import ForwardBatch, Long

ODD = {"hidden_size": 54, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "intermediate_size": 75, "vocab_size": 131, "attention_bias": True}
KINDS = {
    "odd sizes": ("llama", ODD),
    "heads of 64 in threes": ("llama", {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64}),
    "heads of 128": ("qwen3", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128}),
    "heads of 40, a window": ("mistral", {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 40, "sliding_window": 70}),
    "a narrow window": ("mistral", {"sliding_window": 5}),
    "soft bounds": ("gemma2", {"sliding_window": 33}),
    "experts": ("qwen3_moe", {"num_experts": 11, "num_experts_per_tok": 3, "moe_intermediate_size": 21, "norm_topk_prob": True}),
    "gpt2": ("gpt2", {"n_embd": 54, "n_head": 3, "n_inner": 603, "vocab_size": 131}),
}
DTYPES = [torch.float32, torch.bfloat16]
BUILDS = [None, ("x86-64", "sse4_1"), ("haswell", "avx2")]
LENGTHS = [150, 1, 97, 3, 30, 1, 260]  # of new ids, behind pasts of these


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(autouse=True)
def read_natively(reading, monkeypatch):
    """Whatever the machine and the model."""
    reading(True)
    monkeypatch.setattr(native_runner, "MANY", 10**9)


def model_of(varied, name: str, dtype: torch.dtype):
    kind, changes = KINDS[name]
    positions = {"n_positions" if kind == "gpt2" else "max_position_embeddings": 1024}
    return varied(kind, **{"num_hidden_layers" if kind != "gpt2" else "n_layer": 2, **positions, **changes}).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build[0] if build else "native")
@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_gives_to_the_bit_what_its_ids_give_one_by_one(varied, other_build, natively, monkeypatch, name, build, dtype):
    if build:
        other_build(*build)
    runner = NativeRunner(model_of(varied, name, dtype))
    slots = [runner.allocate(), runner.allocate()]
    whole = runner.observe(slots[:1], [ids(290)], [290], [1])
    assert natively == [290]
    monkeypatch.setattr(native_runner, "AT_ONCE", 1)
    single = runner.observe(slots[1:], [ids(290)], [290], [1])
    assert natively == [290] + [1] * 290
    assert torch.equal(whole.logits, single.logits) and torch.equal(whole.states[1], single.states[1])
    (pool, lane), (same, other) = map(runner.cache.locate, slots)
    assert torch.equal(pool.stack[:, :, lane, :, :290], same.stack[:, :, other, :, :290]) and whole.logits.std() > 0.05


def in_one_pass(runner, order: list[int]) -> list[torch.Tensor]:
    """The logits of all new ids of each of several slots, of these lengths behind pasts, in one pass; by number."""
    slots = [runner.allocate() for _ in order]
    for slot, i in zip(slots, order):
        runner.forward([slot], [ids(1 + 50 * i, i)], [0])
    new = [ids(LENGTHS[i], 10 + i) for i in order]
    parts = runner.forward(slots, new, list(map(len, new))).split(list(map(len, new)))
    runner.release(slots)
    return [part for _, part in sorted(zip(order, parts))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["odd sizes", "heads of 64 in threes", "heads of 40, a window", "experts", "gpt2"])
def test_prompts_and_steps_in_one_call_are_as_alone_on_any_number_of_threads(varied, natively, monkeypatch, name, dtype):
    runner = NativeRunner(model_of(varied, name, dtype))
    alone = [part for i in range(len(LENGTHS)) for part in in_one_pass(runner, [i])]
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for at_once in (1024, 200):
            monkeypatch.setattr(native_runner, "AT_ONCE", at_once)
            natively.clear()
            for order in ([0, 1, 2, 3, 4, 5, 6], [6, 3, 5, 1, 0, 2, 4]):
                assert all(map(torch.equal, in_one_pass(runner, order), alone)), (threads, at_once, order)
            assert natively.count(542 if at_once == 1024 else 200) == (2 if at_once == 1024 else 2 * (2 + 3))


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build[0] if build else "native")
@pytest.mark.parametrize("name", KINDS)
def test_prompts_behind_pasts_are_as_exact_as_float32_is(varied, other_build, natively, name, build):
    if build:
        other_build(*build)
    model = model_of(varied, name, torch.float32)
    exact = RaggedRunner(copy.deepcopy(model).double())
    runner, order = NativeRunner(model), list(range(len(LENGTHS)))
    for ours, wanted in zip(in_one_pass(runner, order), in_one_pass(exact, order), strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=0, atol=2e-5)
    assert 512 in natively


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_reaches_none_of_the_ids_before_it(varied, dtype):
    model = model_of(varied, "heads of 64 in threes", dtype)
    prompt = [3 + id % 100 for id in ids(60)]
    clean = NativeRunner(model)
    wanted = clean.forward([clean.allocate()], [prompt[:37]], [37])
    with torch.no_grad():
        model.get_input_embeddings().weight[120] = torch.inf
    runner = NativeRunner(model)
    got = runner.forward([runner.allocate()], [[*prompt[:37], 120, *prompt[38:]]], [60])
    assert torch.equal(got[:37], wanted) and got[37:].isnan().all()


def test_ids_that_see_one_another_are_of_one_call():
    part = lambda begin, end, causal: Long(None, 0, slice(begin, end), 0, end - begin, causal)
    plan = ForwardBatch([], [part(2, 300, True), part(300, 600, False), part(600, 700, False), part(700, 1400, False), part(1400, 2000, True)])
    assert calls(plan, 2000) == [range(300), range(300, 700), range(700, 1400), range(1400, 1912), range(1912, 2000)]
    assert calls(ForwardBatch([], []), 1) == [range(1)] and calls(ForwardBatch([], [part(0, 512, True)]), 513) == [range(512), range(512, 513)]


@pytest.mark.parametrize(
    "built, amx, dtype, natively_read",
    [
        ("AVX512-BF16 and VNNI", False, torch.bfloat16, True), ("AVX512-BF16 and VNNI", True, torch.bfloat16, False), ("AVX512 and VNNI", True, torch.float32, True),
        ("AVX2", False, torch.bfloat16, True), ("AVX2", False, torch.float32, True), ("NEON", False, torch.float32, False), ("plain C", False, torch.float32, False),
    ],
)  # fmt: skip
def test_torch_reads_prompts_where_it_may_be_quicker(varied, natively, monkeypatch, built, amx, dtype, natively_read):
    monkeypatch.undo()
    monkeypatch.setattr(native_library, "built_for", lambda: built)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    runs, run = [], native_library.NativeModel.run
    monkeypatch.setattr(native_library.NativeModel, "run", lambda self, numbers, *rest: runs.append(len(numbers) // native_library.ROW) or run(self, numbers, *rest))
    runner = NativeRunner(model_of(varied, "odd sizes", dtype))
    for count in (MANY - 1, MANY):
        runner.forward([runner.allocate()], [ids(count)], [1])
    assert runs == ([MANY - 1, MANY] if natively_read else [MANY - 1])
