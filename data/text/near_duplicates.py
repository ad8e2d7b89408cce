"""Texts that are nearly another one: by runs of characters that both have, found by MinHash and checked exactly."""

from collections.abc import Callable
from typing import Any

from ..errors import UserError
from .words import normalised, words_of

RUN = 5  # characters of a shingle, blanks between words among them
PERMUTATIONS = 128
LOOKED_FURTHER = 0.75  # of the threshold: what is estimated to be so like is compared, so that hardly any text above it is missed
REMEDY = "pip install 'seodang[synthesise]'"


def shingles(text: str) -> frozenset[str]:
    """The runs of `RUN` characters of a text, of its words in small letters with a blank between them; of a shorter text itself.

    >>> sorted(shingles("To be!")), sorted(shingles("Hello, you"))
    (['to be'], ['ello ', 'hello', 'llo y', 'lo yo', 'o you'])
    """
    plain = " ".join(words_of(text)) or normalised(text).strip()
    return frozenset(plain[start : start + RUN] for start in range(max(len(plain) - RUN + 1, 1)))


def alike(a: frozenset[str], b: frozenset[str]) -> float:
    """What two sets share of all that is in either (Jaccard 1901), in [0, 1]."""
    return len(a & b) / len(a | b)


class NearDuplicates:
    """Texts that came before, among which `nearest` looks for one that has the share `threshold`, in (0, 1), of its shingles or more in common with a text.

    Candidates come from datasketch's index (MinHash: Broder 1997; locality-sensitive hashing: Indyk and Motwani 1998), and of these the shingles themselves
    are compared. Raises UserError where there is no datasketch.
    """

    def __init__(self, threshold: float):
        self.threshold, self._sets = threshold, {}  # by the texts' names
        self._new, self._index = _library(threshold)

    def nearest(self, text: str) -> tuple[float, str | None]:
        """The greatest share that a text before has in common with this one, and its name; 0 and None where none comes near the threshold."""
        own = shingles(text)
        found = [(alike(own, self._sets[name]), name) for name in self._index.query(self._hashed(own))]
        return max(found, default=(0.0, None))

    def add(self, name: str, text: str) -> None:
        """Take note of a text."""
        self._sets[name] = shingles(text)
        self._index.insert(name, self._hashed(self._sets[name]))

    def _hashed(self, own: frozenset[str]) -> Any:
        hashed = self._new()
        hashed.update_batch([each.encode() for each in sorted(own)])
        return hashed


def _library(threshold: float) -> tuple[Callable[[], Any], Any]:
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        raise UserError(f"near-duplicates are found by datasketch, which is not installed: {REMEDY}, or do without by --near_duplicates 0") from None
    return lambda: MinHash(num_perm=PERMUTATIONS, seed=1), MinHashLSH(threshold=LOOKED_FURTHER * threshold, num_perm=PERMUTATIONS)
