"""Filters: logits to logits. Choosing a token is `sample`'s work.

logits are [rows, vocab]; every argument is [rows, 1], one value a row, so that requests with different settings share
a batch. A dropped token becomes -inf, and no filter drops a row's likeliest token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FIRST_LOOK = 256  # candidates that usually hold the whole nucleus; sorting a vocabulary costs twenty times as much


def temperature(logits: Tensor, t: Tensor) -> Tensor:
    """Divide by t: below 1 sharpens the distribution, above 1 flattens it."""
    return logits / t


def top_k(logits: Tensor, k: Tensor) -> Tensor:
    """Keep the k likeliest tokens, and those level with the last of them; 0 keeps the row."""
    k = k.clamp(max=logits.shape[-1])
    most = int(k.max())
    if most == 0:
        return logits
    least = logits.topk(most, dim=-1).values.gather(-1, (k - 1).clamp(min=0))
    return logits.masked_fill((logits < least) & (k > 0), -torch.inf)


def top_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the likeliest tokens that together reach probability p, and those level with the last of them; 1 keeps the row."""
    probs = logits.softmax(dim=-1)
    look = min(FIRST_LOOK, logits.shape[-1])
    likeliest = probs.topk(look, dim=-1).values
    while look < logits.shape[-1] and bool(((likeliest.sum(dim=-1, keepdim=True) < p) & (p < 1)).any()):
        look = min(16 * look, logits.shape[-1])
        likeliest = probs.topk(look, dim=-1).values
    before = likeliest.cumsum(dim=-1) - likeliest  # probability of all that is likelier
    count = (before < p).sum(dim=-1, keepdim=True).clamp(min=1)
    least = likeliest.gather(-1, count - 1)
    return logits.masked_fill((probs < least) & (p < 1), -torch.inf)


def min_p(logits: Tensor, p: Tensor) -> Tensor:
    """Drop every token less likely than p times the likeliest one; 0 keeps the row."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + p.log(), -torch.inf)


def repetition_penalty(logits: Tensor, penalty: Tensor, history: Sequence[Tensor]) -> Tensor:
    """Divide positive logits of the tokens in a row's history by its penalty, and multiply negative ones; 1 keeps the row.

    history holds one [n] tensor of ids a row, prompt included; ids beyond the vocabulary are passed over.
    """
    logits = logits.clone()
    for row, factor, past in zip(logits, penalty.squeeze(-1).tolist(), history):
        if factor == 1.0:
            continue
        past = past[past < len(row)].to(row.device)
        seen = row[past]
        row[past] = torch.where(seen < 0, seen * factor, seen / factor)
    return logits
