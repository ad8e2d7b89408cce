"""Attention that keeps the records of a packed sequence apart."""

from itertools import groupby

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from ..infer.attention import attend, check_attention_kwargs
from ..infer.ragged import Window, window_mask

PACKED = "seodang_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Window | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    record_lengths: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **rest,
) -> tuple[Tensor, None]:
    """Attend within each record of a sequence laid end to end, never across.

    query is [1, heads, total, d], key and value [1, kv_heads, total, d]; `record_lengths` sum to total, and without them
    every row of the batch is one record. Returns [1, total, heads, d]. Neighbours of equal length share one call.
    """
    check_attention_kwargs(module, rest)
    window = attention_mask.size if attention_mask is not None else sliding_window
    settings = {"scale": scaling, "dropout": dropout, "window": window, "softcap": softcap, "sinks": s_aux}
    if record_lengths is None:
        return attend(query, key, value, **settings).transpose(1, 2), None
    runs = [(length, len(list(same))) for length, same in groupby(record_lengths)]
    cuts = [length * count for length, count in runs]
    parts = zip(runs, *(x.split(cuts, dim=2) for x in (query, key, value)), strict=True)
    out = [_unfold(attend(*(_fold(x, *run) for x in qkv), **settings)) for run, *qkv in parts]
    return torch.cat(out) if len(out) > 1 else out[0], None


def _fold(x: Tensor, length: int, count: int) -> Tensor:
    """[1, heads, count * length, d] to [count, heads, length, d]."""
    return x.view(x.shape[1], count, length, x.shape[3]).transpose(0, 1)


def _unfold(x: Tensor) -> Tensor:
    """[count, heads, length, d] to [count * length, heads, d]."""
    return x.transpose(1, 2).flatten(0, 1)


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, window_mask)  # the records' borders do the rest
