"""Scores of given answers: the model's own log-probabilities."""

import pytest
import torch

from seodang.data.errors import UserError
from seodang.data.formats import Dialogue
from seodang.data.labels import IGNORE_INDEX, prepare
from seodang.infer import score
from seodang.infer.engine import id_scoring
from seodang.infer.runners.open import open_runner


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def by_hand(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logprobs = model(torch.tensor([prompt + answer]), use_cache=False).logits[0].log_softmax(dim=-1)
    return torch.stack([logprobs[len(prompt) - 1 + i, id] for i, id in enumerate(answer)])


PAIRS = [(ids(n, 1 + n), ids(m, 50 + m)) for n, m in [(5, 3), (1, 1), (40, 7), (2, 30), (9, 12)]]


@pytest.mark.parametrize("positions, logits", [(8192, 512), (16, 5), (3, 2), (1, 1)])
def test_equals_the_models_logprobs_however_the_passes_are_cut(tiny, tokenizer, monkeypatch, positions, logits):
    monkeypatch.setattr(id_scoring, "MAX_POSITIONS", positions)
    monkeypatch.setattr(id_scoring, "MAX_LOGITS", logits)
    model = tiny("llama")
    got = score(model, tokenizer, *map(list, zip(*PAIRS)))
    for scores, pair in zip(got, PAIRS):
        torch.testing.assert_close(scores, by_hand(model, *pair), rtol=0, atol=1e-5)


@pytest.mark.parametrize("logits", [512, 5])
def test_the_head_runs_at_answers_alone_and_no_position_twice(fresh_tiny, monkeypatch, logits):
    monkeypatch.setattr(id_scoring, "MAX_LOGITS", logits)
    model = fresh_tiny("llama")
    rows = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[1]))
    runner = open_runner(model)
    rows.clear()  # of the probe
    id_scoring.score_ids(runner, PAIRS)
    assert sum(rows) == sum(len(answer) for _, answer in PAIRS) and max(rows) <= logits
    assert runner.positions == sum(len(prompt) + len(answer) - 1 for prompt, answer in PAIRS)
    assert runner.live == 0
    if logits == 512:
        assert runner.passes == 1


def test_behind_messages_it_scores_exactly_what_training_would_teach(tiny, tokenizer, real_model):
    messages = [{"role": "user", "content": "Where is Suwon?"}]
    answer = {"role": "assistant", "content": "In Korea."}
    [got] = score(real_model, tokenizer, [messages], ["In Korea."])
    [row], _ = prepare([Dialogue([*messages, answer])], tokenizer, max_length=512)
    labels, context = row["labels"], row["input_ids"]
    first = next(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
    trained = [label for label in labels if label != IGNORE_INDEX]
    assert trained[-1] == tokenizer.eos_token_id  # the end of the turn is part of the answer
    torch.testing.assert_close(got, by_hand(real_model, context[:first], trained), rtol=0, atol=1e-4)
    [same] = score(real_model, tokenizer, [messages], [answer])
    assert torch.equal(got, same)


def test_behind_a_text_it_scores_the_continuation(real_model, tokenizer):
    [got] = score(real_model, tokenizer, ["The capital of France is"], [" Paris."])
    expected = by_hand(real_model, tokenizer("The capital of France is")["input_ids"], tokenizer(" Paris.")["input_ids"])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    [wrong] = score(real_model, tokenizer, ["The capital of France is"], [" Suwon."])
    assert got.sum() > wrong.sum()


def test_refuses_an_empty_answer_and_a_pair_too_long_for_the_model(tiny, tokenizer):
    with pytest.raises(UserError, match="prompt 1 with its answer: the answer is empty"):
        score(tiny("llama"), tokenizer, [[5]], [[]])
    with pytest.raises(UserError, match="prompt 1 with its answer: the answer is empty"):
        score(tiny("llama"), tokenizer, [[{"role": "user", "content": "a"}]], [""])
    with pytest.raises(UserError, match="prompt 1 with its answer has 300 tokens"):
        score(tiny("llama"), tokenizer, [ids(100)], [ids(200)])
    with pytest.raises(UserError, match="1 prompts and 2 completions"):
        score(tiny("llama"), tokenizer, [ids(3)], [ids(2)] * 2)


def test_half_precision_is_scored_in_float32():
    """Near 0 a bfloat16 log-probability would have steps of 1/16 and more at -10."""
    logits = (4 * torch.randn(6, 300, generator=torch.Generator().manual_seed(0))).bfloat16()
    targets = [0, 50, 100, 150, 200, 250]
    found = id_scoring.chosen(logits, targets)
    exact = logits.double().log_softmax(-1)[torch.arange(6), targets]
    assert found.dtype == torch.float32 and found.tolist() == pytest.approx(exact.tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_ids_beyond_the_vocabulary_are_refused_by_name_before_anything_is_computed(tiny, tokenizer, kind):
    model = tiny(kind)
    for prompts, answers, words in (
        ([[5], [5, 128]], [[6], [6]], "prompt 2.* has the id 128, but the model's ids are those from 0 to 127"),
        ([[5], [5]], [[6], [6, 128]], "(answer 2|prompt 2 with its answer) has the id 128"),
        ([[5], [5]], [[6], [-1]], "(answer 2|prompt 2 with its answer) has the id -1"),
        ([[5], ["a"]], [[6], [6]], "prompt 2.* must be a text, a list of messages or a list of ids"),
        ([[5], [5]], [[6], [6.5]], "must be a text or a list of ids, got \\[6.5\\]"),
        ([[5], "many words that the tiny model does not have"], [[6], [6]], "prompt 2.* has the id"),
        ([[5], [5]], [[6], "many words that the tiny model does not have"], "2.* has the id"),
    ):
        with pytest.raises(UserError, match=words):
            score(model, tokenizer, prompts, answers)
