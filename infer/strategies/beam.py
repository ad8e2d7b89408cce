"""Beam search, greedy or sampled; and the step that the other beam searches share with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.errors import UserError
from ..filters.logits import logprobs
from ..filters.pipeline import Filters
from ..requests.generation import Generation
from ..requests.options import CONFIG, VLLM, Command, option, settings
from ..requests.params import RequestParams
from ..requests.request import Request
from ..requests.rules import must_be, number, whole, yes_or_no
from ..requests.sequence import TokenSequence, release, shared_length
from ..requests.strategy import Host, Strategy, next_tokens
from ..requests.trace import BeamTrace
from .hypotheses import BeamHypotheses, Continuation, drawn, likeliest
from .spec import StrategySpec

ENDED = ("eos", "stop")  # by its own last token; at the greatest length, or when time is up, a hypothesis is cut


@dataclass(eq=False)
class BeamCandidate:
    """A candidate whose token was committed: `sequence` is a copy of its parent's, without a slot of its own."""

    rank: int
    parent: int
    total: float
    sequence: TokenSequence

    @property
    def origin(self) -> tuple[int, int, float]:
        """Its parent, its token and its sum."""
        return self.parent, self.sequence.ids[-1], self.total


class Search:
    """One beam search: its live hypotheses, a sequence each, and the finished ones.

    Follows transformers: of (1 + number of end tokens, at least 2) * width candidates a step, the finished among the first `width` become
    hypotheses and the best `width` of the unfinished live on. Where there are fewer candidates, fewer live on.
    """

    counts_ended = False  # whether the best candidate keeps the search going though it ended, as in transformers 4

    def __init__(self, sequence: TokenSequence, width: int, group: int = 0):
        self.request, self.width, self.group = sequence.request, width, group
        self.samples = self.request.params.samples
        self.count = width * max(2, 1 + len(self.request.ends))
        self.sequences, self.sums = [sequence], [0.0]
        self.filters = Filters(self.sequences)
        self.ended = BeamHypotheses(sequence, width)
        self.over = False
        self.taken: list[int] = []  # the tokens of the newest step
        self.origins: list[tuple[int, int, float]] = []  # of each sequence, its parent being one of the sequences before the step

    def step(self, logits: Tensor, taken: list[int]) -> None:
        """Let each sequence go on by what follows it, [sequences, vocab]; `taken` are the tokens that searches before this one took."""
        scores = self.filters(self.logprobs(logits, taken))
        logprobs = scores.log_softmax(dim=-1) if self.request.params.renormalize_logits else scores
        sums = torch.tensor(self.sums, dtype=logprobs.dtype, device=logprobs.device)
        if self.samples:
            keys = torch.tensor([sequence.key(f"beams {sequence.new_ids}") for sequence in self.sequences], device=logprobs.device)  # whatever their order
            candidates = drawn(logprobs, sums, self.count, keys)
        else:
            candidates = likeliest(logprobs, sums, self.count)
        chosen = self.choose(self.judge(candidates), logprobs)
        self.taken = [child.sequence.ids[-1] for child in chosen[: self.width]]
        for child in chosen:
            if child.sequence.finished and child.rank < self.width:
                self.keep(child)
        live = sorted((child for child in chosen if not child.sequence.finished), key=lambda child: -child.total)[: self.width]
        hopes = [*(candidates[:1] if self.counts_ended else []), *live]
        self.over = not live or self.ended.is_done(hopes[0].total, live[0].sequence.position)
        if self.over and self.ended.sequences and not self.group:
            self.mark_finished(self.ended.sequences[0])
        self.reorder_cache([] if self.over else live)

    def logprobs(self, logits: Tensor, taken: list[int]) -> Tensor:
        """The model's log-probabilities, [sequences, vocab], before any filter."""
        return logprobs(logits)

    def judge(self, candidates: list[Continuation]) -> list[BeamCandidate]:
        """Commit the candidates' tokens, keep the hypotheses that end by them, and return the others in the order of the candidates."""
        others: list[BeamCandidate] = []
        for rank, candidate in enumerate(candidates):
            if len(others) == self.width and not self.samples:
                break  # what comes now ranks too low to live or to be kept
            child = self.child(rank, candidate)
            if child.sequence.finish_reason not in ENDED:
                others.append(child)
            elif rank < self.width:
                self.keep(child)
        return others

    def child(self, rank: int, candidate: Continuation) -> BeamCandidate:
        """A hypothesis continued by one token."""
        sequence = self.sequences[candidate.parent].copy()
        sequence.commit(candidate.id, candidate.logprob)
        return BeamCandidate(rank, candidate.parent, candidate.total, sequence)

    def choose(self, children: list[BeamCandidate], logprobs: Tensor) -> list[BeamCandidate]:
        """Return the children to go on with, or to keep where they are finished; logprobs is [sequences, vocab], after every filter."""
        return children

    def keep(self, child: BeamCandidate) -> None:
        """Take a finished child in among the hypotheses."""
        self.ended.add(child.sequence, child.total)

    def mark_finished(self, best: TokenSequence) -> None:
        """Let the sequence that has most of a hypothesis count as finished, so that a prefix cache keeps its past."""
        max(self.sequences, key=lambda sequence: shared_length(sequence.ids, best.ids)).finish_reason = best.finish_reason

    def reorder_cache(self, children: list[BeamCandidate]) -> None:
        """Give each child a sequence: the first of a parent takes over in place, the others get the sequences of parents without children.

        So no sequence is written that another one still has to read.
        """
        sequences, children_by_seat = list(self.sequences), {}
        further = [child for child in children if children_by_seat.setdefault(child.parent, child) is not child]
        free = [seat for seat in range(len(sequences)) if seat not in children_by_seat]
        for child in further:
            if free:
                children_by_seat[free.pop(0)] = child
            else:
                children_by_seat[len(sequences)] = child
                sequences.append(child.sequence.fork())
        for seat, child in children_by_seat.items():
            if seat < len(self.sequences):
                sequences[seat].adopt(child.sequence)
        release([sequences[seat] for seat in free])
        taken = sorted(children_by_seat)
        self.sums = [children_by_seat[seat].total for seat in taken]
        self.origins = [children_by_seat[seat].origin for seat in taken]
        if len(taken) != len(self.sequences):
            self.sequences = [sequences[seat] for seat in taken]
            self.filters = Filters(self.sequences)


