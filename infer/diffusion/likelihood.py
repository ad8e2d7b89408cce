"""How likely a diffusion model finds given answers: a bound on the log-likelihood (ELBO), estimated over masks of the answer.

Of a block-causal model it is the sum of the bounds of the answer's blocks, each behind the ones before it without a mask, as they are spoken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..filters.logits import logprobs
from ..requests.likelihoods import MAX_LOGITS
from ..runners.contract import Runner
from ..runners.paradigm import BIDIRECTIONAL, diffusion_of
from .canvas import aligned
from .masking import Draws, Masks, masks_of, standard_error
from .schedule import blocks_of

MAX_POSITIONS = 8192  # positions a pass, those in the cache included, of which every mask of an answer has a copy


@dataclass(frozen=True)
class Bound:
    """The bound on an answer's log-likelihood in nats: each token's share of it, [n], and what each draw alone says of it, [draws], both in float64.

    `draws` is None where every mask was taken: the bound is then exact.
    """

    shares: Tensor
    draws: Tensor | None

    @property
    def value(self) -> float:
        """The estimate."""
        return math.fsum(self.shares.tolist())

    @property
    def error(self) -> float | None:
        """Its standard error, 0 of an exact bound and None of one draw."""
        return error_of([(1.0, self)])


def error_of(terms: Sequence[tuple[float, Bound]]) -> float | None:
    """The standard error of a weighted sum of bounds whose draws share their noise, as those of one key do; None where there was one draw."""
    drawn = [factor * bound.draws for factor, bound in terms if bound.draws is not None]
    return standard_error(torch.stack(drawn).sum(dim=0).tolist()) if drawn else 0.0


def likelihood_bounds(runner: Runner, pairs: Sequence[tuple[list[int], list[int]]], draws: Draws, keys: Sequence[object]) -> list[Bound]:
    """Return the bound of each answer behind its prompt; `pairs` are the ids of both, neither empty.

    `keys` say what the noise of an answer's masks hangs on: answers of one key share it. The distributions are those that the model speaks by, in
    which the mask itself has no part. A prompt that sees no answer is read once; passes are of bounded size, and no answer is padded.
    """
    found: list[Bound] = []
    while len(found) < len(pairs):
        begin = end = len(found)
        positions = 0
        while end < len(pairs) and (end == begin or positions + sum(map(len, pairs[end])) <= MAX_POSITIONS):
            positions, end = positions + sum(map(len, pairs[end])), end + 1
        found += _read_together(runner, [Reading(runner, *pair, draws, key) for pair, key in zip(pairs[begin:end], keys[begin:end])])
    return found


class Reading:
    """An answer whose bound is found block by block: `slot` holds what no mask of the block changes, `before` what was read at its last position, [1, vocab]."""

    def __init__(self, runner: Runner, prompt: list[int], answer: list[int], draws: Draws, key: object):
        self.runner, self.prompt, self.answer, self.draws, self.key = runner, prompt, answer, draws, key
        self.diffusion = diffusion_of(runner.model.config)
        self.whole = self.diffusion.attention == BIDIRECTIONAL  # the prompt sees the answer, and is read with it
        self.blocks = blocks_of(len(answer), self.diffusion.block_length)
        self.shares = torch.zeros(len(answer), dtype=torch.float64)
        self.drawn = torch.zeros(draws.count, dtype=torch.float64)
        self.before: Tensor | None = None
        self.slot = runner.allocate()
        runner.attend_both_ways(self.slot, self.whole)

    def questions(self, number: int) -> Iterator[Question]:
        """Those of the block of this number that mask something, for the others say nothing; none behind the last block."""
        for block in self.blocks[number : number + 1]:
            for draw, masks in enumerate(masks_of(len(block), self.draws, self.key, number)):
                if any(masks.masked):
                    yield Question(self, block, None if self.draws.take_all(len(block)) else draw, masks)

    def take(self, question: Question, logprobs: Tensor) -> None:
        """Add what a question's masked tokens were found to be, [masked], in float64 on the CPU."""
        weighted = question.masks.weight * logprobs
        self.shares[[question.block.start + place for place in question.places]] += weighted  # each place once
        if question.draw is None:
            self.drawn += weighted.sum()
        else:
            self.drawn[question.draw] += self.draws.count * weighted.sum()

    def bound(self) -> Bound:
        """What was found."""
        return Bound(self.shares, None if all(self.draws.take_all(len(block)) for block in self.blocks) else self.drawn)


