import pytest

from seodang.data.text.overlap import overlap_line, overlaps, text_in


def by_hand(text, others, run):
    """The share of a text's words, given small and without punctuation, that lie in a run which stands in one of the others."""
    words = text.split()
    run = min(run, len(words))
    found = set()
    for start in range(len(words) - run + 1):
        for other in map(str.split, others):
            if any(other[at : at + run] == words[start : start + run] for at in range(len(other) - run + 1)):
                found |= {*range(start, start + run)}
    return len(found) / len(words)


OTHERS = ["a b c d x y z", "c d e f g h", "큰 나무가 산 에서 자란다", "q"]
TEXTS = ["a b c d e f", "x y z a b c d", "g h a b", "나무가 산 에서 자란다", "u v w q", "d x y z c d e"]


@pytest.mark.parametrize("run", [2, 3, 4, 8])
def test_shares_are_those_found_word_by_word(run):
    assert overlaps(TEXTS, OTHERS, run) == pytest.approx([by_hand(text, OTHERS, run) for text in TEXTS])


def test_case_and_punctuation_do_not_count_and_short_texts_are_not_judged():
    assert overlaps(["The cat, sat down!", "the cat"], ["so: the CAT sat... down there"]) == [1.0, None]
    assert overlaps(["the cat sat down"], ["the cat sat", "down"]) == [0.0]  # in one record


def test_a_record_says_its_texts_whatever_its_shape():
    assert text_in({"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}], "n": 3}) == "Hi. Hello."
    assert text_in({"choices": {"text": ["a", "b"]}, "conversations": [{"from": "gpt", "value": "c"}], "of": None}) == "a b c"


def test_what_is_warned_of():
    assert overlap_line([0.4, None, 0.0], ["a", "b", "c"]) is None
    line = overlap_line([0.5, 1.0, 0.4, None], ["line 1", "line 2", "line 3", "line 4"])
    assert "2 of 4 evaluation records" in line and "1 of them all (line 1, line 2)" in line
