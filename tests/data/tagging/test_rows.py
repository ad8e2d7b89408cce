import pytest

from seodang.data.errors import UserError
from seodang.data.tagging.encoding import TagEncoder
from seodang.data.tagging.records import TaggedText
from seodang.data.tagging.rows import entities_from, entity_labels, spans_over, tagging_rows
from seodang.data.tagging.schemes import Span

NAMES = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def of(text, *entities, words=None, where="line 1"):
    return TaggedText(where, text, entities, words)


def test_the_first_token_of_a_word_has_its_tag_and_all_others_none(wordpiece):
    [row], counts = tagging_rows([of("seoul is unbelievable city.", Span(0, 5, "LOC"), Span(9, 26, "PER"))], TagEncoder(wordpiece), NAMES)
    [window] = row["windows"]
    #                            [CLS] seoul is un ##believ ##able city .  [SEP]
    assert window["labels"] == [-100, 1, 0, 3, -100, -100, 4, 0, -100]
    assert row["units"] == [[0, 5], [6, 8], [9, 21], [22, 26], [26, 27]] and row["entities"] == [[0, 5, "LOC"], [9, 26, "PER"]]
    assert (counts.tokens, counts.snapped, counts.lost, counts.entities) == (9, 0, 0, {"LOC": 1, "PER": 1})


def test_every_token_has_a_tag_where_all_subwords_count(wordpiece):
    [row], counts = tagging_rows([of("seoul is unbelievable", Span(9, 21, "PER")), ], TagEncoder(wordpiece, all_subwords=True), NAMES)
    assert row["windows"][0]["labels"] == [-100, 0, 0, 3, 4, 4, -100]
    [row], counts = tagging_rows([of("서울은 수도이다", Span(0, 2, "LOC"))], TagEncoder(wordpiece, all_subwords=True), NAMES)
    assert row["windows"][0]["labels"] == [-100, 1, 0, 0, 0, -100] and counts.snapped == 0


def test_a_border_inside_a_token_is_moved_to_its_end_and_counted(wordpiece):
    """By words the particle belongs to the name; the true borders are kept to measure by."""
    [row], counts = tagging_rows([of("서울은 수도이다", Span(0, 2, "LOC"))], TagEncoder(wordpiece), NAMES)
    assert row["windows"][0]["labels"] == [-100, 1, -100, 0, -100, -100] and row["entities"] == [[0, 2, "LOC"]]
    assert counts.snapped == 1 and any("1 entities end inside a token: learned as the whole token, measured as they are" in line for line in counts.lines())


def test_of_two_entities_in_one_token_the_second_is_not_learned(wordpiece):
    [row], counts = tagging_rows([of("suwon is", Span(0, 2, "LOC"), Span(2, 5, "PER"))], TagEncoder(wordpiece), NAMES)
    assert row["windows"][0]["labels"] == [-100, 1, 0, -100] and len(row["entities"]) == 2
    assert (counts.snapped, counts.lost) == (1, 1) and any("1 entities have no token of their own" in line for line in counts.lines())


def test_entities_over_units_by_hand():
    units = [(0, 3), (4, 6), (6, 9)]
    assert spans_over(units, [Span(0, 3, "A"), Span(4, 9, "B")]) == ([Span(0, 1, "A"), Span(1, 3, "B")], 0, 0)
    assert spans_over(units, [Span(2, 5, "A"), Span(5, 9, "B")]) == ([Span(0, 2, "A"), Span(2, 3, "B")], 2, 0)  # both have a border in (4, 6)
    assert spans_over(units, [Span(3, 4, "A")]) == ([], 0, 1)  # a space
    assert spans_over(units, [Span(3, 7, "A")]) == ([Span(1, 3, "A")], 1, 0)
    assert entities_from([Span(1, 3, "B")], units) == [Span(4, 9, "B")]


def test_windows_share_out_the_tags_of_a_text(word_tokenizer):
    words = [f"w{number}" for number in range(12)]
    text = " ".join(words)
    entity = Span(text.index("w3"), text.index("w6") - 1, "LOC")  # w3 w4 w5, over the border of two windows
    rows, counts = tagging_rows([of(text, entity)], TagEncoder(word_tokenizer(words), 8, 2), NAMES)
    labels = [window["labels"] for window in rows[0]["windows"]]
    assert labels == [[-100, 0, 0, 0, 1, 2, -100, -100], [-100, -100, 2, 0, 0, 0, -100, -100], [-100, -100, 0, 0, 0, -100]]
    assert counts.windowed == 1 and "windows         1 texts longer than 8 tokens are read in several" in counts.lines()


def test_records_without_tags_or_text_are_dropped_or_refused(wordpiece):
    some = [of("seoul", Span(0, 5, "LOC")), TaggedText("line 2", "paris"), of(" ", where="line 3")]
    rows, counts = tagging_rows(some, TagEncoder(wordpiece), NAMES)
    assert len(rows) == 1 and counts.dropped == {"no tags": 1, "empty text": 1}
    with pytest.raises(UserError, match="line 2: no tags: mend the record"):
        tagging_rows(some, TagEncoder(wordpiece), NAMES, "error")
    with pytest.raises(UserError, match="none of the 1 records can be used"):
        tagging_rows(some[1:2], TagEncoder(wordpiece), NAMES)


def test_a_label_that_nobody_trains_on_is_refused(wordpiece):
    assert entity_labels([of("seoul", Span(0, 5, "ORG")), of("a", Span(0, 1, "LOC"))]) == ["LOC", "ORG"]
    with pytest.raises(UserError, match=r"line 1: the label 'ORG' is none of those trained on \(LOC, PER\)"):
        tagging_rows([of("seoul", Span(0, 5, "ORG"))], TagEncoder(wordpiece), NAMES)


def test_held_out_texts_that_are_trained_on_too_are_told(wordpiece):
    _, counts = tagging_rows([of("seoul", Span(0, 5, "LOC"))], TagEncoder(wordpiece), NAMES)
    _, counts.held_out = tagging_rows([of("seoul", Span(0, 5, "LOC"), where="line 9")], TagEncoder(wordpiece), NAMES)
    assert any("1 x held out and trained on, word for word" in line for line in counts.lines())
