"""Attention of records that lie end to end, causal in the first tokens of each and both ways in the others, as masked diffusion has it."""

from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...infer.runners.attention import attend, attend_in_full
from ...infer.runners.packed_records import Lengths, attend_in_groups, attend_in_runs, attend_padded, like_lengths, worth_padding


def attend_both_ways(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Lengths,
    causal: Lengths,
    copied: Lengths | None = None,
    *,
    block_length: int | None = None,
    window: int | None = None,
    **settings,
) -> Tensor:
    """Attend within each record, never across: its first `causal` tokens each to itself and what stands before it, the others to all of the record.

    Of a record, `causal` is 0 where all see all, its length where it is causal, the length of its prompt where only the answer sees all.
    With a `block_length` the answer is made of blocks of so many tokens, which see themselves and what stands before them. The last `copied` tokens
    are then copies of its blocks, whose last one has no original: each sees itself, and what stands before its original, and no other copy.
    query is [1, heads, total, d], key and value [1, kv_heads, total, d]; `settings` are those of `attend`. With a `window`, which goes both ways,
    nothing may be causal, and no key farther away is seen. Returns [1, heads, total, d_v].
    """
    copied = copied or (0,) * len(lengths)
    if worth_padding(lengths):
        visible = seen(lengths, causal, copied, max(lengths), query.device, block_length, window)
        return attend_padded(query, key, value, lengths, partial(_attend_masked, visible=visible, **settings))
    settings |= {"block_length": block_length, "window": window}
    if (groups := like_lengths(lengths)) is not None:
        return attend_in_groups(query, key, value, lengths, groups, partial(attend_both_ways, **settings), causal, copied)
    return attend_in_runs(query, key, value, lengths, list(zip(causal, copied, strict=True)), partial(_attend_alike, **settings))


def _attend_alike(kind: tuple[int, int], query: Tensor, key: Tensor, value: Tensor, *, block_length: int | None, window: int | None, **settings) -> Tensor:
    """Rows that have the same causal and copied parts: a call for the causal one, and a call for the others, without a mask unless there are blocks."""
    (causal, copied), length = kind, query.shape[2]
    if causal >= length - 1:  # the last token sees all in any case
        return attend(query, key, value, window=window, **settings)
    others = query[:, :, causal:]
    if block_length is None or length - causal <= block_length:
        rest = attend(others, key, value, causal=False, window=window, **settings)
    else:
        visible = seen((length,), (causal,), (copied,), length, query.device, block_length)
        rest = _attend_masked(others, key, value, visible=visible[:, :, causal:], **settings)
    if not causal:
        return rest
    first = attend(*(x[:, :, :causal] for x in (query, key, value)), window=window, **settings)
    return torch.cat([first, rest], dim=2)


def _attend_masked(
    query: Tensor, key: Tensor, value: Tensor, *, visible: Tensor, scale=None, dropout: float = 0.0, softcap=None, sinks=None
) -> Tensor:
    """Rows of queries, [records, heads, n, d], that see what a mask says, [records or 1, 1, n, keys]."""
    if softcap is not None or sinks is not None:
        return attend_in_full(query, key, value, visible, scale, dropout, softcap, sinks)
    gqa = key.shape[1] != query.shape[1]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout, scale=scale, enable_gqa=gqa)


@lru_cache(maxsize=8)  # made once a pass, not once a layer
def seen(
    lengths: Lengths, causal: Lengths, copied: Lengths, longest: int, device: torch.device, block_length: int | None = None, window: int | None = None
) -> Tensor:
    """Which keys each query sees, [records, 1, longest, longest]; a query of the padding sees the first of its record, so that none sees nothing."""
    place = torch.arange(longest, device=device)
    ends, firsts, copies = (torch.tensor(values, device=device)[:, None] for values in (lengths, causal, copied))
    is_copy = place >= ends - copies  # [records, longest], as block
    block = (place - torch.where(is_copy, ends - copies, firsts)) // (block_length or longest)  # below 0 in the causal part
    query, key = place[:, None], place[None]
    of_query, of_key = block[:, :, None], block[:, None]
    before = (of_key < of_query) & ~is_copy[:, None]
    own = (of_key == of_query) & (is_copy[:, :, None] == is_copy[:, None])
    near = torch.where(of_query < 0, key <= query, before | own) & (key < ends[:, :, None])
    if window is not None:
        near &= (query - key).abs() <= window
    return (near | (query >= ends[:, :, None]) & (key == 0))[:, None]
