"""What becomes of a pass's logits, row by row and natively where they are float32 on a CPU: filters that many ask for, and the choice of an id.

One call in place of five to fifty of torch's, each of which costs 10 to 20 microseconds behind a pass that has put all weights through the caches.
The ids are those that torch would choose; sums may differ in the last bit, and a row's never hang on the rows beside it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from .library import is_off, loaded

OFF = is_off()  # as it is when this is imported: to ask again takes a tenth of a step
BLOCK = 32  # ids whose smallest E can be had without the others, as in scores.h; another number changes every seeded answer


class Asked(ctypes.Structure):
    """What is done with a row, as scores.h has it."""

    _fields_ = [
        ("scores", ctypes.c_void_p), ("past", ctypes.c_void_p), ("said", ctypes.c_int64), ("prompt", ctypes.c_int64),
        ("repetition", ctypes.c_double), ("frequency", ctypes.c_double), ("presence", ctypes.c_double),
        ("bits", ctypes.c_char_p), ("bytes", ctypes.c_int64),
        ("t", ctypes.c_float), ("p", ctypes.c_float), ("floor", ctypes.c_float),
        ("k", ctypes.c_int32), ("draws", ctypes.c_int32), ("key", ctypes.c_int64),
    ]  # fmt: skip


class Rows:
    """So many rows, for which `asked` says what is done; its numbers may change from one call to the next."""

    def __init__(self, count: int):
        self.asked = (Asked * count)(*[Asked(repetition=1, t=1, p=1)] * count)
        self._ids, self._logprobs = (ctypes.c_int64 * count)(), (ctypes.c_float * count)()
        self._room = torch.empty(0)

    def choose(self, library: ctypes.CDLL, scores: Tensor, vocab: int, wanted: Sequence[bool]) -> tuple[list[int], list[float]]:
        """An id for each row that is wanted, among its first `vocab`, and its log-probability; -1 for those that torch has to see to.

        scores are [rows, vocab or more], and stay as they are; the library is theirs. Torch has to see to a row that is no distribution, and to one with more level scores
        than a shortlist has room for.
        """
        if self._room.numel() < 2 * vocab + vocab // BLOCK + 1:
            self._room = torch.zeros(2 * vocab + vocab // BLOCK + 1, dtype=torch.float32, device="cpu")
        begin, step = scores.data_ptr(), 4 * scores.shape[1]
        for row, asked in enumerate(self.asked):
            asked.scores = begin + row * step if wanted[row] else None
        library.seodang_choose(self.asked, len(self.asked), vocab, self._room.data_ptr(), self._ids, self._logprobs)
        return self._ids[:], self._logprobs[:]


def chosen(scores: Tensor, keys: Sequence[int | None]) -> tuple[list[int], list[float]] | None:
    """An id for each row of scores, [rows, vocab], drawn where it has a key, as `rng.choose` has them; None where torch has to see to it."""
    if (library := library_for(scores)) is None:
        return None
    rows = Rows(len(keys))
    for asked, key in zip(rows.asked, keys):
        asked.draws, asked.key = key is not None, key or 0
    ids, logprobs = rows.choose(library, scores, scores.shape[1], [True] * len(keys))
    return [max(id, 0) for id in ids], [logprob if id >= 0 else math.nan for id, logprob in zip(ids, logprobs)]


def library_for(scores: Tensor) -> ctypes.CDLL | None:
    """The library, where there is one and it takes such scores."""
    if OFF or not scores.is_cpu or scores.dtype != torch.float32 or not scores.is_contiguous():
        return None
    return _declared(loaded())


@cache
def _declared(library: ctypes.CDLL | str) -> ctypes.CDLL | None:
    """The library, told what its function takes; None where it lacks it or computes something else, or there is no library."""
    if isinstance(library, str) or not hasattr(library, "seodang_choose"):
        return None
    library.seodang_choose.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long, *[ctypes.c_void_p] * 3]
    library.seodang_choose.restype = None
    return library if _computes(library) else None


def _computes(library: ctypes.CDLL) -> bool:
    """Whether it finds what is easily found without it: the likeliest of some ids, and the likeliest even one once the likeliest of all is punished."""
    scores = [37 * id % 70 / 10 for id in range(70)]  # each from 0 to 6.9 once
    first = scores.index(6.9)
    own = [score / 2 if id == first else score for id, score in enumerate(scores)]
    best = max(range(0, 70, 2), key=own.__getitem__)
    memory, past = (ctypes.c_float * 70)(*scores), ctypes.c_int64(first)
    at, room = ctypes.addressof(memory), (ctypes.c_float * 200)()
    plain = Asked(scores=at, repetition=1, t=1, p=1)
    filtered = Asked(scores=at, past=ctypes.addressof(past), said=1, repetition=2, bits=b"\x55" * 9, bytes=9, t=0.5, p=0.9, floor=-math.inf, k=1, draws=1)
    ids, logprobs = (ctypes.c_int64 * 2)(), (ctypes.c_float * 2)()
    library.seodang_choose((Asked * 2)(plain, filtered), 2, 70, room, ids, logprobs)
    expected = -math.log(sum(math.exp(score - 6.9) for score in scores))
    return ids[:] == [first, best] and abs(logprobs[0] - expected) < 1e-5 and abs(logprobs[1]) < 1e-5
