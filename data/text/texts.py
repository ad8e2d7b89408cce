"""The texts of documents alone, for what is learned from them before they have tokens."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from .documents import Part, digest_number, new_digest, read_documents
from .rows import apart


class DocumentTexts:
    """The texts of the documents that `read_documents` reads, anew each time they are iterated, but of those `left_out`, numbers from 0, nothing."""

    def __init__(self, sources: Sequence[str], *, left_out: Collection[int] = (), **reading: Any):
        self.sources, self.reading, self.left_out = sources, reading, left_out

    def __iter__(self) -> Iterator[str]:
        return (part.text for number, part in self.numbered() if number not in self.left_out)

    def numbered(self) -> Iterator[tuple[int, Part]]:
        """All parts, each with its document's number."""
        number = 0
        for part in read_documents(self.sources, **self.reading):
            yield number, part
            number += not part.goes_on

    def without_held_out(self, fraction: float, seed: int, says: Callable[[str], object] = str.strip) -> "DocumentTexts":
        """The texts of those documents alone that `held_out` leaves to train on; what they say is read once to find them.

        `says` is false of a text of which the tokenizer will make no tokens: it is in no store, and must not be counted here.
        """
        found = list(self._digests(says))
        numbers, digests = (np.array([each[column] for each in found], dtype=np.int64) for column in (0, 1))
        _, held = apart(digests, fraction, seed)
        return DocumentTexts(self.sources, left_out=frozenset(numbers[held].tolist()), **self.reading)

    def _digests(self, says: Callable[[str], object]) -> Iterator[tuple[int, int]]:
        """The number of each document that has a text, and what tells its text from others."""
        digest, blank = new_digest(), True
        for number, part in self.numbered():
            digest.update(part.text.encode())
            blank = blank and not says(part.text)
            if not part.goes_on:
                if not blank:
                    yield number, digest_number(digest)
                digest, blank = new_digest(), True
