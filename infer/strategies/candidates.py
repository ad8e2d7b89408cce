"""How hypotheses can go on: the likeliest continuations of all of them, or some drawn without replacement."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..requests.race import race


class Continuation(NamedTuple):
    """Hypothesis number `parent` continued by a token: the token's log-probability, and the hypothesis' sum with it."""

    parent: int
    id: int
    logprob: float
    total: float


def likeliest(logprobs: Tensor, sums: Tensor, count: int) -> list[Continuation]:
    """Return the continuations of the greatest sums, at most `count`, best first.

    logprobs is [hypotheses, vocab], sums of the hypotheses [hypotheses]. What was dropped (-inf) is no candidate.
    """
    return ranked(*(logprobs + sums[:, None]).topk(min(count, logprobs.shape[1])), logprobs, sums, count)


def drawn(logprobs: Tensor, sums: Tensor, count: int, keys: Tensor) -> list[Continuation]:
    """Draw continuations without replacement, each time by the softmax of the sums that are left, in the order of the draws.

    The arguments are those of `likeliest`, and a key of each hypothesis' own noise, [hypotheses]. The draws are a top-k of the sums plus Gumbel noise
    (Kool et al., 2019), a race among all continuations.
    """
    wide = logprobs.double()
    ids, early = race(wide.softmax(dim=-1), keys, min(count, logprobs.shape[1]))
    priorities = early.log() + (wide.logsumexp(dim=-1) + sums)[:, None]
    return ranked(priorities.nan_to_num(nan=-torch.inf, neginf=-torch.inf), ids, logprobs, sums, count)  # nan: one of which everything was dropped


def ranked(priorities: Tensor, ids: Tensor, logprobs: Tensor, sums: Tensor, count: int) -> list[Continuation]:
    """Return the candidates of the greatest `priorities`, greatest first; priorities and ids are those of the best of each hypothesis, [hypotheses, some]."""
    best, order = priorities.flatten().topk(min(count, priorities.numel()))
    order = order[best > -torch.inf]
    parents, ids = order // priorities.shape[1], ids.flatten()[order]
    chosen = logprobs[parents, ids]
    return [Continuation(*each) for each in zip(parents.tolist(), ids.tolist(), chosen.tolist(), (chosen + sums[parents]).tolist())]
