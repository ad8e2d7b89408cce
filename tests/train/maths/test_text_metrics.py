"""Exact match, chrF, BLEU and ROUGE against hand counts and against the libraries' own."""

import math

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf

from seodang.train.maths.text_metrics import ROUGE, TEXT_METRICS, text_metrics, words_of


def test_exact_and_contained_fold_white_space():
    found = text_metrics(["Seoul. ", "in  Busan", "x"], ["Seoul.", "Busan", "y"])
    assert (found["exact"], found["contains"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert tuple(found) == TEXT_METRICS and text_metrics([], []) == dict.fromkeys(TEXT_METRICS, 0.0)


def test_rouge_by_hand_in_korean():
    """Of 3 words said and 4 expected 2 are shared, 1 pair of neighbours of 2 and 3, and the longest common subsequence has 2."""
    found = text_metrics(["큰 나무가 자란다"], ["저 큰 나무가 컸다"])
    assert found["rouge1"] == pytest.approx(100 * 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert found["rouge2"] == pytest.approx(100 * 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert found["rougeL"] == found["rouge1"]
    swapped = text_metrics(["나무가 큰"], ["큰 나무가"])
    assert (swapped["rouge1"], swapped["rouge2"], swapped["rougeL"]) == (pytest.approx(100), 0, pytest.approx(50))


def test_rouge_is_the_mean_over_answers():
    each = [text_metrics([a], [e])["rouge1"] for a, e in (("a b", "a c"), ("나무", "나무"))]
    assert each == pytest.approx([50, 100]) and text_metrics(["a b", "나무"], ["a c", "나무"])["rouge1"] == pytest.approx(75)


def test_on_english_it_is_rouge_scores_own():
    said = ["The quick brown fox_jumps over 3.5 dogs, don't it?", "No."]
    wanted = ["A quick Fox jumped over 3 dogs; don't!", "Yes."]
    own = [RougeScorer(list(ROUGE)).score(w, s) for w, s in zip(wanted, said)]
    found = text_metrics(said, wanted)
    assert [found[name] for name in ROUGE] == pytest.approx([50 * sum(each[name].fmeasure for each in own) for name in ROUGE])


def test_words_are_kept_in_every_script():
    assert words_of("나무가, 자란다!") == ["나무가", "자란다"]
    assert words_of("木が育つ。Ça va? Ελλάς हिन्दी") == ["木", "が", "育", "つ", "ça", "va", "ελλάς", "हिन्दी"]
    assert words_of("한") == words_of("\u1112\u1161\u11ab")  # as a Mac writes it


def test_bleu_and_chrf_are_the_corpus_scores_of_sacrebleu():
    said, wanted = ["the cat sat on the mat", "나무가 자란다"], ["the cat sat on a mat", "나무가 잘 자란다"]
    found = text_metrics(said, wanted)
    assert found["bleu"] == pytest.approx(corpus_bleu(said, [wanted]).score) and found["chrf"] == pytest.approx(corpus_chrf(said, [wanted]).score)
    # by hand: of 6 + 2 words 5 + 2 match, of 5 + 1 pairs 3 + 0, of 4 triples 2, of 3 fours 1; 8 words against 9
    matched = (7 / 8) * (3 / 6) * (2 / 4) * (1 / 3)
    assert found["bleu"] == pytest.approx(100 * math.exp(1 - 9 / 8) * matched**0.25)
    # chrF2 of one answer with one character right of 2 and 4, and no longer n-gram: the mean over the orders that both have
    assert text_metrics(["ab"], ["acde"])["chrf"] == pytest.approx(corpus_chrf(["ab"], [["acde"]]).score)