def beam(generation: Generation, host: Host) -> Strategy:
    """Search the likeliest answer with `num_beams` hypotheses side by side; told as soon as all of them agree on it.

    With `do_sample` the candidates of a step are drawn instead, without replacement, by the softmax of all sums.
    """
    return searched(generation, host, lambda sequence, group: Search(sequence, generation.request.params.num_beams))


def searched(generation: Generation, host: Host, new: Callable[[TokenSequence, int], Search], groups: int = 1) -> Strategy:
    """Run the searches of a request, `new(sequence, number)`, on one pass a step, and publish the best that they find."""
    sequence = TokenSequence.open(generation, host.runner)
    logits = yield next_tokens([sequence])
    live = searches = [new(sequence.fork() if number else sequence, number) for number in range(groups)]
    parts, shown, position = [logits] * groups, 0, sequence.position
    while live:
        firsts = [sum(len(search.sequences) for search in live[:i]) for i in range(len(live))]
        taken: list[int] = []
        for search, part in zip(live, parts):
            search.step(part, taken)
            taken += search.taken
        trace_step(generation, live, searches, firsts, position)
        position += 1
        shown = publish_agreed(searches, shown)
        live = [search for search in searches if not search.over]
        if live:
            logits = yield next_tokens([each for search in live for each in search.sequences])
            parts = logits.split([len(search.sequences) for search in live])
    finish(generation, [each for search in searches for each in search.ended.sequences])


