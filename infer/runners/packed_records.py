"""Attention of records that lie end to end, each over itself or over what is its own on another side: in as few calls as their lengths allow.

A call of the attention kernel, and its backward pass, costs about as much for ten tokens as for a hundred: short records share one.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from .attention import attend

Lengths = tuple[int, ...]  # tokens of each record

RECORD_PADDING = 1.5  # records share a call where padding them to the longest costs no more than this
SHORT = 512  # beyond so many tokens a call is worth its price, and padding is paid for in squares


def attend_records(query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, **settings) -> Tensor:
    """Attend causally within each record, never across; `lengths` sum to total.

    query is [1, heads, total, d], key and value [1, kv_heads, total, d]; `settings` are those of `attend`. Returns [1, heads, total, d_v].
    """
    if worth_padding(lengths):  # what is padded stands behind, where nobody looks
        return attend_padded(query, key, value, lengths, partial(attend, **settings))
    if (groups := like_lengths(lengths)) is not None:
        return attend_in_groups(query, key, value, lengths, groups, partial(attend_records, **settings))
    return attend_in_runs(query, key, value, lengths, lengths, lambda _, *qkv: attend(*qkv, **settings))


def worth_padding(lengths: Lengths, seen: Lengths | None = None) -> bool:
    """Whether records of such lengths, and of so many keys each where these are others, had better share one call, padded to the longest."""
    mixed = [side for side in ((lengths,) if seen is None else (lengths, seen)) if len(set(side)) > 1]
    return bool(mixed) and all(_cheap(len(side), max(side), sum(side)) for side in mixed)


def _cheap(count: int, longest: int, tokens: int) -> bool:
    return longest <= SHORT and count * longest <= RECORD_PADDING * tokens


@lru_cache(maxsize=64)
def like_lengths(lengths: Lengths, seen: Lengths | None = None) -> tuple[tuple[int, ...], ...] | None:
    """The records in groups that are each worth padding, or of one length; None where these are no fewer than the runs of one length as they lie.

    Where records see keys of others, `seen` of them, each group is parted by these lengths as well: what is not worth padding then is grouped anew.
    """
    groups = _like(lengths)
    if seen is not None:
        groups = [[group[place] for place in part] for group in groups for part in _like([seen[record] for record in group])]
    runs = list(groupby(lengths if seen is None else zip(lengths, seen, strict=True)))
    return tuple(map(tuple, groups)) if len(groups) < len(runs) else None


def _like(lengths: Sequence[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    longest = tokens = 0  # of the last group
    for record in sorted(range(len(lengths)), key=lambda record: -lengths[record]):
        length = lengths[record]
        if groups and (length == longest or _cheap(len(groups[-1]) + 1, longest, tokens + length)):
            groups[-1].append(record)
            tokens += length
        else:
            groups.append([record])
            longest = tokens = length
    return groups


def attend_in_groups(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Lengths,
    groups: Sequence[Sequence[int]],
    attention: Callable[..., Tensor],
    *further: Sequence[Any],
    seen: Lengths | None = None,
) -> Tensor:
    """Call `attention` with the tokens of each group of records, their lengths, and what `further` says of each record; shapes as in `attend_records`.

    `seen` are the lengths of what the records' queries see, where these are keys of others.
    """
    groups = tuple(map(tuple, groups))
    order, sizes = _grouped(lengths, groups)
    others, widths = (order, sizes) if seen is None else _grouped(seen, groups)
    order, others = order.to(query.device), others.to(query.device)
    sides = (query, order, sizes), (key, others, widths), (value, others, widths)
    parts = zip(groups, *(x.index_select(2, where).split(cuts, dim=2) for x, where, cuts in sides), strict=True)
    told = lambda group: [tuple(each[record] for record in group) for each in (lengths, *further)]
    out = torch.cat([attention(*qkv, *told(group)) for group, *qkv in parts], dim=2)
    return torch.empty_like(out).index_copy(2, order, out)


@lru_cache(maxsize=64)
def _grouped(lengths: Lengths, groups: tuple[tuple[int, ...], ...]) -> tuple[Tensor, list[int]]:
    """Where each token stands, group after group, [total], and how many there are in each group."""
    records = torch.arange(sum(lengths)).split(lengths)
    return torch.cat([records[record] for group in groups for record in group]), [sum(lengths[record] for record in group) for group in groups]


def attend_padded(
    query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, attention: Callable[..., Tensor], seen: Lengths | None = None
) -> Tensor:
    """Call `attention` once with all records as rows, [records, heads, longest, d], zeros behind each; `seen` and shapes otherwise as in `attend_in_groups`."""
    longest = max(lengths)
    own = places(lengths, longest).to(query.device), longest
    others = own if seen is None else (places(seen, max(seen)).to(query.device), max(seen))
    together = attention(_padded(query, *own, len(lengths)), *(_padded(x, *others, len(lengths)) for x in (key, value)))
    return together.transpose(1, 2).flatten(0, 1).index_select(0, own[0]).transpose(0, 1)[None]


def attend_in_runs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Lengths,
    kinds: Sequence[Any],
    attention: Callable[..., Tensor],
    seen: Lengths | None = None,
) -> Tensor:
    """Call `attention` with the kind and the rows, [count, heads, length, d], of each run of records that have one length and kind; `seen` as in `attend_in_groups`."""
    kinds_of_runs = groupby(zip(lengths, lengths if seen is None else seen, kinds, strict=True))
    runs = [(size, len(list(same)), kind, width) for (size, width, kind), same in kinds_of_runs]
    cuts = [size * count for size, count, _, _ in runs]
    key_cuts = [width * count for _, count, _, width in runs]
    if len(runs) == 1:  # not parted, its gradients need not be put together again
        sides = ([query], [key], [value])
    else:
        sides = query.split(cuts, dim=2), *(x.split(key_cuts, dim=2) for x in (key, value))
    parts = zip(runs, *sides, strict=True)
    out = [
        _unfold(attention(kind, _fold(q, size, count), *(_fold(x, width, count) for x in kv))) for (size, count, kind, width), q, *kv in parts
    ]
    return (torch.cat(out) if len(out) > 1 else out[0]).transpose(0, 1)[None]


@lru_cache(maxsize=64)
def places(lengths: Lengths, longest: int) -> Tensor:
    """Where each token stands among rows padded to `longest`, or with 0 in its own record: [total]."""
    return torch.cat([torch.arange(length) + row * longest for row, length in enumerate(lengths)])


def _padded(x: Tensor, where: Tensor, longest: int, count: int) -> Tensor:
    """[1, heads, total, d] to [count, heads, longest, d], zeros behind each record."""
    _, heads, _, d = x.shape
    rows = x.new_zeros(count * longest, heads, d).index_copy(0, where, x[0].transpose(0, 1))
    return rows.view(count, longest, heads, d).transpose(1, 2)


def _fold(x: Tensor, length: int, count: int) -> Tensor:
    """[1, heads, count * length, d] to [count, heads, length, d]."""
    return x.view(x.shape[1], count, length, x.shape[3]).transpose(0, 1)


def _unfold(x: Tensor) -> Tensor:
    """[count, heads, length, d] to [count * length, heads, d]."""
    return x.transpose(1, 2).flatten(0, 1)
