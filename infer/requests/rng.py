"""Logits to ids, with noise that belongs to the row and never to its batch."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from ...data.errors import UserError
from .race import BITS, race


def hashed(*parts: object, size: int = 8) -> int:
    """Return a number of `size` bytes that depends on nothing but the parts."""
    return int.from_bytes(blake2b(" ".join(map(str, parts)).encode(), digest_size=size).digest(), "little")


def uniform(seed: int, position: int, draw: int = 0) -> float:
    """Return a number in [0, 1) that depends on nothing but the row's seed, the position and how many were drawn there."""
    return (hashed(seed, position, draw) >> (64 - BITS)) / (1 << BITS)


def key(seed: int, position: int, draw: object = 0) -> int:
    """Return what the noise of every id hangs on, for one draw of a row at a position: 64 bits as a signed number."""
    bits = hashed(seed, position, draw, "ids")
    return bits - (bits >> 63 << 64)


def draw(probs: Tensor, keys: Tensor) -> Tensor:
    """Draw one id a row, the first to arrive in a race of the ids.

    probs is [rows, vocab] and need not sum to one; keys is [rows] in int64. Returns [rows]. An id of probability 0 is never drawn.
    """
    return race(probs, keys)[0].squeeze(-1)


def choose(logits: Tensor, keys: Sequence[int | None]) -> tuple[Tensor, Tensor]:
    """Choose one id a row, the likeliest where the key is None; return ids [rows] and their log-probabilities [rows].

    The log-probability is that of the distribution given, so after every filter. Raises UserError for scores that are no distribution.
    """
    probs = logits.softmax(dim=-1)
    total = probs.sum(dim=-1, keepdim=True)  # float32's softmax does not sum to 1 as exactly
    if not bool((total > 0).all()):  # nan: an id drawn from these may lie beyond the vocabulary
        raise UserError(
            "the scores are not finite, so no token can be chosen: the model overflows in its dtype (load it in float32 or bfloat16), "
            "its weights are broken, or a filter's setting is too extreme"
        )
    drawn = [i for i, each in enumerate(keys) if each is not None]
    ids = logits.argmax(dim=-1) if len(drawn) < len(keys) else torch.empty(len(logits), dtype=torch.long, device=logits.device)
    if drawn:
        some = probs if len(drawn) == len(keys) else probs[drawn]
        ids[drawn] = draw(some, torch.tensor([keys[i] for i in drawn], device=logits.device))
    return ids, (probs.gather(-1, ids[:, None]) / total).squeeze(-1).log()
