import collections
import re
import string

import pytest

from seodang.train.maths.answer_matching import KINDS, matching, token_f1


def squad(text):
    """normalize_answer of SQuAD's evaluation, step by step."""
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(answer, expected):
    ours, theirs = squad(answer).split(), squad(expected).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(ours), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)


ENGLISH = ["The Eiffel Tower.", "in the city of Paris, France", "", "a", "don't [stop] {it} 3.5^2", "the the cat sat sat", "cat sat"]


@pytest.mark.parametrize("answer", ENGLISH)
def test_english_is_judged_as_squad_judges_it(answer):
    assert matching(answer, KINDS) == squad(answer)
    for expected in ENGLISH:
        assert token_f1(answer, expected) == pytest.approx(squad_f1(answer, expected)), expected


def test_each_kind_takes_out_its_own():
    text = " The  “cat” an\tapple. "
    assert matching(text) == "The “cat” an apple."
    assert matching(text, ["case"]) == "the “cat” an apple."
    assert matching(text, ["punctuation"]) == "The cat an apple"
    assert matching(text, ["case", "articles"]) == "“cat” apple."
    assert matching("\u1112\u1161\u11ab국") == "한국"  # as a Mac writes it


def test_f1_in_scripts_of_the_east():
    assert token_f1("나무가 자란다.", "나무가 잘 자란다") == pytest.approx(4 / 5)  # 2 of 2 and 2 of 3 words
    assert token_f1("東京です", "東京") == pytest.approx(2 * 2 / (4 + 2))  # each character is a word
