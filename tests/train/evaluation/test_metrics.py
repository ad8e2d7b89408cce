"""What each metric says of a few cases, by hand and by the functions that compute it over a whole corpus."""

import json
import math

import numpy as np
import pytest
import torch
from sacrebleu import corpus_bleu

from seodang.data.errors import UserError
from seodang.train.evaluation.case import Case, Likelihood
from seodang.train.evaluation.comparison import compared
from seodang.train.evaluation.likelihood_metrics import probabilities
from seodang.train.evaluation.registry import RULES, automatic, mark_metric, most_samples, parse_metrics
from seodang.train.maths.bits_per_byte import bits_per_byte
from seodang.train.maths.calibration import expected_calibration_error, reliability
from seodang.train.maths.text_metrics import TEXT_METRICS, text_metrics


def values_of(names, cases, **how):
    """The figures of one model."""
    return {name: figures[0].estimate.value for name, figures in compared(parse_metrics(names, **how), [cases], resamples=10).items()}


SAID = ["the cat sat on the mat", "나무가 자란다", "Seoul. ", "in  Busan"]
WANTED = ["the cat sat on a mat", "나무가 잘 자란다", "Seoul.", "Busan"]


def test_over_all_records_they_are_the_metrics_of_generate():
    cases = [Case([said, "another"], wanted) for said, wanted in zip(SAID, WANTED)]
    assert values_of(TEXT_METRICS, cases) == pytest.approx(text_metrics(SAID, WANTED))


def test_exact_match_by_what_is_taken_out():
    cases = [Case(["the Seoul!"], "Seoul"), Case(["seoul"], "Seoul"), Case(["Seoul"], "Seoul")]
    assert values_of(["exact"], cases)["exact"] == pytest.approx(1 / 3)
    assert values_of(["exact"], cases, without=["case"])["exact"] == pytest.approx(2 / 3)
    assert values_of(["exact"], cases, without=["case", "punctuation", "articles"])["exact"] == 1


def test_bleu_drawn_anew_is_the_corpus_score():
    [metric] = parse_metrics(["bleu"])
    rows = np.array([metric.row(Case([said], wanted)) for said, wanted in zip(SAID, WANTED)])
    twice = metric.value(np.stack([rows.sum(0), np.array([3, 1, 0, 0]) @ rows]))
    assert twice[0] == pytest.approx(corpus_bleu(SAID, [WANTED]).score)
    assert twice[1] == pytest.approx(corpus_bleu([SAID[0]] * 3 + SAID[1:2], [[WANTED[0]] * 3 + WANTED[1:2]]).score)


def test_perplexity_is_a_tokens_and_bits_are_a_bytes():
    cases = [Case(reference="ab", likelihood=Likelihood(3 * math.log(2), 3, "ab")), Case(reference="한", likelihood=Likelihood(math.log(16), 1, "한"))]
    found = values_of(["perplexity", "bits_per_byte"], cases)
    assert found["perplexity"] == pytest.approx(2 ** (7 / 4))  # 7 bits in 4 tokens
    assert found["bits_per_byte"] == pytest.approx(7 / 5) == bits_per_byte(7 * math.log(2), 5)  # and in 2 + 3 bytes


def choice(nats, tokens, text):
    return Likelihood(nats, tokens, text)


def test_multiple_choice_by_every_length():
    """The long choice costs more in all, less a token, byte and character; the Korean one has three bytes a character."""
    cases = [Case(choices=[choice(3.0, 1, "no"), choice(4.0, 2, "certainly")], right=1), Case(choices=[choice(4.0, 4, "abcd"), choice(3.5, 2, "나무가")], right=1)]
    found = values_of(["acc", "acc_token", "acc_byte", "acc_char"], cases)
    assert found == {"acc": 0.5, "acc_token": 0.5, "acc_byte": 1.0, "acc_char": 0.5}
    # acc: 3 < 4, 3.5 < 4; token: 4/2 < 3/1, 4/4 < 3.5/2; byte: 4/9 < 3/2, 3.5/9 < 4/4; character: 4/9 < 3/2, 4/4 < 3.5/3


