"""chrF, the likeness of two texts by their characters."""

from __future__ import annotations

from collections import Counter

ORDER = 6  # longest n-gram
BETA = 2  # recall counts as much as precision BETA times over

Grams = tuple[Counter[str], ...]  # how often a text has each n-gram, a counter for each n


def chrf(hypothesis: str, reference: str) -> float:
    """Return chrF2 in [0, 1] (Popovic 2015, 2016), as sacrebleu computes it for one sentence, divided by 100.

    Precision and recall are means over the n-grams of 1 to 6 characters that both texts are long enough for; whitespace does not count.
    Two texts without characters are alike.
    """
    return chrf_of(grams(hypothesis), grams(reference))


def chrf_of(hypothesis_grams: Grams, reference_grams: Grams) -> float:
    """As `chrf`, of texts whose n-grams are counted already."""
    if hypothesis_grams == reference_grams:
        return 1.0
    pairs = [(a, b) for a, b in zip(hypothesis_grams, reference_grams) if a and b]
    if not pairs:
        return 0.0
    matches = [(a & b).total() for a, b in pairs]
    precision = sum(m / a.total() for m, (a, _) in zip(matches, pairs)) / len(pairs)
    recall = sum(m / b.total() for m, (_, b) in zip(matches, pairs)) / len(pairs)
    if precision + recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)


def grams(text: str) -> Grams:
    """Count the text's n-grams of each order."""
    text = "".join(text.split())
    return tuple(Counter(text[i : i + n] for i in range(len(text) - n + 1)) for n in range(1, ORDER + 1))
