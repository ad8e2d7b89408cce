import random

import pytest

from seodang.data.classification.encoding import TextEncoder, shared_room
from seodang.data.classification.labels import MULTI, SINGLE
from seodang.data.classification.records import TextRecord
from seodang.data.classification.rows import Labelled, TextCounts, classification_rows, hold_out_by_label, with_labels
from seodang.data.errors import UserError

WORDS = [f"w{number}" for number in range(20)]  # their ids from 5 on
CLS, SEP = 2, 3


def words(*numbers):
    return " ".join(f"w{number}" for number in numbers)


@pytest.mark.parametrize(
    ("cut", "kept"), [("right", [5, 6, 7, 8]), ("left", [7, 8, 9, 10]), ("middle", [5, 6, 9, 10])]
)
def test_a_long_text_loses_the_side_that_is_named(word_tokenizer, cut, kept):
    [found] = TextEncoder(word_tokenizer(WORDS), 6, cut)([words(0, 1, 2, 3, 4, 5)])
    assert found.input_ids == [CLS, *kept, SEP] and found.whole == 8 and found.truncated


def test_an_odd_place_of_the_middle_goes_to_the_beginning(word_tokenizer):
    [found] = TextEncoder(word_tokenizer(WORDS), 5, "middle")([words(0, 1, 2, 3, 4)])
    assert found.input_ids == [CLS, 5, 6, 9, SEP]


def test_pairs_are_cut_as_transformers_does(word_tokenizer):
    """Of 300 pairs of any lengths: ids and types of `truncation="longest_first"`."""
    tokenizer, draw = word_tokenizer(WORDS), random.Random(0)
    pairs = [(words(*range(draw.randint(1, 12))), words(*range(draw.randint(1, 12)))) for _ in range(300)]
    limits = [draw.randint(6, 24) for _ in pairs]
    for (text, pair), limit in zip(pairs, limits, strict=True):
        [found] = TextEncoder(tokenizer, limit)([text], [pair])
        want = tokenizer(text, pair, truncation="longest_first", max_length=limit)
        assert (found.input_ids, found.token_type_ids) == (want["input_ids"], want["token_type_ids"]), (text, pair, limit)


def test_both_sides_of_the_middle_of_a_pair_stay(word_tokenizer):
    [found] = TextEncoder(word_tokenizer(WORDS), 9, "middle")([words(0, 1, 2, 3, 4, 5)], [words(6, 7)])
    assert found.input_ids == [CLS, 5, 6, 9, 10, SEP, 11, 12, SEP] and found.token_type_ids == [0] * 6 + [1] * 3
    assert shared_room(6, 2, 6) == (4, 2)


def test_no_room_and_an_unknown_cut_are_refused(word_tokenizer, tiny_tokenizer):
    with pytest.raises(UserError, match="more than the 3 special tokens of a pair, got 3"):
        TextEncoder(word_tokenizer(WORDS), 3)
    with pytest.raises(UserError, match="cut must be right, middle or left"):
        TextEncoder(word_tokenizer(WORDS), 9, "centre")
    with pytest.raises(UserError, match="puts nothing between the two texts"):
        TextEncoder(tiny_tokenizer).check_pairs()


def labelled(*pairs):
    return [Labelled(TextRecord(f"line {number}", text), label) for number, (text, label) in enumerate(pairs, start=1)]


def test_rows_and_what_became_of_the_records(word_tokenizer):
    encoder = TextEncoder(word_tokenizer(WORDS), 5)
    examples = labelled((words(1, 2), "b"), ("  ", "a"), (words(3), None), (words(1, 2, 3, 4), "a"))
    rows, counts = classification_rows(examples, encoder, ["a", "b"], SINGLE)
    assert rows == [
        {"input_ids": [CLS, 6, 7, SEP], "token_type_ids": [0] * 4, "label": 1, "where": "line 1"},
        {"input_ids": [CLS, 6, 7, 8, SEP], "token_type_ids": [0] * 5, "label": 0, "where": "line 4"},
    ]
    assert counts.lines() == [
        "records         4 read, 2 kept in 2 rows, 9 tokens", "dropped         1 x empty text", "dropped         1 x no label",
        "truncated       1 texts longer than 5 tokens lost their end", "labels          a 1, b 1",
    ]  # fmt: skip
    with pytest.raises(UserError, match="line 2: empty text"):
        classification_rows(examples, encoder, ["a", "b"], SINGLE, unusable="error")


def test_every_class_is_held_out_by_its_share_and_none_whole():
    examples = labelled(*[("x", "a")] * 50, *[("x", "b")] * 30, *[("x", "c")] * 2, ("x", "d"))
    train, held = hold_out_by_label(examples, 0.2, random.Random(0).sample(range(83), 83), SINGLE)
    counts = {name: sum(each.label == name for each in held) for name in "abcd"}
    assert counts["a"] in (9, 10, 11) and counts["b"] in (5, 6, 7) and counts["c"] <= 1 and counts["d"] == 0
    assert sorted(each.record.where for each in train + held) == sorted(each.record.where for each in examples)
    with pytest.raises(UserError, match="leaves nothing held out"):
        hold_out_by_label(labelled(("x", "a"), ("x", "b")), 0.1, [0, 1], SINGLE)


def test_no_label_of_several_loses_its_last_record_to_what_is_held_out():
    """The third record alone has the label c, and by chance's order would be held out first."""
    examples = with_labels([TextRecord(f"line {i}", f"t{i}", label=label) for i, label in enumerate((["a"], ["b"], ["a", "c"], ["b"], ["a"], ["b"]))], MULTI)
    train, held = hold_out_by_label(examples, 0.5, [2, 0, 1, 3, 4, 5], MULTI)
    assert {name for each in train for name in each.label} == {"a", "b", "c"}
    assert 2 <= len(held) <= 3 and all("c" not in each.label for each in held)


def test_labels_that_differ_in_spaces_alone_are_told_of():
    counts = TextCounts(records=3, kept=3, rows=3, classes=[(" a", 1), ("A", 1), ("b", 1)])
    assert "warning         the labels ' a' and 'A' are two classes, and differ in spaces or capitals alone" in counts.lines()
