"""What is done with a pass's logits, natively where a row is float32 on a CPU: each function gives None where it does not apply, and torch does it.

One call in place of five to fifteen of torch's, each of which costs 10 to 20 microseconds behind a pass that has put all weights through the caches.
What it chooses and keeps is what torch would; sums may differ in the last bit.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Sequence
from functools import cache

import torch
from torch import Tensor

from .library import loaded

LONGEST = 256  # ids of a shortlist, as in scores.h
OFF = "SEODANG_NATIVE"  # the environment variable that turns all of it off

_Address, _Long, _Double = ctypes.c_void_p, ctypes.c_long, ctypes.c_double
_TAKEN = {  # what the functions of scores.h take
    "seodang_choose": [_Address, _Long, _Long, _Address, _Address, _Address, _Long, _Address, _Address],
    "seodang_shortlist": [_Address, _Long, _Long, *[_Address] * 7],
    "seodang_repeated": [_Address, _Long, _Address, _Long, _Double, _Address],
    "seodang_masked": [_Address, _Long, _Address, _Long, _Address, _Long, _Address, _Long, _Address],
}


def chosen(scores: Tensor, keys: Sequence[int | None], few: Tensor | None = None) -> tuple[list[int], list[float]] | None:
    """An id for each row of scores, [rows, vocab], and its log-probability, as `rng.choose` has them."""
    if (library := _library(scores)) is None or few is not None and not few.is_contiguous():
        return None
    rows, vocab = scores.shape
    ids, logprobs = (ctypes.c_int64 * rows)(), (ctypes.c_float * rows)()
    own = (ctypes.c_int64 * rows)(*[each or 0 for each in keys])
    draws = bytes([each is not None for each in keys])
    among, count = (None, 0) if few is None else (few.data_ptr(), few.shape[1])
    if library.seodang_choose(scores.data_ptr(), rows, vocab, own, draws, among, count, ids, logprobs):
        return None
    return ids[:], logprobs[:]


def shortlist(logits: Tensor, t: Tensor, k: Tensor, p: Tensor, floors: Tensor) -> tuple[Tensor, Tensor, list[int]] | None:
    """Temperature, top_k, top_p and min_p of logits, [rows, vocab], as `shortlist.shortlist` has them, and the rows that are not done.

    `floors` are the logarithms of min_p; k is whole, the others float32, [rows, 1] each.
    """
    if (library := _library(logits)) is None:
        return None
    rows, vocab = logits.shape
    kept, few = torch.empty_like(logits), torch.empty((rows, LONGEST), dtype=torch.long, device="cpu")
    done = ctypes.create_string_buffer(rows)
    columns = [each.data_ptr() for each in (t, k, p, floors)]
    left = library.seodang_shortlist(logits.data_ptr(), rows, vocab, *columns, kept.data_ptr(), few.data_ptr(), done)
    if left < 0:
        return None
    return kept, few, [row for row in range(rows) if done.raw[row] == 0] if left else []


def repeated(logits: Tensor, factors: Sequence[float], past_ids: Sequence[Tensor]) -> Tensor | None:
    """Logits, [rows, vocab], of which those of a row's past, [n] ids, are divided by its factor where they are positive, else multiplied."""
    if (library := _library(logits)) is None or any(each.dtype != torch.long or not each.is_cpu or not each.is_contiguous() for each in past_ids):
        return None
    vocab, penalised = logits.shape[1], torch.empty_like(logits)
    begin, to = logits.data_ptr(), penalised.data_ptr()
    for row, (factor, past) in enumerate(zip(factors, past_ids)):
        library.seodang_repeated(begin + 4 * vocab * row, vocab, past.data_ptr(), len(past), factor, to + 4 * vocab * row)
    return penalised


def masked(scores: Tensor, bits: bytes, wrong: Collection[int], right: Collection[int]) -> Tensor | None:
    """Scores, [1, vocab], of those ids alone whose bit is set, the lowest of a byte first, without those that are wrong, and with those that are right."""
    if (library := _library(scores)) is None or len(scores) != 1:
        return None
    left = torch.empty_like(scores)
    numbers = ((ctypes.c_int64 * len(each))(*each) for each in (wrong, right))
    sized = [part for each in numbers for part in (each, len(each))]
    library.seodang_masked(scores.data_ptr(), scores.shape[1], bits, len(bits), *sized, left.data_ptr())
    return left


def _library(scores: Tensor) -> ctypes.CDLL | None:
    """The functions, where they are to be had for such scores."""
    if not scores.is_cpu or scores.dtype != torch.float32 or scores.requires_grad or not scores.is_contiguous() or not scores.numel():
        return None
    return None if os.environ.get(OFF) == "0" else _declared()


def _declared() -> ctypes.CDLL | None:
    found = loaded()
    return None if isinstance(found, str) else _checked(found)


@cache
def _checked(library: ctypes.CDLL) -> ctypes.CDLL | None:
    """The library, its functions declared; None where it lacks one."""
    try:
        for name, taken in _TAKEN.items():
            getattr(library, name).argtypes = taken
    except AttributeError:
        return None
    library.seodang_repeated.restype = library.seodang_masked.restype = None
    return library
