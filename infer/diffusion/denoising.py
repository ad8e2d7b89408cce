"""From masks to answers: the passes over the canvases of all requests, and what becomes certain in each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ..filters.pipeline import Filters
from ..requests.events import Provisional
from ..requests.likelihoods import Place, TokenLogprobs
from ..requests.rng import choose, refuse_nan, uniform
from ..requests.rng import key as noise_key
from ..requests.sequence import release
from ..requests.strategy import Arrivals, Forward, Strategy
from ..requests.trace import ChoiceTrace, DiffusionStep, TraceRecorder
from ..runners.paradigm import diffusion_of
from .canvas import Canvas, CanvasSequence, aligned
from .orders import ORIGIN, confidence, surest
from .schedule import arrival, blocks_of, counts, steps_of

DEFAULT_ORDER = "entropy"
MAX_POSITIONS = 16_384  # a pass: bounds the memory of activations
MAX_LOGITS = 100_000_000  # a pass, of all rows: 400 MB of float32


class Guess(NamedTuple):
    """A token for an open position, its log-probability after the filters, and how sure the position is by the order; what a trace saw of it."""

    position: int
    id: int
    logprob: float
    sure: float
    trace: ChoiceTrace | None


class Task(NamedTuple):
    """What the next pass over a block is for: to make so many positions certain, or these, or, with None, to leave the whole block in the cache."""

    block: range
    due: int | list[int] | None


def denoised(arrivals: Arrivals) -> Strategy:
    """Fill in all canvases, a pass of each at a time, until none is left; `arrivals` is asked for more before each pass.

    Those that a pass has no room for come first in the next. Sequences are filtered together, each by its own settings. The noise of every draw comes of the sequence's seed, the position and the step.
    """
    live: list[Denoising] = []
    while True:
        live += map(Denoising, arrivals())
        if not live:
            return
        running, waiting = that_fit(live)
        asked = [each.ask() for each in running]
        logits = yield Forward([each.sequence for each in running], [ids for ids, _ in asked], [keep for _, keep in asked])
        parts = [(each, part) for each, part in zip(running, logits.split([keep for _, keep in asked])) if not each.sequence.finished]
        rows = [(each, each.read(part)) for each, part in parts]
        for each, guesses in guessed([(each, part) for each, part in rows if len(part)]):
            with each.sequence.generation.contained():
                each.take(guesses)
        for each in running:
            each.go_on()
        live = [each for each in waiting + running if not each.is_over()]  # also those of requests that failed or were cancelled


def that_fit(live: list[Denoising]) -> tuple[list[Denoising], list[Denoising]]:
    """Those that go through the next pass, the first and as many as it has room for, and the others."""
    positions = accumulate(each.size for each in live)
    logits = accumulate(len(each.task.block) * each.sequence.runner.vocab_size for each in live)
    count = sum(p <= MAX_POSITIONS and n <= MAX_LOGITS for p, n in zip(positions, logits))
    return live[: max(count, 1)], live[max(count, 1) :]


def guessed(asking: Sequence[tuple[Denoising, Tensor]]) -> list[tuple[Denoising, list[Guess]]]:
    """Choose a token for each position that is asked for by its logits, [n, vocab] an answer, never the mask; a request whose filters fail has ended."""
    if not asking:
        return []
    owners = [each for each, part in asking for _ in range(len(part))]
    sequences, positions = [each.sequence for each in owners], [position for each, _ in asking for position in each.positions]
    logits = torch.cat([part for _, part in asking])
    logits = logits.index_fill(1, torch.tensor([owners[0].mask], device=logits.device), -torch.inf)
    recorder = TraceRecorder.of(sequences, logits)
    scores, errors = Filters(sequences).each(logits, recorder)
    for row, error in errors.items():
        sequences[row].generation.fail(error)
    ids, logprobs = choose(scores, [each.key_of(position) for each, position in zip(owners, positions)])
    sure = logprobs.exp().double()
    for order in {each.order for each in owners} - {ORIGIN}:
        own = [row for row, each in enumerate(owners) if each.order == order]
        sure[own] = confidence(order, scores[own], ids[own]).double()
    traces = [None] * len(owners) if recorder is None else recorder.choices(scores, ids.tolist())
    guesses = map(Guess, positions, ids.tolist(), logprobs.tolist(), sure.tolist(), traces)
    return [(each, [next(guesses) for _ in range(len(part))]) for each, part in asking]


class Denoising:
    """An answer on its way from masks to text: its canvas, what its next pass is for (`task`), and which positions that asks for."""

    def __init__(self, sequence: CanvasSequence):
        self.sequence, self.diffusion = sequence, diffusion_of(sequence.runner.model.config)
        params = sequence.request.params
        self.mask, self.order, self.alg_temp = self.diffusion.mask_token_id, params.alg or DEFAULT_ORDER, params.alg_temp or 0.0
        self.canvas = Canvas.blank(params.max_new_tokens, self.mask)
        self.before, self.step, self.positions, self._late = sequence.before, 0, [], False
        self._prompt, self._told = sequence.cached, {}  # how long it is in the cache; the guesses that were told last
        self._tasks = self._plan()
        self.task = next(self._tasks)
        sequence.runner.attend_both_ways(sequence.cache_slot, True)

    @property
    def size(self) -> int:
        """How many positions its next pass has."""
        return len(self.task.block) + (len(self.sequence.request.prompt_ids) if self.sequence.whole else 0)

    def key_of(self, position: int) -> int | None:
        """What the noise of a position's ids hangs on in this step; None where the likeliest is taken."""
        sequence = self.sequence
        return noise_key(sequence.seed, position, f"canvas {self.step}") if sequence.request.params.samples else None

    def _plan(self) -> Iterator[Task]:
        """Block by block, what each pass makes certain, none without; a block that is done is read once more, as the next one sees it."""
        params = self.sequence.request.params
        blocks = blocks_of(params.max_new_tokens, self.diffusion.block_length)
        for block, steps in zip(blocks, steps_of(blocks, params.steps)):
            yield from (Task(block, due) for due in self._due(block, steps))
            yield Task(block, None)

    def _due(self, block: range, steps: int) -> list[int] | list[list[int]]:
        if self.order != ORIGIN:
            return counts(len(block), steps)
        found: dict[int, list[int]] = {}
        for position in block:
            found.setdefault(arrival(uniform(self.sequence.seed, position, "arrival"), steps), []).append(position)
        return [found[step] for step in sorted(found)]

    def ask(self) -> tuple[list[int], int]:
        """The ids of the next pass, and of how many of the newest it wants the logits; where time is up, it asks for the next token at least."""
        (block, due), sequence, shift = self.task, self.sequence, self.diffusion.shift
        ids = self.canvas.ids[block.start : block.stop]
        if due is None:
            self.positions = []
            return ids, shift
        self.step, self._late = self.step + 1, sequence.time_is_up
        self.positions = sorted({*due, sequence.position} if self._late else due) if isinstance(due, list) else self.canvas.open_in(block)
        return [*sequence.given, *ids] if sequence.whole else ids, self._count + (shift if self._has_earlier else 0)

    @property
    def _count(self) -> int:
        """How many newest positions there are from the first that is asked for."""
        return self.task.block.stop - self.positions[0]

    @property
    def _has_earlier(self) -> bool:
        """Whether the pass has the position before those, where the first is read under a shift."""
        return self.sequence.whole or self.positions[0] > self.task.block.start

    def read(self, logits: Tensor) -> Tensor:
        """Take the canvas out of the cache, but for a block that is to stay, and return the logits of the positions asked for, [n, vocab]."""
        sequence, shift = self.sequence, self.diffusion.shift
        sequence.passes += 1
        if self.task.due is None:
            if shift:
                self.before = logits, sequence.place
            return logits[:0]
        sequence.rollback(sequence.cached - self._prompt - (0 if sequence.whole else self.task.block.start))
        rows = aligned(logits, self._count, shift, None if self._has_earlier or not shift else self.before[0])
        return rows[[position - self.positions[0] for position in self.positions]]

    def take(self, guesses: list[Guess]) -> None:
        """Make certain what is due, publish what is certain up to the first open position, and tell what is beyond it, and new guesses.

        Raises UserError where the model's scores are no numbers, and where a stop function of the caller's fails.
        """
        sequence, canvas = self.sequence, self.canvas
        certain = guesses if isinstance(self.task.due, list) else self._surest(guesses, self.task.due)
        for guess in certain:
            canvas.put(guess.position, guess.id, refuse_nan(guess.logprob), self._likelihoods(guess) if sequence.asks_likelihoods else None)
        if sequence.request.traced:
            self._trace(certain)
        sequence.fill(canvas)
        sequence.publish()
        if not sequence.finished:
            self._tell([guess for guess in guesses if guess.position >= sequence.position])

    def _surest(self, guesses: list[Guess], count: int) -> list[Guess]:
        """The surest of the guesses, in the order of their positions; where time is up, the first of them too."""
        noise = [uniform(self.sequence.seed, guess.position, f"order {self.step}") for guess in guesses] if self.alg_temp else ()
        places = surest(torch.tensor([guess.sure for guess in guesses], dtype=torch.float64), count, self.alg_temp, noise)
        return [guess for place, guess in enumerate(guesses) if place in places or self._late and not place]

    def _likelihoods(self, guess: Guess) -> TokenLogprobs:
        """What the model alone thinks of a guess, by the row of the pass that its position was read in."""
        sequence, row = self.sequence, guess.position - self.positions[0]
        if self.diffusion.shift and not self._has_earlier:
            row -= 1
        place = self.before[1] if row < 0 else Place(sequence.place.likelihoods, sequence.place.row + row)
        return place.likelihoods.at(place.row, guess.id, sequence.request.params.logprobs, sequence.request.tokenizer)

    def _trace(self, certain: list[Guess]) -> None:
        sequence, trace = self.sequence, self.sequence.generation.trace
        for guess in certain:
            trace(guess.trace, guess.position, sequence.choice)
        committed = tuple((guess.position, guess.id, guess.sure) for guess in certain)
        shown = tuple(None if is_open else id for id, is_open in zip(self.canvas.ids, self.canvas.open))
        trace(DiffusionStep(self.step, committed, shown, sequence.passes), sequence.position, sequence.choice)

    def _tell(self, guesses: list[Guess]) -> None:
        """Tell guesses that are others than before, and those that have become certain."""
        sequence = self.sequence
        for guess in guesses:
            if self._told.get(guess.position) != guess.id or not self.canvas.open[guess.position]:
                self._told[guess.position] = guess.id
                event = Provisional(sequence.request.index, guess.position, guess.id, math.exp(guess.logprob), sequence.choice)
                sequence.generation.on_event(event)

    def go_on(self) -> None:
        """Come to the next task, if the answer is not over."""
        if not self.sequence.finished:
            self.task = next(self._tasks)

    def is_over(self) -> bool:
        """Whether nothing more comes; the slot is then given back, with the prompt alone where that was read by itself."""
        sequence = self.sequence
        if not sequence.finished:
            return False
        if not sequence.generation.broken_off:  # else it may be somebody else's by now
            sequence.rollback(sequence.cached - self._prompt)
            sequence.runner.attend_both_ways(sequence.cache_slot, False)
        release([sequence])
        return True
