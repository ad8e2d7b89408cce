"""Attention of records that lie end to end, each over itself: in as few calls as their lengths allow.

A call of the attention kernel, and its backward pass, costs about as much for ten tokens as for a hundred: short records share one.
"""

from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from ...infer.runners.attention import attend

RECORD_PADDING = 1.5  # records share a call where padding them to the longest costs no more than this
SHORT = 512  # beyond so many tokens a call is worth its price, and padding is paid for in squares


def attend_records(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], **settings) -> Tensor:
    """Attend causally within each record, never across; `lengths` sum to total.

    query is [1, heads, total, d], key and value [1, kv_heads, total, d]; `settings` are those of `attend`. Returns [1, heads, total, d_v].
    """
    longest = max(lengths)
    if longest <= SHORT and len(set(lengths)) > 1 and len(lengths) * longest <= RECORD_PADDING * sum(lengths):
        places = _places(lengths, longest).to(query.device)
        together = attend(*(_padded(x, places, len(lengths), longest) for x in (query, key, value)), **settings)
        return together.transpose(1, 2).flatten(0, 1).index_select(0, places).transpose(0, 1)[None]  # what is padded stands behind, where nobody looks
    runs = [(length, len(list(same))) for length, same in groupby(lengths)]
    cuts = [length * count for length, count in runs]
    parts = zip(runs, *(x.split(cuts, dim=2) for x in (query, key, value)), strict=True)
    out = [_unfold(attend(*(_fold(x, *run) for x in qkv), **settings)) for run, *qkv in parts]
    return (torch.cat(out) if len(out) > 1 else out[0]).transpose(0, 1)[None]


@lru_cache(maxsize=64)
def _places(lengths: tuple[int, ...], longest: int) -> Tensor:
    """Where each token stands among the padded rows: [total]."""
    return torch.cat([torch.arange(length) + row * longest for row, length in enumerate(lengths)])


def _padded(x: Tensor, places: Tensor, count: int, longest: int) -> Tensor:
    """[1, heads, total, d] to [count, heads, longest, d], zeros behind each record."""
    _, heads, _, d = x.shape
    rows = x.new_zeros(count * longest, heads, d).index_copy(0, places, x[0].transpose(0, 1))
    return rows.view(count, longest, heads, d).transpose(1, 2)


def _fold(x: Tensor, length: int, count: int) -> Tensor:
    """[1, heads, count * length, d] to [count, heads, length, d]."""
    return x.view(x.shape[1], count, length, x.shape[3]).transpose(0, 1)


def _unfold(x: Tensor) -> Tensor:
    """[count, heads, length, d] to [count * length, heads, d]."""
    return x.transpose(1, 2).flatten(0, 1)