class Question:
    """A block of an answer under one of its masks, the draw that it is of, None where all are taken, and how it goes into a pass."""

    def __init__(self, reading: Reading, block: range, draw: int | None, masks: Masks):
        self.reading, self.block, self.draw, self.masks = reading, block, draw, masks
        self.places = [place for place, hidden in enumerate(masks.masked) if hidden]  # in the block
        self.targets = [reading.answer[block.start + place] for place in self.places]
        self.count = len(block) - self.places[0]  # newest positions from the first masked one
        self.has_earlier = reading.whole or self.places[0] > 0  # the position before, where that one is read under a shift
        self.keep = self.count + (reading.diffusion.shift if self.has_earlier else 0)

    @property
    def ids(self) -> list[int]:
        """What is read behind the reading's slot."""
        reading, own = self.reading, self.reading.answer[self.block.start : self.block.stop]
        canvas = [reading.diffusion.mask_token_id if hidden else id for id, hidden in zip(own, self.masks.masked, strict=True)]
        return reading.prompt + canvas if reading.whole else canvas

    def rows(self, logits: Tensor) -> Tensor:
        """Of the newest `keep` positions' logits those of the masked tokens, [masked, vocab], the mask itself out of the question."""
        shift = self.reading.diffusion.shift
        rows = aligned(logits, self.count, shift, None if self.has_earlier or not shift else self.reading.before)
        return rows[[place - self.places[0] for place in self.places]]


def _read_together(runner: Runner, readings: Sequence[Reading]) -> list[Bound]:
    """The bounds of some answers, the first blocks of all, then the second ones: what stands before them is read in one pass."""
    try:
        _read_on(runner, [(reading, reading.prompt) for reading in readings if not reading.whole])
        for number in range(max(len(reading.blocks) for reading in readings)):
            for some in _passes(question for reading in readings for question in reading.questions(number)):
                _ask(runner, some)
            more = [reading for reading in readings if number + 1 < len(reading.blocks)]
            _read_on(runner, [(reading, [reading.answer[place] for place in reading.blocks[number]]) for reading in more])
    finally:
        runner.release([reading.slot for reading in readings])
    return [reading.bound() for reading in readings]


def _read_on(runner: Runner, told: Sequence[tuple[Reading, list[int]]]) -> None:
    """Append to each slot what stands before its next block, a prompt from left to right, what follows both ways."""
    if told:
        keep = [reading.diffusion.shift for reading, _ in told]
        logits = runner.forward([reading.slot for reading, _ in told], [ids for _, ids in told], keep)
        for (reading, _), before in zip(told, logits.split(keep)):
            reading.before = before
            runner.attend_both_ways(reading.slot, True)  # from the answer on


def _passes(questions: Iterator[Question]) -> Iterator[list[Question]]:
    """The questions in passes of bounded size, one at least in each."""
    some: list[Question] = []
    positions = logits = 0
    for question in questions:
        size = len(question.reading.prompt) + question.block.stop
        if some and (positions + size > MAX_POSITIONS or logits + question.keep > MAX_LOGITS):
            yield some
            some, positions, logits = [], 0, 0
        some.append(question)
        positions, logits = positions + size, logits + question.keep
    if some:
        yield some


def _ask(runner: Runner, questions: Sequence[Question]) -> None:
    """Run questions, each in a copy of its reading's slot, and hand on what their masked tokens are found to be."""
    slots = runner.fork([question.reading.slot for question in questions])
    try:
        logits = runner.forward(slots, [question.ids for question in questions], [question.keep for question in questions])
    finally:
        runner.release(slots)
    parts = logits.split([question.keep for question in questions])
    rows = torch.cat([question.rows(part) for question, part in zip(questions, parts)])
    rows = rows.index_fill(1, torch.tensor([questions[0].reading.diffusion.mask_token_id], device=rows.device), -torch.inf)
    targets = torch.tensor([target for question in questions for target in question.targets], device=rows.device)
    found = logprobs(rows).gather(1, targets[:, None]).squeeze(1).double().cpu()
    for question, own in zip(questions, found.split([len(question.places) for question in questions])):
        question.reading.take(question, own)
