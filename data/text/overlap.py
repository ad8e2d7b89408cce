"""Whether records were among others: which of their words stand there too, in runs of several words."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from .words import words_of

RUN = 8  # words that hardly two people put into the same order by chance
LEAST = 4  # words of a text that is judged at all
SPEAKERS = ("role", "from")  # keys of a message that say nothing of what is said
MUCH = 0.5  # of a record's words, from which on it counts as known


def overlaps(texts: Sequence[str], others: Iterable[str], run: int = RUN) -> list[float | None]:
    """Of each text the share of its words that lie in a run of so many words which one of the others has too; of a shorter text, whether all of it has.

    None of a text of fewer than `LEAST` words. Case and punctuation do not count, and a word is one of any script. The `others` are read once and
    not kept. After the n-grams by which Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C, and Chowdhery et al. 2022, "PaLM",
    section 8, found evaluation texts in training data.

    >>> overlaps(["a b c d e"], ["x a B c! y", "b c d"], run=3)
    [0.8]
    """
    words = [words_of(text) for text in texts]
    grams = [[*_grams(each, min(run, len(each)))] if len(each) >= LEAST else [] for each in words]
    wanted = set(chain.from_iterable(grams))
    lengths, found = {len(gram) for gram in wanted}, set()
    for other in others:
        theirs = words_of(other)
        for length in lengths:
            found |= wanted.intersection(_grams(theirs, length))
    return [_covered(each, found) if each else None for each in grams]


def _grams(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(length)))


def _covered(grams: Sequence[tuple[str, ...]], found: set[tuple[str, ...]]) -> float:
    length = len(grams[0])
    covered = {place + offset for place, gram in enumerate(grams) if gram in found for offset in range(length)}
    return len(covered) / (len(grams) + length - 1)


def text_in(value: Any) -> str:
    """All that a record says, whatever its shape: its texts one after the other."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        value = [each for key, each in value.items() if key not in SPEAKERS]
    inner = value if isinstance(value, list | tuple) else ()
    return " ".join(filter(None, map(text_in, inner)))


def overlap_line(shares: Sequence[float | None], places: Sequence[str]) -> str | None:
    """What to warn of, where records have `MUCH` in common with what was read; `places` say where they stand."""
    known = [place for place, share in zip(places, shares, strict=True) if share is not None and share >= MUCH]
    if not known:
        return None
    whole = sum(share == 1 for share in shares)
    which = ", ".join(known[:3]) + (", ..." if len(known) > 3 else "")
    words = f"have half of their words or more in runs of {RUN} that the training data has too"
    return f"warning: {len(known):,} of {len(shares):,} evaluation records {words}, {whole:,} of them all ({which}): what is measured of these may be remembered"
