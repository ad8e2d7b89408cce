"""Answers behind beginnings that they share: each is read once, and nothing else changes."""

from itertools import product

import pytest
import torch

from seodang.infer.engine import id_scoring, prefix_tree
from seodang.infer.engine.id_scoring import judge_ids, score_ids
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.native_runner import NativeRunner
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.padded import PaddedRunner
from seodang.infer.runners.ragged import RaggedRunner
from seodang.infer.runners.recomputing import RecomputingRunner
from seodang.infer.runners.stateful import StatefulRunner


def ids(n: int, seed: int) -> list[int]:
    return torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def by_hand(model, prompt: list[int], answer: list[int]) -> tuple[torch.Tensor, list[bool]]:
    logits = model(torch.tensor([prompt + answer]), use_cache=False).logits[0]
    rows = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return torch.stack([logits[row].log_softmax(-1)[id] for row, id in zip(rows, answer)]), [int(logits[row].argmax()) == id for row, id in zip(rows, answer)]


FEW_SHOT = ids(60, 0)
QUESTIONS = [FEW_SHOT + ids(20 + n, n) for n in range(1, 6)]
CHOICES = [ids(n, 100 + n) for n in (1, 1, 2, 3, 20)]
CHOICES[1] = [CHOICES[0][0] + 1]
QUESTIONED = [(question, choice) for question in QUESTIONS for choice in CHOICES]
ODD = [
    (QUESTIONS[0][:50], QUESTIONS[0][50:]),  # an answer where others have their prompt
    (QUESTIONS[0], CHOICES[4][:9]),  # the beginning of another answer
    (QUESTIONS[0] + CHOICES[4][:5], CHOICES[4][5:]),  # the same ids, cut elsewhere
    (QUESTIONS[1], CHOICES[2]),  # a pair for the second time
    ([5], ids(30, 7)),
    ([5], ids(1, 8)),
    (ids(40, 9), ids(3, 10)),
]
PAIRS = [*QUESTIONED[::-1], *ODD, *QUESTIONED[:2]]


def check(model, runner, pairs, tolerance=5e-5):
    found = judge_ids(runner, pairs)
    assert len(found) == len(pairs) and runner.live == 0
    for each, pair in zip(found, pairs):
        logprobs, likeliest = by_hand(model, *pair)
        torch.testing.assert_close(each.logprobs, logprobs, rtol=0, atol=tolerance)
        assert each.likeliest.tolist() == likeliest


@pytest.mark.parametrize(
    "kind, positions, logits, held",
    [
        *((None, *bounds) for bounds in ((8192, 512, 32768), (70, 9, 400), (30, 3, 1), (1, 1, 1))),
        *((kind, 70, 9, 400) for kind in (DirectRunner, RaggedRunner, PaddedRunner, StatefulRunner, RecomputingRunner)),
    ],
)
def test_equals_the_model_however_passes_and_slots_are_bounded(tiny, monkeypatch, kind, positions, logits, held):
    for name, value in (("MAX_POSITIONS", positions), ("MAX_LOGITS", logits), ("HELD", held)):
        monkeypatch.setattr(id_scoring, name, value)
    model = tiny("llama")
    check(model, open_runner(model) if kind is None else kind(model), PAIRS)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5e-5), (torch.bfloat16, 0.25)])
def test_equals_the_model_in_native_passes(fresh_tiny, reading, natively, dtype, tolerance):
    """And to the bit what is read without sharing anything."""
    reading(True)
    model = fresh_tiny("llama").to(dtype)
    runner = NativeRunner(model)
    natively.clear()
    found = judge_ids(runner, PAIRS)
    alone = [judge_ids(runner, [pair])[0].logprobs for pair in PAIRS]
    assert sum(natively) == runner.positions
    assert all(torch.equal(each.logprobs, own) for each, own in zip(found, alone, strict=True))
    model.float()
    for own, pair in zip(alone, PAIRS):
        torch.testing.assert_close(own, by_hand(model, *pair)[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["gemma2", "qwen2_moe"])
def test_equals_models_with_windows_and_experts(tiny, kind):
    model = tiny(kind)
    check(model, open_runner(model), PAIRS, 1e-4)


def test_every_id_of_a_tree_is_read_once(fresh_tiny):
    """A thing that few-shot examples, questions and choices all share: 60 ids, then 5 questions, then what follows the first id of each choice."""
    runner = open_runner(fresh_tiny("llama"))
    rows = []
    runner.model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[-2]))
    runner.refresh()
    score_ids(runner, QUESTIONED)
    questions, behind = sum(len(question) - 60 for question in QUESTIONS), sum(len(choice) - 1 for choice in CHOICES)
    assert runner.positions == 60 + questions + len(QUESTIONS) * behind
    assert runner.passes == 3
    assert sum(rows) == len(QUESTIONS) * (1 + behind)  # what comes first in the choices is asked of one row


