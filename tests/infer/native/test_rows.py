"""A row's numbers, to the bit, whatever runs beside it: other rows, other orders, other threads, prompts, and the guesses that it is a part of."""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from seodang.infer.runners.native.library import library, openmp
from seodang.infer.runners.native_runner import NativeRunner

ODD = {"hidden_size": 54, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "intermediate_size": 75, "vocab_size": 131, "attention_bias": True}
WIDE = {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 32, "intermediate_size": 136, "num_hidden_layers": 1}
ACROSS = {"n_embd": 54, "n_head": 3, "n_inner": 603, "vocab_size": 131}  # several shares of outputs, and what no vector holds
EXPERTS = {"num_experts": 11, "num_experts_per_tok": 3, "moe_intermediate_size": 21, "num_hidden_layers": 1, "norm_topk_prob": True}
KINDS = {
    "odd sizes": ("llama", ODD), "whole vectors": ("llama", WIDE), "gpt2": ("gpt2", ACROSS), "experts": ("qwen3_moe", EXPERTS),
    "gemma2": ("gemma2", {"hidden_activation": "gelu_pytorch_tanh"}), "olmo2": ("olmo2", ODD),
}  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16]
BUILDS = [None, ("x86-64", "sse4_1"), ("haswell", "avx2")]


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(params=["torch's", "own"])
def threads(request, monkeypatch):
    """`threads(n)`: so many native threads from now on, however many torch has: of its OpenMP runtime, or of the library's own."""
    team = openmp()
    if request.param == "own":
        library().seodang_use_team(None, None, None)
    elif team is None:
        pytest.skip("torch has threads of another kind")
    yield lambda n: monkeypatch.setattr(torch, "get_num_threads", lambda: n)
    if team is not None:
        library().seodang_use_team(*(ctypes.cast(each, ctypes.c_void_p) for each in team))


def with_pasts(model, lengths: list[int]):
    """A runner, and a slot for each of these lengths, whose text is its own."""
    runner = NativeRunner(model)
    slots = [runner.allocate() for _ in lengths]
    runner.forward(slots, [ids(length, i) for i, length in enumerate(lengths)], [0] * len(slots))
    return runner, slots


