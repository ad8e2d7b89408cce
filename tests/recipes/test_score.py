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


PAIRS = [
    {"prompt": "Where is Suwon?", "chosen": "In Korea.", "rejected": "In France."},
    {"prompt": "Where is Lyon?", "chosen": "zxcv qwer.", "rejected": "In France."},
    {"prompt": "Where is Bonn?", "chosen": "Here.", "rejected": ""},
]
RANKED = [{"prompt": "Where is Rome?", "responses": ["In Italy.", "qwerty zxcv.", "In Spain."], "scores": [3, 1, 2]}]


def test_of_preferences_each_answer_is_scored_and_the_better_ones_lead(real, real_model, tokenizer, tmp_path, capsys):
    output = tmp_path / "scores.jsonl"
    output.write_text("of an earlier run\n")
    data = [write(tmp_path / "pairs.jsonl", PAIRS), write(tmp_path / "ranked.jsonl", RANKED)]
    assert main(["default", "--data", *data, "--output", str(output)]) == 0
    first, second, ranked, totals = map(json.loads, output.read_text().splitlines())

    def logprobs(prompt, *answers):
        return [scores.sum().item() for scores in score(real_model, tokenizer, [[{"role": "user", "content": prompt}]] * len(answers), answers)]

    margins = []
    for line, record in zip((first, second), PAIRS):
        chosen, rejected = logprobs(record["prompt"], record["chosen"], record["rejected"])
        assert (line["chosen"]["logprob"], line["rejected"]["logprob"]) == pytest.approx((chosen, rejected), abs=1e-4)
        assert line["margin"] == pytest.approx(chosen - rejected, abs=1e-4)
        margins.append(chosen - rejected)
    best, middle, worst = logprobs("Where is Rome?", "In Italy.", "In Spain.", "qwerty zxcv.")
    assert [(each["rank"], each["logprob"]) for each in ranked["answers"]] == [(n, pytest.approx(value, abs=1e-4)) for n, value in enumerate((best, middle, worst))]
    assert ranked["margin"] == pytest.approx((best - middle + best - worst + middle - worst) / 3, abs=1e-4)
    margins += [best - middle, best - worst, middle - worst]
    assert totals["records"] == 4 and totals["dropped"] == {"empty answer": 1} and (totals["answers"], totals["pairs"]) == (7, 5)
    assert totals["chosen_above"] == sum(margin > 0 for margin in margins) / 5 and 0 < totals["chosen_above"] < 1
    assert totals["margin"] == pytest.approx(sum(margins) / 5, abs=1e-4)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == totals and "dropped         1 x empty answer" in captured.err


def test_what_training_would_drop_or_cut_is_dropped_or_cut(real, real_model, tokenizer, tmp_path, capsys):
    talk = [{"role": role, "content": text} for role, text in (("user", "old " * 40), ("assistant", "yes"), ("user", "Where is Suwon?"), ("assistant", "In Korea."))]
    records = [{"messages": talk}, {"messages": [*talk[:3], {"role": "assistant", "content": " "}]}]
    data = write(tmp_path / "answers.jsonl", records)
    assert main(["default", "--data", data, "--empty_answers", "drop", "--max_length", "60"]) == 0
    line, totals = map(json.loads, capsys.readouterr().out.splitlines())
    [scores] = score(real_model, tokenizer, [talk[2:3]], ["In Korea."])  # the oldest exchange went
    assert line["logprob"] == pytest.approx(scores.sum().item(), abs=1e-4)
    assert (totals["records"], totals["answers"], totals["dropped"]) == (2, 1, {"empty answer": 1}) and "pairs" not in totals
    raw = write(tmp_path / "raw.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}])
    assert main(["default", "--data", raw, "--raw", "--empty_answers", "drop"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["dropped"] == {"empty answer": 1}


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
        (PAIRS, ["--raw"], "answers.jsonl line 1: --raw takes one prompt"),
        (PAIRS, ["--unusable", "error"], "answers.jsonl line 3: empty answer"),
        (PAIRS[2:], [], "none of the 1 records can be used: 1 x empty answer"),
        (RECORDS, ["--empty_answers", "keep"], "empty_answers must be error or drop, got 'keep'"),
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
