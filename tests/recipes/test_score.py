"""seodang score: log-probability and perplexity of given answers."""

import json
import math

import pytest

from seodang.infer import score
from seodang.infer.runners.ragged import RaggedRunner
from seodang.recipes.options.decoding import SpeakingModel
from seodang.recipes.score import main

RECORDS = [{"prompt": "Where is Suwon?", "completion": "In Korea."}, {"prompt": "Where is Lyon?", "completion": "In France."}]


@pytest.fixture
def real(monkeypatch, real_model, tokenizer):
    monkeypatch.setattr(SpeakingModel, "open", lambda self: (real_model, tokenizer))


def write(path, records) -> str:
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    return str(path)


def test_prints_a_line_an_answer_and_the_totals(real, real_model, tokenizer, tmp_path, capsys):
    assert main(["default", "--data", write(tmp_path / "answers.jsonl", RECORDS), "--tokens"]) == 0
    *each, totals = map(json.loads, capsys.readouterr().out.splitlines())
    prompts = [[{"role": "user", "content": record["prompt"]}] for record in RECORDS]
    expected = [scores.tolist() for scores in score(real_model, tokenizer, prompts, [record["completion"] for record in RECORDS])]
    for i, (line, scores) in enumerate(zip(each, expected)):
        assert line["record"] == f"answers.jsonl line {i + 1}"
        assert line["logprobs"] == pytest.approx(scores, abs=1e-5)
        assert line["logprob"] == pytest.approx(sum(scores), abs=1e-4)
        assert line["tokens"] == len(scores)
        assert line["perplexity"] == pytest.approx(math.exp(-sum(scores) / len(scores)), rel=1e-4)
    tokens = sum(map(len, expected))
    assert totals["answers"] == 2 and totals["tokens"] == tokens
    assert totals["perplexity"] == pytest.approx(math.exp(-sum(map(sum, expected)) / tokens), rel=1e-4)


def test_raw_scores_the_completion_as_a_continuation(real, real_model, tokenizer, tmp_path, capsys):
    data = write(tmp_path / "raw.jsonl", [{"prompt": "The capital of France is", "completion": " Paris."}])
    output = tmp_path / "scores.jsonl"
    assert main(["default", "--data", data, "--raw", "--output", str(output)]) == 0
    [scores] = score(real_model, tokenizer, ["The capital of France is"], [" Paris."])
    line, totals = map(json.loads, output.read_text().splitlines())
    assert line["logprob"] == pytest.approx(scores.sum().item(), abs=1e-4)
    assert json.loads(capsys.readouterr().out) == totals


def test_a_plain_text_is_scored_from_its_second_token_on(real, real_model, tokenizer, tmp_path, capsys):
    text = "Suwon is a city in Korea."
    assert main(["default", "--data", write(tmp_path / "text.jsonl", [{"text": text}])]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    ids = tokenizer(text)["input_ids"]
    [scores] = score(real_model, tokenizer, [ids[:1]], [ids[1:]])
    assert (line["tokens"], line["logprob"]) == (len(ids) - 1, pytest.approx(scores.sum().item(), abs=1e-4))


@pytest.mark.parametrize(
    "records, options, message",
    [
        ([{"prompt": "a", "completion": ""}], [], "answers.jsonl line 1: the answer is empty"),
        ([{"prompt": "a"}], [], "answers.jsonl line 1: the key 'completion' is missing"),
        ([{"messages": [{"role": "user", "content": "a"}]}], [], "answers.jsonl line 1: the last message must be an assistant's answer"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "word " * 9000}], [], "answers.jsonl line 2 has"),
        ([{"prompt": [{"role": "user", "content": "a"}] * 2, "completion": "b"}], ["--raw"], "--raw takes one prompt"),
        ([], [], "answers.jsonl"),
        (RECORDS, ["--tempersture", "1"], "unknown option 'tempersture'"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_exit_code_2_before_any_compute(real, tmp_path, monkeypatch, capsys, records, options, message):
    monkeypatch.setattr(RaggedRunner, "forward", lambda *args: pytest.fail("computed something"))
    assert main(["default", "--data", write(tmp_path / "answers.jsonl", records), *options]) == 2
    [error] = capsys.readouterr().err.splitlines()[-1:]
    assert error.startswith("error: ") and message in error


def test_without_data_it_says_so(capsys):
    assert main(["default"]) == 2
    assert "--data" in capsys.readouterr().err