def publish_agreed(searches: list[Search], shown: int) -> int:
    """Publish the tokens that all live hypotheses and the best finished one begin with, `shown` of them already; return how many it are now.

    The answer will be one of them or a continuation, so nothing is ever taken back.
    """
    live = [sequence for search in searches for sequence in search.sequences]
    if not live:
        return shown
    ended = [sequence for search in searches for sequence in search.ended.sequences]
    sequences = live + ([max(ended, key=lambda sequence: sequence.score)] if ended else [])
    prompt = len(live[0].request.prompt_ids)
    at = prompt + shown
    while all(at < len(sequence.ids) and sequence.ids[at] == live[0].ids[at] for sequence in sequences):
        at += 1
    if at - prompt > shown:
        live[0].publish(at - prompt)
    return at - prompt


def trace_step(generation: Generation, live: list[Search], searches: list[Search], firsts: list[int], position: int) -> None:
    """Trace a step, at a position, of the searches that were live; `firsts` counts the sequences of those before each, as they were."""
    if not generation.request.traced:
        return
    beams = [(first + parent, id, total) for first, search in zip(firsts, live) for parent, id, total in search.origins]
    scores = sorted((sequence.score for search in searches for sequence in search.ended.sequences), reverse=True)
    generation.trace(BeamTrace(tuple(beams), tuple(scores)), position)


def finish(generation: Generation, ended: list[TokenSequence]) -> None:
    """Publish the best finished hypotheses; raises UserError where there are fewer than were asked for."""
    request, wanted = generation.request, generation.request.params.num_return_sequences
    if len(ended) < wanted:
        raise UserError(
            f"prompt {request.index + 1} has {len(ended)} answers within its filters, words and time, but num_return_sequences={wanted}: "
            "lower it, raise num_beams, or loosen them"
        )
    for choice, sequence in enumerate(sorted(ended, key=lambda sequence: -sequence.score)[:wanted]):
        generation.finish(sequence.answer, choice)  # of one seed: one search finds them all


def check_beams(params: RequestParams) -> None:
    """Raise UserError for more answers than beams."""
    if params.num_return_sequences > params.num_beams:
        raise UserError(
            f"num_return_sequences={params.num_return_sequences} asks for more than the search keeps: raise num_beams={params.num_beams}"
        )


def beams(request: Request) -> int:
    """How many sequences a search of beams runs."""
    return request.params.num_beams


def stopping_written(word: str) -> bool | str:
    """What a command line says of early stopping."""
    return {"true": True, "false": False}.get(word.lower(), word)


@settings
class Beams:
    num_beams: int = option(1, "Beams of the search.", whole(1), example=2, same_in=(CONFIG,))
    length_penalty: float = option(
        1.0, "Scores of beams are divided by their length to this power.",
        number("a number in [-50, 50]", lambda x: abs(x) <= 50), example=2.0, same_in=(CONFIG, VLLM),  # so that no length's power is too large for a float
    )
    early_stopping: bool | str = option(
        False, "Beams stop at num_beams answers (true), where none seems to come in (false) or where none can (never).",
        must_be('True, False or "never"', lambda value: isinstance(value, bool) or value == "never"), example=True, same_in=(CONFIG,),
        command=Command(str, "false", stopping_written),
    )  # fmt: skip
    renormalize_logits: bool = option(
        False, "What filters leave of a beam's distribution counts as all of it, for beams are compared by their sums.", yes_or_no, example=True,
        same_in=(CONFIG,),
    )  # fmt: skip


SHARED_BY_BEAMS = "what all beams share"
BEAM = StrategySpec(
    "beam", beam, about=beam, options=(Beams,), least={"num_beams": 2}, meant=lambda params: params.num_beams > 1, needs=("fork",),
    check=check_beams, width=beams, sees_logprobs=True, streams=SHARED_BY_BEAMS,
    paper="Lowerre 1976; length penalty: Wu et al. 2016, Google's neural machine translation system",
)  # fmt: skip
