"""How hypotheses can go on: the likeliest continuations of all of them, or some drawn without replacement."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .sample import hashed


class Candidate(NamedTuple):
    """Hypothesis number `parent` continued by a token: the token's log-probability, and the hypothesis' sum with it."""

    parent: int
    id: int
    logprob: float
    total: float


def likeliest(logprobs: Tensor, sums: Tensor, count: int) -> list[Candidate]:
    """Return the continuations of the greatest sums, at most `count`, best first.

    logprobs is [rows, vocab], sums of the rows [rows]. What was dropped (-inf) is no candidate.
    """
    return ranked(logprobs + sums[:, None], logprobs, sums, count)


def drawn(logprobs: Tensor, sums: Tensor, count: int, generator: torch.Generator) -> list[Candidate]:
    """Draw continuations without replacement, each time by the softmax of the sums that are left, in the order of the draws.

    The arguments are those of `likeliest`. The draws are a top-k of the sums plus Gumbel noise (Kool et al., 2019).
    """
    noise = torch.rand(logprobs.shape, dtype=torch.float64, generator=generator).log_().neg_().log_().neg_()
    return ranked(logprobs + sums[:, None] + noise.to(logprobs.device), logprobs, sums, count)


def ranked(keys: Tensor, logprobs: Tensor, sums: Tensor, count: int) -> list[Candidate]:
    """Return the candidates of the greatest keys, [rows, vocab], greatest first."""
    some, ids = keys.topk(min(count, keys.shape[1]))  # [rows, some]
    order = some.flatten().topk(min(count, some.numel())).indices
    parents, ids = order // some.shape[1], ids.flatten()[order]
    chosen = logprobs[parents, ids]
    rows = zip(parents.tolist(), ids.tolist(), chosen.tolist(), (chosen + sums[parents]).tolist())
    return [Candidate(*each) for each in rows if each[-1] > -torch.inf]


def generator_of(seed: int, position: int, group: int = 0) -> torch.Generator:
    """Return the noise of one step of one search: it hangs on the seed and the position and on no other request."""
    return torch.Generator().manual_seed(hashed(seed, position, group, "beams") >> 1)
