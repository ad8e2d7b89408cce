"""Temperature, top-k, top-p and min-p on the k likeliest tokens alone: what the whole vocabulary would give, much sooner."""

from __future__ import annotations

import torch
from torch import Tensor

from .logits import FIRST_LOOK, cumulated, min_p, nucleus_end, temperature, top_k, top_p

SPARE = 48  # room for tokens level with the k-th: scores of bfloat16 are often alike
LONGEST = FIRST_LOOK - 1  # top_p sums up to here as we do; with more candidates it sums in another order


def shortlist(logits: Tensor, t: Tensor, k: Tensor, p: Tensor, m: Tensor) -> Tensor:
    """Return exactly `min_p(top_p(top_k(temperature(logits, t), k), p), m)`.

    logits are [rows, vocab], float32 or wider; each argument is [rows, 1]; t of 1, p of 1 and m of 0 keep the row; k is in [1, LONGEST].
    """
    look = min(int(k.max()) + SPARE, FIRST_LOOK, logits.shape[-1])
    likeliest, ids = logits.topk(look, dim=-1)
    likeliest = likeliest / t
    last = likeliest.gather(-1, (k - 1).clamp(max=look - 1))  # those level with it survive top_k too
    more = ((likeliest[:, -1:] >= last) & (last > -torch.inf)).squeeze(-1)  # not all of them are among the likeliest
    if bool(more.any()) and look < logits.shape[-1]:
        filtered = torch.empty_like(logits)
        for some, by in ((more, step_by_step), (~more, shortlist)):
            if bool(some.any()):
                filtered[some] = by(logits[some], t[some], k[some], p[some], m[some])
        return filtered
    kept = likeliest.masked_fill(likeliest < last, -torch.inf)
    weights, reached = cumulated(kept)
    end = nucleus_end(kept, weights, reached, p * reached[:, -1:])
    kept = min_p(kept.masked_fill((kept < end) & (p < 1), -torch.inf), m)
    return torch.full_like(logits, -torch.inf).scatter_(-1, ids, kept)


def step_by_step(logits: Tensor, t: Tensor, k: Tensor, p: Tensor, m: Tensor) -> Tensor:
    """The same over the whole vocabulary, [rows, vocab]."""
    return min_p(top_p(top_k(temperature(logits, t), k), p), m)
