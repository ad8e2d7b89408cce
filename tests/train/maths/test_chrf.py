import numpy as np
import pytest
from sacrebleu import corpus_chrf

from seodang.train.maths.chrf import chrf, chrf_counts

SAID = ["the cat sat on the mat", "나무가 자란다", "", "ab", "같은 말", "x"]
WANTED = ["the cat sat on a mat", "나무가 잘 자란다.", "not empty", "acde", "같은 말", "yz"]


def test_a_score_by_hand():
    """Of 2 letters 1 is among the other's 4, of 1 pair none is among 3; precision (1/2 + 0) / 2, recall (1/4 + 0) / 2."""
    counts = chrf_counts("ab", "a c d e")
    assert counts.tolist() == [2, 4, 1, 1, 3, 0, 0, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert chrf(counts) == pytest.approx(100 * 5 * (1 / 4) * (1 / 8) / (4 * (1 / 4) + 1 / 8))


def test_corpora_and_single_answers_score_as_sacrebleu_says():
    each = np.array([chrf_counts(said, wanted) for said, wanted in zip(SAID, WANTED)])
    assert chrf(each.sum(0)) == pytest.approx(corpus_chrf(SAID, [WANTED]).score)
    assert chrf(each).tolist() == pytest.approx([corpus_chrf([said], [[wanted]]).score for said, wanted in zip(SAID, WANTED)])


def test_a_corpus_drawn_anew_scores_by_its_weighted_counts():
    each = np.array([chrf_counts(said, wanted) for said, wanted in zip(SAID, WANTED)])
    times = np.array([2, 0, 1, 3, 0, 0])
    drawn = [place for place, count in enumerate(times) for _ in range(count)]
    assert chrf(times @ each) == pytest.approx(corpus_chrf([SAID[i] for i in drawn], [[WANTED[i] for i in drawn]]).score)