def test_calibration_over_choices():
    halves = [choice(math.log(2), 1, "a"), choice(math.log(2), 1, "b")]
    sure = [choice(math.log(10 / 9) + 5, 1, "a"), choice(math.log(10) + 5, 1, "b")]  # 0.9 and 0.1, of which 5 nats more say nothing
    assert probabilities(sure) == pytest.approx([0.9, 0.1])
    cases = [Case(choices=halves, right=0), Case(choices=halves, right=1), Case(choices=sure, right=0), Case(choices=sure, right=1), Case(choices=sure, right=0)]
    found = values_of(["ece", "brier"], cases)
    confidence, right = torch.tensor([0.5, 0.5, 0.9, 0.9, 0.9]), torch.tensor([1, 0, 1, 0, 1])
    assert found["ece"] == pytest.approx(expected_calibration_error(reliability(confidence, right))) == pytest.approx(3 / 5 * (0.9 - 2 / 3))
    assert found["brier"] == pytest.approx((0.5 + 0.5 + 0.02 + 1.62 + 0.02) / 5)


def test_pass_at_k_counts_answers_that_pass_every_rule():
    cases = [Case(["a"] * 4, marks={RULES: [1, 0, 0.9, 1]}), Case(["a"] * 4, marks={RULES: [0, 0, 0, 0]})]
    found = values_of(["pass@1", "pass@2"], cases)
    assert found == {"pass@1": pytest.approx((2 / 4) / 2), "pass@2": pytest.approx((1 - 1 / 6) / 2)}
    assert most_samples(parse_metrics(["exact", "pass@2", "pass@1"])) == 2


def test_a_mark_is_a_mean_of_means():
    figures = compared([mark_metric("rule")], [[Case(["a", "b"], marks={"rule": [1, 0]}), Case(["a"], marks={"rule": [1]}), Case()]])
    assert (figures["rule"][0].estimate.value, figures["rule"][0].estimate.records) == (0.75, 2)


def test_forms_are_told_by_what_reads_them(tmp_path):
    schema, grammar = tmp_path / "city.json", tmp_path / "city.lark"
    schema.write_text(json.dumps({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"const": 1}}, "required": ["a"]}))
    grammar.write_text('start: "나무" " " NUMBER\nNUMBER: /[0-9]+/\n', encoding="utf-8")
    names = ["json", "regex:[0-9]+", f"schema:{schema}", f"grammar:{grammar}"]
    metrics = {metric.name: metric for metric in parse_metrics(names)}
    fits = {
        "json": {'{"a": [1]}': 1, " 3 \n": 1, "{'a': 1}": 0, "NaN": 0, "": 0, '{"a": 1} so': 0},
        "regex": {"42": 1, "42!": 0, "": 0},
        "schema": {'{\n "b": 1, "a": 2}': 1, '{"a": "2"}': 0, '{"b": 1}': 0, "a": 0},
        "grammar": {"나무 12": 1, "나무 ": 0, "나무 12.": 0, "": 0},
    }
    for name, answers in fits.items():
        assert {text: metrics[name].of(Case([text])) for text in answers} == answers, name
    assert metrics["json"].of(Case(["1", "x", "2", "["])) == 0.5  # of several answers the share


def test_what_cannot_be_measured_is_left_out():
    [exact, chrf] = parse_metrics(["exact", "chrf"])
    assert exact.of(Case([], "a")) is None and exact.of(Case(["a"])) is None and chrf.of(Case(["a"])) is None
    figures = compared([exact], [[Case(["a"], "a"), Case(["a"]), Case([], "b")]])
    assert (figures["exact"][0].estimate.value, figures["exact"][0].estimate.records, figures["exact"][0].estimate.low) == (1, 1, None)


@pytest.mark.parametrize(
    "names, how, message",
    [
        (["exakt"], {}, "unknown metric 'exakt': did you mean exact?; there are exact, contains"),
        (["exakt"], {}, "and of themselves rule by --reward, reward_model by --reward_model, reward_win by --reward_model, judge_win by --judge"),
        (["rule:form"], {}, "metric 'rule:form' is measured where --reward is given, and needs no name: give that, and leave rule:form out of --metrics"),
        (["judge_win"], {}, "metric 'judge_win' is measured where --judge is given"),
        (["regex"], {}, "metric 'regex' must be given as regex:PATTERN"),
        (["json:x"], {}, "metric 'json:x' must be given as json"),
        (["regex:("], {}, "'(' is not a regular expression"),
        (["schema:nowhere.json"], {}, "there is no file nowhere.json"),
        (["pass@0"], {}, "must be given as pass@K"), (["pass@x"], {}, "must be given as pass@K"),
        (["exact", "exact"], {}, "metric exact is given twice"),
        (["exact"], {"without": ["cases"]}, "got 'cases': did you mean case?"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_refused(names, how, message):
    with pytest.raises(UserError) as error:
        parse_metrics(names, **how)
    assert message in str(error.value)


def test_records_say_what_is_measured():
    assert "exact" in automatic(True, False) and "acc" in automatic(True, True) and automatic(False, False) == []
