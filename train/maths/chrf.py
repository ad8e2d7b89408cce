"""chrF, the F-score of character n-grams, from counts that add up over a corpus and its resamples."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

ORDER, BETA = 6, 2  # chrF2


def chrf_counts(answer: str, expected: str) -> NDArray[np.float64]:
    """Of each length of n-gram from 1 to `ORDER`, white space left out, how many the answer has, the expected text has, and both share: [3 x ORDER].

    What the expected text is too short for is not counted in the answer.
    """
    answer, expected = "".join(answer.split()), "".join(expected.split())
    found = []
    for n in range(1, ORDER + 1):
        ours, theirs = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (answer, expected))
        found += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
    return np.array(found, dtype=np.float64)


def chrf(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The score in [0, 100] of counts [..., 3 x ORDER], those of a corpus added up: [...].

    Precision and recall are each the mean over the lengths that both sides have, and recall weighs BETA times as much: Popović 2015, "chrF: character
    n-gram F-score for automatic MT evaluation", as sacrebleu computes it.
    """
    ours, theirs, shared = np.moveaxis(np.reshape(counts, (*np.shape(counts)[:-1], ORDER, 3)), -1, 0)
    both = (ours > 0) & (theirs > 0)
    lengths = np.maximum(both.sum(-1), 1)
    precision, recall = (np.where(both, shared / np.maximum(whole, 1), 0).sum(-1) / lengths for whole in (ours, theirs))
    weighted = BETA**2 * precision + recall
    return 100 * (1 + BETA**2) * precision * recall / np.where(weighted > 0, weighted, 1)
