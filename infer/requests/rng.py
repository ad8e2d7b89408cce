"""Logits to ids, with noise that belongs to the sequence and never to its batch: a race of ids.

With E an exponential number, an id of weight w arrives at E / w. The first to arrive is each id with the probability that is its share of
the weights, and the first n are n drawn without replacement (Efraimidis & Spirakis, 2006; log w - log E is Gumbel-max). An id's E comes
from the sequence's key and the id alone: neither rounding at other ids nor what filters drop changes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.errors import UserError
from ..runners.native import scores as native

BLOCK = native.BLOCK
BITS = 52  # of a uniform number, so that with a half added it is exact in float64
FIRST_LOOK = 32  # blocks: mostly the winner is among them


def race(weights: Tensor, keys: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """Return the first ids to arrive, [rows, count], and how early they are, weight over E in float64.

    weights is [rows, vocab], none negative, of any sum above 0; keys is [rows] in int64; count is at most vocab. Where fewer ids have a
    weight, ids of earliness 0 follow, which may lie beyond the vocabulary.

    Blocks are looked into as long as the greatest weight over the smallest E of one left out could still win, so that few E are computed.
    """
    if over := weights.shape[-1] % BLOCK:
        weights = F.pad(weights, (0, BLOCK - over))
    weights = weights.unflatten(-1, (-1, BLOCK))
    blocks = torch.arange(weights.shape[1], device=weights.device).expand(len(weights), -1)
    least, who = first_in(keys, blocks)
    earliest = weights.amax(dim=-1) / least  # [rows, blocks]
    look = max(FIRST_LOOK, -(-count // BLOCK))
    while True:
        reach, some = earliest.topk(min(look, blocks.shape[1]), dim=-1)
        looked = weights.gather(1, some[..., None].expand(-1, -1, BLOCK))
        early = looked / exponential(keys, some, least.gather(1, some), who.gather(1, some))
        early, places = early.flatten(1).topk(count, dim=-1)
        if look >= blocks.shape[1] or bool((reach[:, -1] <= early[:, -1]).all()):
            return some.gather(-1, places // BLOCK) * BLOCK + places % BLOCK, early
        look *= 4


def first_in(keys: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest E of each block and the place of the id that has it, [rows, n] each; keys is [rows], blocks [rows, n]."""
    bits = hashes(keys[:, None], -1 - blocks)
    return unit_exponential(bits) / BLOCK, bits & (BLOCK - 1)


def exponential(keys: Tensor, blocks: Tensor, least: Tensor, who: Tensor) -> Tensor:
    """Return every E of blocks of which `first_in` is known, [rows, n, BLOCK]: exponential numbers of mean 1, independent of each other.

    By the lack of memory, what the others need beyond the smallest is again exponential.
    """
    within = torch.arange(BLOCK, device=blocks.device)
    further = unit_exponential(hashes(keys[:, None, None], blocks[..., None] * BLOCK + within))
    return least[..., None] + further.masked_fill_(within == who[..., None], 0)


def unit_exponential(bits: Tensor) -> Tensor:
    """An exponential number of mean 1 from the upper bits of 64, in float64; never 0."""
    return -torch.log1p((shifted(bits, 64 - BITS).double() + 0.5) * -(2.0**-BITS))


def hashes(keys: Tensor, counters: Tensor) -> Tensor:
    """Return 64 random bits a counter: SplitMix64 (Steele et al., 2014) from the key on. Sums and products of int64 wrap around."""
    bits = keys + counters * -0x61C8864680B583EB
    bits = (bits ^ shifted(bits, 30)) * -0x40A7B892E31B1A47
    bits = (bits ^ shifted(bits, 27)) * -0x6B2FB644ECCEEE15
    return bits ^ shifted(bits, 31)


