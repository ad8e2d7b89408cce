"""Attention of records that lie end to end, each over itself: in as few calls as their lengths allow.

A call of the attention kernel, and its backward pass, costs about as much for ten tokens as for a hundred: short records share one.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ...infer.runners.attention import attend

RECORD_PADDING = 1.5  # records share a call where padding them to the longest costs no more than this
SHORT = 512  # beyond so many tokens a call is worth its price, and padding is paid for in squares


def attend_records(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], **settings) -> Tensor:
    """Attend causally within each record, never across; `lengths` sum to total.

    query is [1, heads, total, d], key and value [1, kv_heads, total, d]; `settings` are those of `attend`. Returns [1, heads, total, d_v].
    """
    if worth_padding(lengths):  # what is padded stands behind, where nobody looks
        return attend_padded(query, key, value, lengths, partial(attend, **settings))
    if (groups := like_lengths(lengths)) is not None:
        return attend_in_groups(query, key, value, lengths, groups, partial(attend_records, **settings))
    return attend_in_runs(query, key, value, lengths, lengths, lambda _, *qkv: attend(*qkv, **settings))


def worth_padding(lengths: tuple[int, ...]) -> bool:
    """Whether records of such lengths had better share one call, padded to the longest."""
    longest = max(lengths)
    return longest <= SHORT and len(set(lengths)) > 1 and len(lengths) * longest <= RECORD_PADDING * sum(lengths)


@lru_cache(maxsize=64)
def like_lengths(lengths: tuple[int, ...]) -> tuple[tuple[int, ...], ...] | None:
    """The records in groups that are each worth padding, or of one length; None where these are no fewer than the runs of one length as they lie."""
    groups: list[list[int]] = []
    longest = tokens = 0  # of the last group
    for record in sorted(range(len(lengths)), key=lambda record: -lengths[record]):
        length = lengths[record]
        worth = longest <= SHORT and bool(groups) and (len(groups[-1]) + 1) * longest <= RECORD_PADDING * (tokens + length)
        if worth or length == longest:
            groups[-1].append(record)
            tokens += length
        else:
            groups.append([record])
            longest = tokens = length
    return tuple(map(tuple, groups)) if len(groups) < len(list(groupby(lengths))) else None


def attend_in_groups(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], groups: Sequence[Sequence[int]], attention: Callable[..., Tensor], *further: Sequence[Any]
) -> Tensor:
    """Call `attention` with the tokens of each group of records, their lengths, and what `further` says of each record; shapes as in `attend_records`."""
    order, sizes = _grouped(lengths, tuple(map(tuple, groups)))
    order = order.to(query.device)
    parts = zip(groups, *(x.index_select(2, order).split(sizes, dim=2) for x in (query, key, value)), strict=True)
    told = lambda group: [tuple(each[record] for record in group) for each in (lengths, *further)]
    out = torch.cat([attention(*qkv, *told(group)) for group, *qkv in parts], dim=2)
    return torch.empty_like(out).index_copy(2, order, out)


@lru_cache(maxsize=64)
def _grouped(lengths: tuple[int, ...], groups: tuple[tuple[int, ...], ...]) -> tuple[Tensor, list[int]]:
    """Where each token stands, group after group, [total], and how many there are in each group."""
    records = torch.arange(sum(lengths)).split(lengths)
    return torch.cat([records[record] for group in groups for record in group]), [sum(lengths[record] for record in group) for group in groups]


def attend_padded(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], attention: Callable[..., Tensor]) -> Tensor:
    """Call `attention` once with all records as rows, [records, heads, longest, d], zeros behind each; shapes otherwise as in `attend_records`."""
    longest = max(lengths)
    places = _places(lengths, longest).to(query.device)
    together = attention(*(_padded(x, places, len(lengths), longest) for x in (query, key, value)))
    return together.transpose(1, 2).flatten(0, 1).index_select(0, places).transpose(0, 1)[None]


def attend_in_runs(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], kinds: Sequence[Any], attention: Callable[..., Tensor]
) -> Tensor:
    """Call `attention` with the kind and the rows, [count, heads, length, d], of each run of records that have one length and kind."""
    runs = [(length, len(list(same)), kind) for (length, kind), same in groupby(zip(lengths, kinds, strict=True))]
    cuts = [length * count for length, count, _ in runs]
    parts = zip(runs, *(x.split(cuts, dim=2) for x in (query, key, value)), strict=True)
    out = [_unfold(attention(kind, *(_fold(x, length, count) for x in qkv))) for (length, count, kind), *qkv in parts]
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
