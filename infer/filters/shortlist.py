"""Temperature, top-k, top-p and min-p on the k likeliest tokens alone: what the whole vocabulary would give, much sooner."""

from __future__ import annotations

import torch
from torch import Tensor

from .logits import FIRST_LOOK, cumulated, min_p, nucleus_end, temperature, top_k, top_p

SPARE = 48  # room for tokens level with the k-th: scores of bfloat16 are often alike
SHORTLIST = "shortlist"  # temperature, top_k, top_p, min_p in one
LONGEST = FIRST_LOOK - 1  # top_p sums up to here as we do; with more candidates it sums in another order


def shortlist(logits: Tensor, t: Tensor, k: Tensor, p: Tensor, m: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return exactly `min_p(top_p(top_k(temperature(logits, t), k), p), m)`, and ids among which all are that are left, [rows, few], where they are known.

    logits are [rows, vocab], float32 or wider; each argument is [rows, 1]; t of 1, p of 1 and m of 0 keep the row; k is in [1, LONGEST].
    """
    look = min(int(k.max()) + SPARE, FIRST_LOOK, logits.shape[-1])
    scores, ids = logits.topk(look, dim=-1)
    scores = scores / t
    last = scores.gather(-1, (k - 1).clamp(max=look - 1))  # those level with it survive top_k too
    kept = scores.masked_fill(scores < last, -torch.inf)
    weights, reached = cumulated(kept)
    end = nucleus_end(kept, weights, reached, p * reached[:, -1:])
    kept = min_p(kept.masked_fill((kept < end) & (p < 1), -torch.inf), m)
    filtered = torch.full_like(logits, -torch.inf).scatter_(-1, ids, kept)
    more = ((scores[:, -1:] >= last) & (last > -torch.inf)).squeeze(-1)  # not all of those level are among the likeliest
    if look == logits.shape[-1] or not bool(more.any()):
        return filtered, ids
    filtered[more] = step_by_step(*(each[more] for each in (logits, t, k, p, m)))
    return filtered, None


def step_by_step(logits: Tensor, t: Tensor, k: Tensor, p: Tensor, m: Tensor) -> Tensor:
    """The same over the whole vocabulary, [rows, vocab]."""
    return min_p(top_p(top_k(temperature(logits, t), k), p), m)
