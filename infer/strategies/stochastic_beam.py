"""Stochastic beam search: several answers drawn without replacement, each as likely as the model says."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...data.errors import UserError
from ..filters.logits import logprobs
from ..requests.generation import Generation
from ..requests.params import RequestParams
from ..requests.rng import race
from ..requests.sequence import TokenSequence
from ..requests.strategy import Host, Strategy
from .beam import SHARED_BY_BEAMS, Search, beams, check_beams, searched
from .hypotheses import Continuation, greatest
from .spec import StrategySpec

NOISE = "stochastic beams"  # its place among a sequence's numbers for a position
SMALLEST = 2.0**-60  # a uniform number of 0 has no logarithm


def stochastic_beam(generation: Generation, host: Host) -> Strategy:
    """Draw `num_beams` different answers without replacement from the distribution of whole answers, after the filters.

    It is the one that sampling draws from: the first answer is distributed as a sample, the second as one among the others, and so on. An answer's
    score is its log-probability, which is the sum of its `logprobs`, plus Gumbel noise: the answers come in the order of the draws.
    The seed alone decides; no answer comes twice.
    """
    return searched(generation, host, lambda sequence, group: GumbelSearch(sequence, generation.request.params.num_beams))


class GumbelSearch(Search):
    """A search whose beams are those of the greatest perturbed log-probabilities, among the finished and the live.

    The sum of a sequence is the greatest perturbed log-probability of all answers that begin with it.
    """

    def __init__(self, sequence: TokenSequence, width: int):
        super().__init__(sequence, width)
        self.sums = [gumbel(sequence.noise())]

    def step(self, logits: Tensor, taken: list[int]) -> None:
        """Perturb what follows each sequence, [rows, vocab], and go on with the greatest; finished ones keep their places among them."""
        children = [self.child(rank, candidate) for rank, candidate in enumerate(self.drawn(self.filters(logits)))]
        for child in children:
            child.sequence.score = child.total
        kept = sorted([*self.ended.sequences, *(child.sequence for child in children)], key=lambda sequence: -sequence.score)[: self.width]
        self.ended.sequences = [sequence for sequence in kept if sequence.finished]
        live = [child for child in children if child.sequence in kept and not child.sequence.finished]
        self.taken, self.over = [child.sequence.ids[-1] for child in children], not live
        if self.over and self.ended.sequences:
            self.mark_finished(self.ended.sequences[0])
        self.reorder_cache(live)

    def drawn(self, scores: Tensor) -> list[Continuation]:
        """The continuations of the greatest perturbed log-probabilities, at most as many as beams, greatest first; scores is [rows, vocab]."""
        wide = logprobs(scores.double())
        keys = torch.tensor([sequence.key(f"{NOISE} {sequence.new_ids}") for sequence in self.sequences], device=scores.device)
        ids, early = race(wide.exp(), keys, min(self.width, scores.shape[-1]))
        before = wide.new_tensor([sum(sequence.logprobs) for sequence in self.sequences])[:, None]
        totals = truncated(early.log() + before, wide.new_tensor(self.sums)[:, None])
        parents, own, best = greatest(totals, ids, self.width)
        return [Continuation(*each) for each in zip(parents.tolist(), own.tolist(), wide[parents, own].tolist(), best.tolist())]


def truncated(perturbed: Tensor, greatest: Tensor) -> Tensor:
    """Return Gumbel numbers, [rows, n] with the greatest of each row first, as if that had been `greatest`, [rows, 1].

    -log(exp(-greatest) - exp(-first) + exp(-perturbed)), in the form that does not overflow: with no number above it, a row's order stays,
    its first becomes `greatest`, and -inf stays (Kool et al. 2019, appendix B.3).
    """
    gap = perturbed - perturbed[:, :1]
    v = greatest - perturbed + torch.log(-torch.expm1(gap))
    return (greatest - v.clamp(min=0) - torch.log1p(torch.exp(-v.abs()))).masked_fill(perturbed == -torch.inf, -torch.inf)


def gumbel(uniform: float) -> float:
    """A number of the standard Gumbel distribution, from a uniform one in [0, 1)."""
    return -math.log(-math.log(max(uniform, SMALLEST)))


def check_stochastic(params: RequestParams) -> None:
    """Raise UserError for more answers than beams, and for settings that would have nothing drawn."""
    check_beams(params)
    greedy = "do_sample" if params.do_sample is False else params.greedy_by
    if greedy is not None:
        raise UserError(f"strategy 'stochastic_beam' draws its answers, but {greedy}={getattr(params, greedy)}: drop it")


STOCHASTIC_BEAM = StrategySpec(
    "stochastic_beam", stochastic_beam, about=stochastic_beam, options=("num_beams",),
    least={"strategy": "stochastic_beam", "num_beams": 2}, needs=("fork",), check=check_stochastic, width=beams, streams=SHARED_BY_BEAMS,
    paper="Kool et al. 2019, Stochastic beams and where to find them",
)  # fmt: skip
