"""Pairs: the columns that they are found in, negatives in every form, scores, what is dropped and counted, what is refused with its place."""

import json

import pytest

from seodang.data.classification.encoding import TextEncoder
from seodang.data.errors import UserError
from seodang.data.similarity.pairs import TextPair, hold_out_by_anchor, pair_columns, pair_of, pair_rows, text_pairs, texts_of


@pytest.fixture
def encoder(word_tokenizer):
    return TextEncoder(word_tokenizer([f"w{number}" for number in range(50)]), 5)


@pytest.mark.parametrize(
    "record, wanted",
    [
        ({"anchor": "a", "positive": "b"}, ("a", "b", (), None)), ({"sentence1": "a", "sentence2": "b", "score": "4.5"}, ("a", "b", (), 4.5)),
        ({"query": "a", "document": "b", "negatives": ["c", "d"], "id": 7}, ("a", "b", ("c", "d"), None)),
        ({"question": "a", "answer": "b", "negative_1": "c", "negative_2": "d"}, ("a", "b", ("c", "d"), None)),
        ({"anchor": "a", "positive": "b", "negative": None}, ("a", "b", (), None)),
    ],
)  # fmt: skip
def test_a_pair_is_found_by_its_columns(record, wanted):
    assert pair_of(record, "line 1") == TextPair("line 1", *wanted)


def test_columns_of_other_names_are_named(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"q": "a", "good": "b", "bad": "c"}) + "\n", encoding="utf-8")
    columns = pair_columns(["anchor=q", "positive=good", "negative=bad"])
    [found] = text_pairs([str(path)], columns)
    assert (found.anchor, found.positive, found.negatives) == ("a", "b", ("c",)) and found.where.endswith("line 1")
    with pytest.raises(UserError, match="pairs.jsonl.*line 1: there is no column anchor, query.* among q, good, bad: say which is the anchor"):
        list(text_pairs([str(path)]))
    with pytest.raises(UserError, match="a pair has anchor, positive, negative, score and no 'label'"):
        pair_columns(["label=q"])


def test_rows_and_what_became_of_the_records(encoder):
    pairs = [
        TextPair("1", "w1 w2 w3 w4", "w5", ("w6",)), TextPair("2", "w1", " "), TextPair("3", "w1", "w1"), TextPair("4", "w7", "w8", (), 2.0), TextPair("5", "w9", "w10", (), 4.0),
    ]  # fmt: skip
    rows, counts = pair_rows(pairs, encoder, min_score=3)
    assert [row["where"] for row in rows] == ["1", "5"]
    assert texts_of(rows[0]) == [(2, 6, 7, 8, 3), (2, 10, 3), (2, 11, 3)]  # [CLS] w1 w2 w3 [SEP]: the fourth word is cut
    assert (counts.truncated, counts.negatives, counts.texts, counts.tokens) == (1, 1, 5, 5 + 4 * 3)
    assert counts.dropped == {"empty text": 1, "anchor and positive are one text": 1, "score below min_score": 1}
    assert "1 texts longer than 5 tokens lost their end" in "\n".join(counts.lines())
    assert len(pair_rows(pairs, encoder, learned=False)[0]) == 4  # all but the empty one


@pytest.mark.parametrize(
    "pair, how, message",
    [
        (TextPair("line 1", "w1", "w2", (), 4.0), {}, "line 1 has a score, 4: say from which one on"), (TextPair("line 1", "w1", ""), {"unusable": "error"}, "line 1: empty text"),
        (TextPair("line 1", "w1", ""), {}, "none of the 1 records can be used: 1 x empty text"),
    ],
)  # fmt: skip
def test_pairs_that_teach_nothing_are_refused(encoder, pair, how, message):
    with pytest.raises(UserError, match=message):
        pair_rows([pair], encoder, **how)


@pytest.mark.parametrize("value", ["high", True, float("nan"), [4]])
def test_a_score_must_be_a_number(value):
    with pytest.raises(UserError, match="line 1: score must be a number"):
        pair_of({"anchor": "a", "positive": "b", "score": value}, "line 1")


def test_pairs_of_one_anchor_are_held_out_together():
    pairs = [TextPair(str(i), f"a{i // 3}", f"b{i}") for i in range(12)]
    train, held = hold_out_by_anchor(pairs, 0.2, seed=1)
    assert len(held) == 3 and len(train) == 9 and not {pair.anchor for pair in train} & {pair.anchor for pair in held}
    assert hold_out_by_anchor(pairs, 0.2, seed=1) == (train, held)
    with pytest.raises(UserError, match="leaves nothing to train on of 12 pairs of 4 anchors"):
        hold_out_by_anchor(pairs, 0.99, seed=1)
