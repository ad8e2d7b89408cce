"""Attention of one sequence over its own past: the mathematics that the runner and packed training share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...data.errors import UserError

# What architectures hand over that says nothing about the result, or says it a second time.
BOOKKEEPING = frozenset(
    "position_ids cache_position position_embeddings use_cache output_hidden_states return_dict deterministic "
    "num_items_in_batch cu_seq_lens_q cu_seq_lens_k max_length_q max_length_k seq_idx is_causal".split()
)
HONOURED = frozenset("scaling dropout sliding_window softcap s_aux".split())

AT_ONCE = 1 << 24  # numbers, one a query and key, and where scores are written out a head: of more, some queries take their turn behind others
LEAST = 64  # queries of a turn: with fewer a call costs more than its products


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    past: int = 0,
    scale: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    causal: bool = True,
    masks: dict | None = None,
) -> Tensor:
    """Attend with the newest `n` positions of a sequence over all `past + n` of them.

    query is [1, heads, n, d], key [1, kv_heads, past + n, d], value [1, kv_heads, past + n, d_v]; returns
    [1, heads, n, d_v]. `window` counts the keys a query sees, itself included; without `causal` it is the distance to
    the farthest key seen on either side, as in transformers. `softcap` is Gemma 2's bound on the scores, `sinks` one
    score a head that takes probability and gives no value (gpt-oss). `masks` keeps what the layers of a pass have in common. Differentiable.
    Without them a long sequence holds neither a mask nor scores of all its queries and keys: see `attend_in_turns`.
    """
    if causal and window is not None:
        first = max(past - window + 1, 0)  # no query sees a key before this one
        key, value, past = key[:, :, first:], value[:, :, first:], past - first
    settings = {"past": past, "scale": scale, "dropout": dropout, "window": window, "softcap": softcap, "sinks": sinks, "causal": causal}
    if masks is None and (size := queries_of_a_turn(query, key.shape[2], **settings)) is not None:
        return attend_in_turns(query, key, value, size, **settings)
    return _attend_at_once(query, key, value, masks=masks, **settings)


def _attend_at_once(
    query: Tensor, key: Tensor, value: Tensor, *, past: int, scale: float | None, dropout: float, window: int | None, softcap: float | None,
    sinks: Tensor | None, causal: bool, masks: dict | None = None,
) -> Tensor:  # fmt: skip
    n, seen = query.shape[2], key.shape[2]
    if softcap is None and sinks is None:
        square = causal and past == 0 and n > 1 and (window is None or window >= n)
        mask = None if square else penalty(n, seen, past, window, causal, query, masks)
        gqa = key.shape[1] != query.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=square, scale=scale, enable_gqa=gqa
        )
    mask = visible(n, seen, past, window, causal, query.device)
    return attend_in_full(query, key, value, mask, scale, dropout, softcap, sinks)


def queries_of_a_turn(query: Tensor, seen: int, *, past: int, window: int | None, softcap: float | None, sinks: Tensor | None, causal: bool, **rest) -> int | None:
    """Return how many queries are to attend at a time, so that what is written out of them stays small; None where all may, or where nothing is written out."""
    rows, heads, n, _ = query.shape
    fused = softcap is None and sinks is None
    masked = (causal and past > 0) or (window is not None and window < seen)
    numbers = 1 if fused else rows * heads  # a query and key
    if n <= LEAST or (fused and not masked) or numbers * n * seen <= AT_ONCE:
        return None
    if window is None or window >= seen:
        return max(AT_ONCE // (numbers * seen), LEAST)
    return max(min(AT_ONCE // (numbers * 2 * window), window), LEAST)  # as many again as the window is wide waste half of the products


def attend_in_turns(query: Tensor, key: Tensor, value: Tensor, size: int, *, past: int, window: int | None, causal: bool, **settings) -> Tensor:
    """The same with so many queries at a time, over the keys that any of them sees: what is written out of them is let go of, and written again for the gradient."""
    n, seen = query.shape[2], key.shape[2]
    parts = []
    for start in range(0, n, size):
        stop = min(start + size, n)
        first = 0 if window is None else max(past + start - window + (1 if causal else 0), 0)
        last = past + stop if causal else seen if window is None else min(past + stop + window, seen)
        some = query[:, :, start:stop], key[:, :, first:last], value[:, :, first:last]
        how = {"past": past + start - first, "window": window, "causal": causal, **settings}
        parts.append(checkpoint(_attend_at_once, *some, use_reentrant=False, **how) if torch.is_grad_enabled() else _attend_at_once(*some, **how))
    return torch.cat(parts, dim=2)


def penalty(n: int, seen: int, past: int, window: int | None, causal: bool, query: Tensor, masks: dict | None) -> Tensor | None:
    """Return what the fused kernels add to the scores, [n, seen] in the query's dtype: -inf where `visible` is false; None where nothing is."""
    masks = {} if masks is None else masks
    key = n, seen, past, window, causal, query.dtype, query.device
    if key not in masks:
        seen_by = visible(n, seen, past, window, causal, query.device)
        masks[key] = seen_by if seen_by is None else query.new_zeros(n, seen).masked_fill_(~seen_by, -torch.inf)
    return masks[key]


def visible(n: int, seen: int, past: int, window: int | None, causal: bool, device: torch.device) -> Tensor | None:
    """Say which keys each of `n` queries sees: [n, seen], true where it does; None where every query sees every key."""
    far = n > 1 if causal else window is not None and window < seen - 1
    if not far and (window is None or not causal or window >= seen):
        return None
    query = torch.arange(past, past + n, device=device)[:, None]
    key = torch.arange(seen, device=device)[None]
    if not causal:
        return (query - key).abs() <= window
    mask = key <= query
    return mask if window is None else mask & (key > query - window)


def attend_in_full(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attend with the scores written out, for what the fused kernels cannot do: soft caps and sinks.

    query is [rows, heads, n, d]; mask broadcasts to [rows, 1, n, keys]; the softmax is float32 at least.
    """
    rows, heads, n, d = query.shape
    groups = heads // key.shape[1]
    query = query.reshape(rows, key.shape[1], groups * n, d)  # the heads of a group share their keys
    scores = (query @ key.transpose(2, 3)) * (d**-0.5 if scale is None else scale)
    scores = scores.view(rows, heads, n, key.shape[2])
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(1, heads, 1, 1).expand(rows, heads, n, 1)
        scores = torch.cat([scores, sink], dim=-1)
    probs = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    if sinks is not None:
        probs = probs[..., :-1]
    probs = F.dropout(probs, dropout)
    return (probs.reshape(rows, key.shape[1], groups * n, -1) @ value).view(rows, heads, n, -1)


def check_attention_kwargs(module: nn.Module, kwargs: Mapping[str, Any], allowed: Collection[str] = ()) -> None:
    """Raise UserError, by name, for whatever an attention layer hands over that `attend` and its caller do not honour.

    None and False ask for nothing. `allowed` names the extra arguments that the caller honours itself.
    """
    for name, value in kwargs.items():
        if value is None or value is False or name in HONOURED or name in BOOKKEEPING or name in allowed:
            continue
        config = getattr(module, "config", None)
        kind = getattr(config, "model_type", type(module).__name__)
        raise UserError(
            f"the attention of {kind} ({type(module).__name__}) asks for {name!r}, which Seodang does not honour: "
            "use an architecture without it"
        )