def step(runner, slots: list[int], new: list[list[int]], layers=(1,)) -> list[torch.Tensor]:
    """What each slot gets of a pass, logits and hidden states of all its ids in one tensor; afterwards the slots are as they were."""
    before = [runner.length(slot) for slot in slots]
    out = runner.observe(slots, new, list(map(len, new)), layers)
    for slot, length in zip(slots, before):
        runner.truncate(slot, length)
    rows = torch.cat([out.logits, *(out.states[layer] for layer in layers)], dim=1)
    return list(rows.split(list(map(len, new))))


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build[0] if build else "native")
@pytest.mark.parametrize("name", KINDS)
def test_a_step_is_the_same_alone_and_among_1_to_40_in_any_order(varied, other_build, name, build, dtype):
    if build:
        other_build(*build)
    kind, changes = KINDS[name]
    runner, slots = with_pasts(varied(kind, **changes).to(dtype), [1 + 7 * i % 23 for i in range(40)])
    new = [[5 + i] for i in range(40)]
    alone = [step(runner, [slots[i]], [new[i]])[0] for i in range(40)]
    assert len({tuple(row[0, :3].tolist()) for row in alone}) == 40
    for count in range(1, 41):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(count))[:count].tolist()
        assert equal(step(runner, [slots[i] for i in order], [new[i] for i in order]), [alone[i] for i in order]), count


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind, changes", [("llama", ODD), ("llama", WIDE), ("mistral", {"sliding_window": 300})], ids=["odd", "wide", "window"])
def test_pasts_of_several_pieces_are_read_alike_alone_together_and_by_other_numbers_of_threads(varied, threads, kind, changes, dtype):
    runner, slots = with_pasts(varied(kind, max_position_embeddings=1024, **changes).to(dtype), [254, 255, 256, 257, 511, 512, 600, 3])
    new = [[5 + i] for i in range(8)]
    threads(1)
    alone = [step(runner, [slot], [own])[0] for slot, own in zip(slots, new)]
    for count in (1, 2, 3, 2, 1):
        threads(count)
        for _ in range(3):  # who puts the pieces together is chance
            assert equal(step(runner, slots, new), alone), count
            assert equal(step(runner, slots[::-1], new[::-1]), alone[::-1]), count


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KINDS)
def test_other_numbers_of_threads_share_the_outputs_otherwise_and_sum_alike(varied, threads, name, dtype):
    kind, changes = KINDS[name]
    runner, slots = with_pasts(varied(kind, **changes).to(dtype), [1, 9, 30, 4, 5, 6, 7])
    new = [ids(1 + i % 3, i) for i in range(7)]
    found = []
    for count in (1, 2, 3, 5, 1):
        threads(count)
        found.append(step(runner, slots, new, layers=(0, 1, -1)))
    assert all(equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("changes", [ODD, WIDE], ids=["odd", "wide"])
@pytest.mark.parametrize("by_torch", [False, True], ids=["prompts natively", "prompts by torch"])
def test_a_step_is_the_same_beside_prompts_and_guesses(varied, natively, reading, changes, dtype, by_torch):
    reading(not by_torch)
    runner, slots = with_pasts(varied("llama", max_position_embeddings=512, **changes).to(dtype), [20, 7, 250, 11])
    slots += [runner.allocate(), runner.allocate()]
    alone = [step(runner, [slot], [[9]])[0] for slot in slots[:4]]
    natively.clear()
    for new in ([[9], [9], [9], [9], ids(40)], [[9], [9], [9], [9], ids(5)], [[9], [9], [9], [9], ids(5), ids(40)]):
        assert equal(step(runner, slots[: len(new)], new)[:4], alone)
    assert natively == ([4, 9, 9] if by_torch else [44, 9, 49])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("past", [1, 250, 505])
def test_several_ids_at_once_are_the_same_as_one_by_one_and_leave_the_same_cache(varied, natively, name, past, dtype):
    kind, changes = KINDS[name]
    positions = {"n_positions" if kind == "gpt2" else "max_position_embeddings": 1024}
    runner, [slot] = with_pasts(varied(kind, **positions, **changes).to(dtype), [past])
    [fork] = runner.fork([slot])
    guess = ids(16, 99)
    natively.clear()
    at_once = runner.observe([slot], [guess], [16], [0, 1])
    one_by_one = [runner.observe([fork], [[id]], [1], [0, 1]) for id in guess]
    assert natively == [16] + [1] * 16
    assert torch.equal(at_once.logits, torch.cat([out.logits for out in one_by_one]))
    assert torch.equal(at_once.states[1], torch.cat([out.states[1] for out in one_by_one]))
    (pool, lane), (same, other) = runner.cache.locate(slot), runner.cache.locate(fork)
    length = past + 16
    assert torch.equal(pool.stack[:, :, lane, :, :length], same.stack[:, :, other, :, :length])


def test_calls_of_two_python_threads_are_each_as_alone(varied, threads):
    """On a pool of two threads, which one call has at a time."""
    threads(2)
    held = [with_pasts(varied("llama", seed=seed, **changes).to(dtype), [5, 260, 9]) for seed, changes, dtype in ((1, ODD, DTYPES[0]), (2, WIDE, DTYPES[1]))]
    many = lambda runner, slots: [step(runner, slots, [[7], [8], [9]]) for _ in range(40)]
    alone = [many(*own)[0] for own in held]
    with ThreadPoolExecutor(2) as workers:
        for own, found in zip(alone, workers.map(lambda own: many(*own), held)):
            assert all(equal(own, each) for each in found)
