"""Mirostat: how surprising the next token may be, by how surprising those before it were."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..requests.options import LLAMA_CPP, option, settings
from ..requests.params import RequestParams
from ..requests.rules import above_zero, share
from ..requests.sequence import TokenSequence
from .spec import Apply, FilterSpec, state_of


def mirostat(logits: Tensor, mu: Tensor) -> Tensor:
    """Drop every token of a surprise above mu bits, but never the likeliest; logits are [rows, vocab], mu [rows, 1].

    Source: Basu et al. 2021, Mirostat: a neural text decoding algorithm that directly controls perplexity (version 2).
    """
    surprise = -logits.log_softmax(dim=-1) / math.log(2)
    return logits.masked_fill((surprise > mu) & (logits < logits.amax(dim=-1, keepdim=True)), -torch.inf)


class Mirostat:
    """What mirostat remembers of a sequence: steers the surprise of the chosen tokens to tau bits, with learning rate eta.

    `mu`, the most surprise that a token may have, begins at 2 tau. As in llama.cpp the surprise of a token is that among
    the tokens which were left to choose from.
    """

    def __init__(self, tau: float, eta: float):
        self.tau, self.eta, self.mu = tau, eta, 2 * tau
        self._logprobs: Tensor | None = None

    def offer(self, logprobs: Tensor) -> None:
        """Remember the distribution, [vocab], that the next token is drawn from."""
        self._logprobs = logprobs

    def accept(self, id: int) -> None:
        """Learn from the token chosen; one that was not offered, forced text say, teaches nothing."""
        logprob = float(self._logprobs[id]) if self._logprobs is not None else -math.inf
        self._logprobs = None
        if logprob > -math.inf:
            self.mu -= self.eta * (-logprob / math.log(2) - self.tau)

    def fork(self) -> Mirostat:
        """Return one that goes on by itself."""
        twin = Mirostat(self.tau, self.eta)
        twin.mu, twin._logprobs = self.mu, self._logprobs
        return twin


@settings
class MirostatOptions:
    mirostat_tau: float | None = option(
        None, "Keep the surprise near so many bits (mirostat 2).", above_zero, example=3.0, samples=True, same_in=(LLAMA_CPP,)
    )
    mirostat_eta: float = option(0.1, "How fast mirostat learns.", share, example=1.0, part_of="mirostat_tau", same_in=(LLAMA_CPP,))


def make_mirostat(sequences: Sequence[TokenSequence]) -> Apply:
    """`mirostat` by what each sequence's state says, which is offered what is left."""

    def state(sequence: TokenSequence) -> Mirostat:
        params = sequence.request.params
        return state_of(sequence, "mirostat", lambda: Mirostat(params.mirostat_tau, params.mirostat_eta))

    def apply(scores: Tensor) -> Tensor:
        states = [state(sequence) for sequence in sequences]
        mu = torch.tensor([each.mu for each in states], dtype=scores.dtype, device=scores.device)[:, None]
        kept = mirostat(scores, mu)
        for each, logprobs in zip(states, kept.log_softmax(dim=-1)):
            each.offer(logprobs)
        return kept

    return apply


def truncates_alone(params: RequestParams) -> str | None:
    """The refusal of another filter of sampling beside it, a temperature aside."""
    others = [name for name in params.asks_to_sample if name not in ("mirostat_tau", "temperature")]
    if params.mirostat_tau and others:
        return f"mirostat_tau chooses how many tokens to keep by itself: drop it or {others[0]}={getattr(params, others[0])}"
    return None


MIROSTAT = FilterSpec("mirostat", "warper", mirostat, MirostatOptions, make_mirostat, check=truncates_alone)
