"""Attention of records that lie end to end, causal in the first tokens of each and both ways in the others, as masked diffusion has it."""

from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...infer.runners.attention import attend, attend_in_full
from ...infer.runners.packed_records import attend_in_groups, attend_in_runs, attend_padded, like_lengths, worth_padding


def attend_both_ways(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], causal: tuple[int, ...], *, window: int | None = None, **settings
) -> Tensor:
    """Attend within each record, never across: its first `causal` tokens each to itself and what stands before it, the others to all of the record.

    Of a record, `causal` is 0 where all see all, its length where it is causal, the length of its prompt where only the answer sees all.
    query is [1, heads, total, d], key and value [1, kv_heads, total, d]; `settings` are those of `attend`. With a `window`, which goes both ways,
    nothing may be causal, and no key farther away is seen. Returns [1, heads, total, d_v].
    """
    if worth_padding(lengths):
        visible = seen(lengths, causal, max(lengths), query.device, window)
        return attend_padded(query, key, value, lengths, partial(_attend_masked, visible=visible, **settings))
    if (groups := like_lengths(lengths)) is not None:
        return attend_in_groups(query, key, value, lengths, groups, partial(attend_both_ways, window=window, **settings), causal)
    return attend_in_runs(query, key, value, lengths, causal, partial(_attend_alike, {"window": window, **settings}))


def _attend_alike(settings: dict, causal: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Rows that have the same causal part: a call for it, a call for the others, and no mask."""
    length = query.shape[2]
    if causal >= length - 1:  # the last token sees all in any case
        return attend(query, key, value, **settings)
    rest = attend(query[:, :, causal:], key, value, causal=False, **settings)
    if not causal:
        return rest
    first = attend(*(x[:, :, :causal] for x in (query, key, value)), **settings)
    return torch.cat([first, rest], dim=2)


def _attend_masked(
    query: Tensor, key: Tensor, value: Tensor, *, visible: Tensor, scale=None, dropout: float = 0.0, softcap=None, sinks=None
) -> Tensor:
    """Rows padded to one length, [records, heads, longest, d], each with its own mask, [records, 1, longest, longest]."""
    if softcap is not None or sinks is not None:
        return attend_in_full(query, key, value, visible, scale, dropout, softcap, sinks)
    gqa = key.shape[1] != query.shape[1]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout, scale=scale, enable_gqa=gqa)


@lru_cache(maxsize=8)  # made once a pass, not once a layer
def seen(lengths: tuple[int, ...], causal: tuple[int, ...], longest: int, device: torch.device, window: int | None = None) -> Tensor:
    """Which keys each query sees, [records, 1, longest, longest]; a query of the padding sees its record, so that none sees nothing."""
    place = torch.arange(longest, device=device)
    query, key = place[:, None], place[None]
    ends, causal_ends = (torch.tensor(values, device=device)[:, None, None] for values in (lengths, causal))
    near = (key < ends) & ((key <= query) | (query >= causal_ends))
    return (near if window is None else near & ((query - key).abs() <= window) | (query >= ends) & (key == 0))[:, None]
