import pytest

from seodang.data.literal import literal_encodings
from seodang.data.text.word_starts import word_starts


def said(tokenizer, text):
    """What each word says, in letters of the text."""
    [encoding] = literal_encodings(tokenizer, [text])
    starts = [*word_starts(encoding, text).nonzero()[0], len(encoding)]
    spans = [encoding.offsets[a:b] for a, b in zip(starts, starts[1:])]
    return [text[span[0][0] : span[-1][1]] for span in spans]


KOREAN = "영화가  정말 재미있었어요! Don't"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("wordpiece", ["영화가", "정말", "재미있었어요", "!", "Don", "'", "t"]),
        ("bytes", ["영화가", " ", " 정말", " 재미있었어요", "!", " Don", "'t"]),
        ("unigram", ["영화가", " ", " 정말", " 재미있었어요!", " Don't"]),
        ("unsplit", ["영화가", " ", " 정말", " 재미있었어요!", " Don't"]),
    ],
)
def test_words_are_those_that_the_tokenizer_parts_and_where_it_parts_none_those_between_blanks(text_tokenizer, kind, expected):
    assert said(text_tokenizer(kind), KOREAN) == expected


@pytest.mark.parametrize("kind", ["wordpiece", "bytes"])
def test_words_are_the_same_however_few_tokens_the_vocabulary_has(text_tokenizer, kind):
    """Words that were merged into one token and those that fell to letters, or bytes, begin at the same places."""
    small, large = (text_tokenizer(kind, size) for size in (60, 400))
    assert said(small, KOREAN) == said(large, KOREAN)
    few, many = (len(tokenizer(KOREAN)["input_ids"]) for tokenizer in (large, small))
    assert few < many


def test_a_character_of_several_tokens_is_never_parted(text_tokenizer):
    tokenizer = text_tokenizer("bytes")
    for text in ("👩‍👩‍👧 붸쀍 x", "a\u0301 ﷺ\n\n \t𝔘𝔫𝔦"):
        [encoding] = literal_encodings(tokenizer, [text])
        for begins, (start, _), (_, end) in zip(word_starts(encoding, text)[1:], encoding.offsets[1:], encoding.offsets[:-1]):
            assert not begins or start >= end


def test_code_is_parted_where_its_blanks_and_lines_are(text_tokenizer):
    assert said(text_tokenizer("bytes"), "x = foo(1)\n  return") == ["x", " =", " foo", "(", "1", ")", "\n ", " return"]
    assert said(text_tokenizer("unsplit"), "x = foo(1)\n  return") == ["x", " =", " foo(1)", "\n", " ", " return"]


def test_the_first_token_begins_a_word_and_no_text_has_none(text_tokenizer):
    for kind in ("wordpiece", "bytes", "unigram", "unsplit"):
        [one, none] = literal_encodings(text_tokenizer(kind), ["z", ""])
        assert word_starts(one, "z").tolist()[:1] == [True]
        assert word_starts(none, "").tolist() == []
