"""Hypotheses of a beam search: how they go on, and those that are finished."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..requests.rng import race
from ..requests.sequence import TokenSequence


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
    parents, ids, _ = greatest(priorities, ids, count)
    chosen = logprobs[parents, ids]
    return [Continuation(*each) for each in zip(parents.tolist(), ids.tolist(), chosen.tolist(), (chosen + sums[parents]).tolist())]


def greatest(priorities: Tensor, ids: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return hypotheses, ids and priorities of the greatest of all priorities but -inf, [at most count] each, greatest first; arguments as `ranked`'s."""
    best, order = priorities.flatten().topk(min(count, priorities.numel()))
    allowed = best > -torch.inf
    order = order[allowed]
    return order // priorities.shape[1], ids.flatten()[order], best[allowed]


class BeamHypotheses:
    """Keeps the best finished hypotheses, best first, and judges whether a search can still improve them.

    A score is the sum of log-probabilities over length^length_penalty (Wu et al., 2016); the length counts the generated tokens, an
    end token included, without a given beginning of the answer.
    """

    def __init__(self, sequence: TokenSequence, capacity: int):
        """`sequence` is where the search begins."""
        params = sequence.request.params
        self.capacity = capacity
        self.sequences: list[TokenSequence] = []
        self.begin = sequence.position
        self.penalty, self.early_stopping = params.length_penalty, params.early_stopping
        self.longest = params.max_new_tokens - self.begin

    @property
    def full(self) -> bool:
        """Whether there are as many as are kept."""
        return len(self.sequences) == self.capacity

    def add(self, sequence: TokenSequence, total: float) -> None:
        """Take a hypothesis in, if it is among the best; of equal ones the elder stays."""
        sequence.score = self.score(total, sequence.position - self.begin)
        self.sequences = sorted([*self.sequences, sequence], key=lambda each: -each.score)[: self.capacity]

    def score(self, total: float, length: int) -> float:
        """The score of a hypothesis of so many tokens with this sum."""
        return total / length**self.penalty

    def is_done(self, best: float, position: int) -> bool:
        """Whether no live hypothesis, of which the best has this sum at this position, is expected to come in, as transformers judges it.

        With `early_stopping` that is so once there are enough; without, where the best would not come in if it ended here; and "never"
        asks, with a positive length_penalty, whether it would if it ended at the greatest length without a loss.
        """
        if not self.full or self.early_stopping is True:
            return self.full
        hopeful = self.early_stopping == "never" and self.penalty > 0
        return self.score(best, self.longest if hopeful else position - self.begin) <= self.sequences[-1].score