def shifted(bits: Tensor, by: int) -> Tensor:
    """Shift to the right and fill with zeros; int64 alone would repeat the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def hashed(*parts: object, size: int = 8) -> int:
    """Return a number of `size` bytes that depends on nothing but the parts."""
    return int.from_bytes(blake2b(" ".join(map(str, parts)).encode(), digest_size=size).digest(), "little")


def uniform(seed: int, position: int, draw: int = 0) -> float:
    """Return a number in [0, 1) that depends on nothing but the sequence's seed, the position and how many were drawn there."""
    return (hashed(seed, position, draw) >> (64 - BITS)) / (1 << BITS)


def key(seed: int, position: int, draw: object = 0) -> int:
    """Return what the noise of every id hangs on, for one draw of a sequence at a position: 64 bits as a signed number."""
    bits = hashed(seed, position, draw, "ids")
    return bits - (bits >> 63 << 64)


def draw(probs: Tensor, keys: Tensor, few: Tensor | None = None) -> Tensor:
    """Draw one id a row, the first to arrive in a race of the ids, or of the `few` that have a chance, [rows, n], where they are known.

    probs is [rows, vocab] and need not sum to one; keys is [rows] in int64. Returns [rows]. An id of probability 0 is never drawn.
    """
    return race(probs, keys)[0].squeeze(-1) if few is None else winner(probs.gather(-1, few), few, keys)


def winner(weights: Tensor, ids: Tensor, keys: Tensor) -> Tensor:
    """Return the first of some ids to arrive, [rows], as in a `race` of all where no other has a weight; weights and ids are [rows, n]."""
    bits = hashes(keys[:, None], torch.cat([-1 - ids // BLOCK, ids], dim=-1))
    least, further = unit_exponential(bits).chunk(2, dim=-1)  # of the ids' blocks, and what each needs beyond that
    is_least = bits[:, : ids.shape[1]] & (BLOCK - 1) == ids % BLOCK
    early = weights / (least / BLOCK + further.masked_fill(is_least, 0))
    return ids.gather(-1, early.argmax(dim=-1, keepdim=True)).squeeze(-1)


def choose(logits: Tensor, keys: Sequence[int | None], few: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Choose one id a row, the likeliest where the key is None; return ids [rows] and their log-probabilities [rows].

    The log-probability is that of the distribution given, so after every filter. For a row that is no distribution it is nan, and the
    id means nothing: `refuse_nan` tells. Where it is known that all but a `few` ids of each row, [rows, n], are dropped, those that draw do so sooner.
    """
    if (found := native.chosen(logits, keys)) is not None:
        return torch.tensor(found[0], device="cpu"), torch.tensor(found[1], dtype=torch.float32, device="cpu")
    probs = logits.softmax(dim=-1)
    total = probs.sum(dim=-1, keepdim=True)  # float32's softmax does not sum to 1 as exactly; of a row that is no distribution it is nan
    drawn = [i for i, each in enumerate(keys) if each is not None]
    ids = likeliest(logits) if len(drawn) < len(keys) else None
    if drawn:
        some = probs if ids is None else probs[drawn]
        few = few if few is None or ids is None else few[drawn]
        winners = draw(some, torch.tensor([keys[i] for i in drawn], device=logits.device), few)
        if few is None and logits.shape[-1] % BLOCK:
            winners.clamp_(max=logits.shape[-1] - 1)  # drawn from nan it may lie beyond the vocabulary
        ids = winners if ids is None else ids.index_copy_(0, torch.tensor(drawn, device=logits.device), winners)
    return ids, (probs.gather(-1, ids.unsqueeze(-1)) / total).squeeze(-1).log()


def likeliest(logits: Tensor) -> Tensor:
    """Return the first of the likeliest ids of each row, [rows, vocab] to [rows]."""
    if logits.is_cpu and logits.dtype == torch.float32:  # numpy looks through a vocabulary in a tenth of torch's time
        return torch.from_numpy(logits.detach().numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def refuse_nan(logprob: float) -> float:
    """Return a chosen token's log-probability; raises UserError for one that came of scores that are no distribution."""
    if math.isnan(logprob):
        raise UserError(
            "the scores are not finite, so no token can be chosen: the model overflows in its dtype (load it in float32 or bfloat16), "
            "its weights are broken, or a filter's setting is too extreme"
        )
    return logprob
