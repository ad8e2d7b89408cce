"""Logits to ids, with noise that belongs to the row and never to its batch."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from ..data.refusal import UserError

BITS = 52  # so that a uniform number times a total is always below the total


def hashed(*parts: object, size: int = 8) -> int:
    """Return a number of `size` bytes that depends on nothing but the parts."""
    return int.from_bytes(blake2b(" ".join(map(str, parts)).encode(), digest_size=size).digest(), "little")


def uniform(seed: int, position: int, draw: int = 0) -> float:
    """Return a number in [0, 1) that depends on nothing but the row's seed, the position and how many were drawn there."""
    return (hashed(seed, position, draw) >> (64 - BITS)) / (1 << BITS)


def draw(probs: Tensor, noise: Tensor) -> Tensor:
    """Draw one id a row: the first whose cumulative probability, in the order of ids, passes the row's noise.

    probs is [rows, vocab] and need not sum to one; noise is [rows, 1] in [0, 1). Returns [rows]. An id of probability 0
    is never drawn.
    """
    cumulative = probs.cumsum(dim=-1, dtype=torch.float64)
    return torch.searchsorted(cumulative, noise.to(cumulative) * cumulative[:, -1:], right=True).squeeze(-1)


def choose(logits: Tensor, noise: Sequence[float | None]) -> tuple[Tensor, Tensor]:
    """Choose one id a row, the likeliest where the noise is None; return ids [rows] and their log-probabilities [rows].

    The log-probability is that of the distribution given, so after every filter. Raises UserError for scores that are no distribution.
    """
    total = logits.logsumexp(dim=-1)
    if not bool(total.isfinite().all()):  # nan or +inf: an id drawn from these may lie beyond the vocabulary
        raise UserError(
            "the scores are not finite, so no token can be chosen: the model overflows in its dtype (load it in float32 or bfloat16), "
            "its weights are broken, or a filter's setting is too extreme"
        )
    drawn = [i for i, u in enumerate(noise) if u is not None]
    ids = logits.argmax(dim=-1) if len(drawn) < len(noise) else torch.empty(len(logits), dtype=torch.long, device=logits.device)
    if drawn:
        some, some_total = (logits, total) if len(drawn) == len(noise) else (logits[drawn], total[drawn])
        u = torch.tensor([noise[i] for i in drawn], dtype=torch.float64, device=logits.device)[:, None]
        ids[drawn] = draw((some - some_total[:, None]).exp(), u)
    return ids, logits.gather(-1, ids[:, None]).squeeze(-1) - total
