"""seodang score by an encoder: pseudo-log-likelihoods of texts, completions and preferences."""

import json
import math

import pytest

from seodang.infer import load, pseudo_log_likelihood
from seodang.infer.encoders.encoder import Encoder
from seodang.infer.encoders.pseudo_likelihood import judged_behind, pseudo_logprobs
from seodang.recipes.score import main

WHERE = ["--device", "cpu", "--dtype", "float32"]


@pytest.fixture
def folder(save_encoder):
    return save_encoder("bert")


@pytest.fixture
def scored(folder, tmp_path, capsys):
    """`scored(records, *options)`: the lines that are printed."""

    def run(records: list[dict], *options: str) -> list[dict]:
        data = tmp_path / "texts.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in records))
        assert main([str(folder), "--data", str(data), *WHERE, *options]) == 0
        return list(map(json.loads, capsys.readouterr().out.splitlines()))

    return run


def figures(value: float, tokens: int) -> dict:
    return {
        "pll": pytest.approx(value, rel=1e-5), "tokens": tokens, "pll_per_token": pytest.approx(value / tokens, rel=1e-5),
        "pseudo_perplexity": pytest.approx(math.exp(-value / tokens), rel=1e-4),
    }  # fmt: skip


@pytest.mark.parametrize("metric", ["original", "within_word_l2r"])
def test_texts_are_scored_as_python_scores_them(folder, scored, metric):
    texts = ["seoul is the capital of korea.", "an unbelievable city", "paris"]
    first, second, third, totals = scored([{"sentence": text} for text in texts], "--columns", "text=sentence", "--tokens", "--pll_metric", metric)
    expected = pseudo_log_likelihood(*load(folder, device="cpu", dtype="float32"), texts, metric=metric)
    for number, (line, own) in enumerate(zip((first, second, third), expected), 1):
        assert line == {"record": f"texts.jsonl line {number}", **figures(own.value, len(own.ids)), "logprobs": pytest.approx(own.logprobs.tolist(), abs=1e-5)}
    assert totals == {"records": 3, "answers": 3, **figures(sum(own.value for own in expected), sum(len(own.ids) for own in expected))}


def test_of_preferences_and_choices_each_text_is_scored_behind_its_prompt(folder, scored):
    records = [
        {"prompt": "", "chosen": "seoul is a city", "rejected": "seoul is the city"},  # two sentences
        {"prompt": "the capital of korea is", "chosen": "seoul", "rejected": "paris"},
    ]
    sentences, pair, totals = scored(records)
    model, tokenizer = load(folder, device="cpu", dtype="float32")
    good, bad = pseudo_log_likelihood(model, tokenizer, ["seoul is a city", "seoul is the city"])
    assert (sentences["chosen"], sentences["rejected"]) == (figures(good.value, 4), figures(bad.value, 4))
    judge = Encoder(model, tokenizer)
    seoul, paris = (found.sum().item() for found in pseudo_logprobs(judge, [judged_behind(judge, records[1]["prompt"], each, "") for each in ("seoul", "paris")]))
    assert (pair["chosen"], pair["rejected"], pair["margin"]) == (figures(seoul, 1), figures(paris, 1), pytest.approx(seoul - paris, rel=1e-4))
    margins = [good.value - bad.value, seoul - paris]
    assert totals["pairs"] == 2 and totals["chosen_above"] == sum(margin > 0 for margin in margins) / 2
    ranked, _ = scored([{"prompt": "the capital of korea is", "responses": ["paris", "suwon", "seoul"], "scores": [0, 1, 2]}])
    assert [(each["rank"], each["pll"]) for each in ranked["answers"]][::2] == [(0, pytest.approx(seoul, rel=1e-5)), (2, pytest.approx(paris, rel=1e-5))]
    completion, _ = scored([{"prompt": "the capital of korea is", "completion": "seoul"}])
    assert completion["pll"] == pytest.approx(seoul, rel=1e-5)


def test_preferences_that_compare_nothing_are_left_out_and_counted(scored):
    good = {"prompt": "a", "responses": ["city", "", "paris"], "scores": [0, 1, 2]}
    tie, alone = {**good, "scores": [1, 1, 1]}, {**good, "responses": ["city", "", " "]}
    line, totals = scored([tie, good, alone])
    assert line["margin"] == pytest.approx(line["chosen"]["pll"] - line["rejected"]["pll"])
    assert (totals["records"], totals["answers"], totals["pairs"]) == (3, 2, 1) and sum(totals["dropped"].values()) == 2


def test_empty_texts_can_be_left_out_and_are_counted(scored):
    line, totals = scored([{"prompt": "a", "completion": "city"}, {"prompt": "a", "completion": ""}], "--empty_answers", "drop")
    assert line["tokens"] == 1 and (totals["records"], totals["answers"], totals["dropped"]) == (2, 1, {"empty answer": 1})


TALK = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"prompt": "a", "completion": ""}, [], "texts.jsonl line 1: the completion is empty"),
        ({"text": "a [MASK]"}, [], "texts.jsonl line 1 has [MASK], the mask token"),
        ({"text": "a " * 50}, [], "texts.jsonl line 1 has 52 tokens, more than the 40 positions of the encoder"),
        ({"messages": TALK}, [], "texts.jsonl line 1: an encoder judges texts and knows no chat template"),
        ({"text": "a"}, ["--draws", "4"], "--draws 4 means nothing to an encoder"),
        ({"text": "a"}, ["--max_length", "4"], "--max_length 4 means nothing to an encoder"),
        ({"text": "a"}, ["--pll_metric", "l2r"], "metric must be original or within_word_l2r, got 'l2r'"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_before_any_compute(folder, tmp_path, monkeypatch, capsys, record, options, message):
    monkeypatch.setattr(Encoder, "_logits", lambda *_: pytest.fail("computed something"))
    (tmp_path / "texts.jsonl").write_text(json.dumps(record) + "\n")
    assert main([str(folder), "--data", str(tmp_path / "texts.jsonl"), *options, *WHERE]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_option_of_encoders_is_refused_for_a_decoder(base, tmp_path, capsys):
    (tmp_path / "texts.jsonl").write_text('{"text": "abc"}\n')
    assert main([str(base), "--data", str(tmp_path / "texts.jsonl"), "--pll_metric", "original"]) == 2
    assert "--pll_metric original is of encoders, but this llama has a log-likelihood of its own" in capsys.readouterr().err
