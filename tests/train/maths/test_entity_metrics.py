import json
from pathlib import Path

import pytest

from seodang.data.tagging.schemes import Span, first_broken, label_set, spans_of
from seodang.train.maths.classification_metrics import class_scores
from seodang.train.maths.entity_metrics import decisions_over, entity_metrics

CASES = json.loads((Path(__file__).parents[1] / "golden" / "seqeval.json").read_text())  # written by make_seqeval.py beside it


def measured(case):
    labels = label_set(tag for tags in (*case["truth"], *case["predicted"]) for tag in tags)
    found = decisions_over([(spans_of(truth), spans_of(predicted)) for truth, predicted in zip(case["truth"], case["predicted"], strict=True)], labels)
    return labels, found


def told(report):
    micro, macro = report["micro avg"], report["macro avg"]
    return [micro["precision"], micro["recall"], micro["f1-score"], macro["f1-score"]]


@pytest.mark.parametrize("case", CASES)
def test_the_figures_are_seqevals(case):
    labels, found = measured(case)
    assert list(entity_metrics(found).values.values()) == pytest.approx(told(case["report"]), abs=1e-12)
    for label, *scores, of in zip(labels, *(values.tolist() for values in class_scores(found)), found.tolist(), strict=True):
        if label in case["report"]:
            want = case["report"][label]
            assert [*scores, of[0] + of[2]] == pytest.approx([want["precision"], want["recall"], want["f1-score"], want["support"]])
        else:
            assert of == [0, 0, 0]


@pytest.mark.parametrize("case", CASES)
def test_entities_are_read_as_seqeval_reads_them_whatever_the_tags(case):
    for tags, want in zip(case["predicted"], case["entities"], strict=True):
        assert [[label, start, end] for start, end, label in spans_of(tags)] == want


def test_seqevals_strict_mode_says_the_same_where_both_sides_are_iob2():
    both = [case for case in CASES if all(first_broken(tags, "IOB2") is None for tags in (*case["truth"], *case["predicted"]))]
    assert len(both) >= 3
    for case in both:
        _, found = measured(case)
        assert list(entity_metrics(found).values.values()) == pytest.approx(told(case["strict"]), abs=1e-12)


def test_right_wrong_and_missed_by_hand():
    truth = [Span(0, 2, "PER"), Span(3, 4, "LOC"), Span(5, 6, "LOC")]
    predicted = [Span(0, 1, "PER"), Span(3, 4, "LOC"), Span(5, 6, "PER")]
    found = decisions_over([(truth, predicted), ([], [])], ["LOC", "PER"])
    assert found.tolist() == [[1, 0, 1], [0, 2, 1]]
    values = entity_metrics(found).values
    assert values == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3, "macro_f1": (2 / 3 + 0) / 2})