def test_short_beginnings_are_read_with_what_follows_them(fresh_tiny):
    runner = open_runner(fresh_tiny("llama"))
    pairs = [(ids(15, 1), ids(4, 2)), (ids(15, 1), ids(4, 3))]
    score_ids(runner, pairs)
    assert (runner.positions, runner.passes) == (2 * 18, 1)
    runner = open_runner(runner.model)
    score_ids(runner, [(ids(15, 1), [8]), (ids(15, 1), [9])])  # alike to their ends: no pass more
    assert (runner.positions, runner.passes) == (15, 1)


def test_slots_that_hold_a_beginning_are_used_again_and_not_copied(fresh_tiny, monkeypatch):
    """What is copied of a beginning is bounded by the slots that are held at a time, not by how many questions there are."""
    monkeypatch.setattr(id_scoring, "HELD", 400)
    runner = open_runner(fresh_tiny("llama"))
    copied, most = [], []
    fork, copy, forward = runner.fork, runner.copy, runner.forward
    runner.fork = lambda slots: copied.extend(map(runner.length, slots)) or fork(slots)
    runner.copy = lambda source, target, first=0, length=None: copied.append(length - first) or copy(source, target, first, length)
    runner.forward = lambda slots, *rest: most.append(runner.live) or forward(slots, *rest)
    questions = [FEW_SHOT + ids(20, n) for n in range(40)]
    score_ids(runner, [(question, [id]) for question in questions for id in (5, 6)] + [(question, [7, 8]) for question in questions])
    assert max(most) <= 6
    assert sum(copied) <= 6 * 80 + 40 * 20


def trees(sequences):
    """All ways down, as what is read on each."""
    found = {}

    def walk(node, path):
        path = path + sequences[node.members[0]][node.begin : node.end]
        assert all(sequences[member][: node.end] == path for member in node.members)
        for member in node.members:
            if len(sequences[member]) == node.end:
                assert member not in found
                found[member] = path
        for child in node.children:
            assert child.parent is node and child.begin == node.end and set(child.members) < set(node.members)
            walk(child, path)

    for root in prefix_tree.prefix_tree(sequences):
        assert root.begin == 0
        walk(root, [])
    return found


@pytest.mark.parametrize("saved", [1, 3, 1000])
def test_every_sequence_is_one_way_down_a_tree(monkeypatch, saved):
    monkeypatch.setattr(prefix_tree, "SAVED", saved)
    every = [list(each) for n in range(1, 6) for each in product([1, 2], repeat=n)] * 2
    assert trees(every) == dict(enumerate(every))
    assert prefix_tree.prefix_tree([]) == []
    long = [list(range(n)) for n in range(1, 2000)]  # each the beginning of the next: deeper than Python calls
    roots = prefix_tree.prefix_tree(long)
    read = sum(node.end - node.begin for node in reached(roots))
    assert read == {1: 1999, 3: 1996 + 1 + 2 + 3}.get(saved, read) < 5000  # the last three save too little


def reached(roots):
    todo = list(roots)
    while todo:
        node = todo.pop()
        yield node
        todo += node.children


def test_progress_counts_every_pair(tiny):
    done = []
    judge_ids(open_runner(tiny("llama")), PAIRS, progress=done.append)
    assert sum(done) == len(PAIRS) and len(done) > 1


def test_what_fails_leaves_no_slot(fresh_tiny, monkeypatch):
    runner = open_runner(fresh_tiny("llama"))
    forward, calls = runner.forward, []

    def fails(*args):
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("in the third pass")
        return forward(*args)

    runner.forward = fails
    with pytest.raises(RuntimeError, match="third"):
        score_ids(runner, PAIRS)
    assert runner.live == 0
