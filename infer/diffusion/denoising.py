"""From masks to an answer: the passes over a canvas, and what becomes certain in each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..filters.pipeline import Filters
from ..requests.events import Provisional
from ..requests.likelihoods import Place, TokenLogprobs
from ..requests.rng import choose, refuse_nan, uniform
from ..requests.rng import key as noise_key
from ..requests.sequence import release
from ..requests.strategy import Forward, Strategy
from ..requests.trace import ChoiceTrace, DiffusionStep, TraceRecorder
from ..runners.paradigm import Diffusion
from .canvas import Canvas, CanvasSequence, aligned
from .orders import ORIGIN, confidence, surest
from .schedule import arrival, blocks_of, counts, steps_of

DEFAULT_ORDER = "entropy"


def together(strategies: Iterable[Strategy]) -> Strategy:
    """Run several strategies over sequences of one runner in the same passes, each to its own end."""
    asked = [(each, forward) for each in strategies if (forward := next(each, None)) is not None]
    while asked:
        forwards = [forward for _, forward in asked]
        sequences = [sequence for forward in forwards for sequence in forward.sequences]
        whole = Forward(sequences, [ids for forward in forwards for ids in forward.ids], [keep for forward in forwards for keep in forward.keep])
        logits = (yield whole).split([sum(forward.keep) for forward in forwards])
        asked = [(each, forward) for (each, _), own in zip(asked, logits) if (forward := advanced(each, own)) is not None]


def advanced(strategy: Strategy, logits: Tensor) -> Forward | None:
    """The next pass of a strategy, None at its end."""
    try:
        return strategy.send(logits)
    except StopIteration:
        return None


class Guess(NamedTuple):
    """A token for an open position, its log-probability after the filters, and how sure the position is by the order; what a trace saw of it."""

    position: int
    id: int
    logprob: float
    sure: float
    trace: ChoiceTrace | None


class Denoising:
    """An answer on its way from masks to text; `before` is what was read at the position before the canvas, where tokens are read there.

    The noise of every draw comes of the sequence's seed, the position and the step, so no answer depends on its neighbours.
    """

    def __init__(self, sequence: CanvasSequence, diffusion: Diffusion, before: Tensor | None = None):
        self.sequence, self.diffusion, self.before = sequence, diffusion, before
        self.place = sequence.place  # of what was read before
        params = sequence.request.params
        self.order, self.alg_temp = params.alg or DEFAULT_ORDER, params.alg_temp or 0.0
        self.canvas = Canvas.blank(params.max_new_tokens, diffusion.mask_token_id)
        self.step = 0
        self._told: dict[int, int] = {}  # the guesses that were told last

    def passes(self) -> Strategy:
        """Block by block, make positions certain until the answer is over; a block that is done is read once more, as what the next one sees."""
        sequence, runner, params = self.sequence, self.sequence.runner, self.sequence.request.params
        prompt = sequence.cached
        runner.attend_both_ways(sequence.cache_slot, True)
        blocks = blocks_of(params.max_new_tokens, self.diffusion.block_length)
        for block, steps in zip(blocks, steps_of(blocks, params.steps)):
            for due in self._due(block, steps):
                if not sequence.finished:
                    yield from self._pass(block, due)
            if sequence.finished or block is blocks[-1]:
                break
            logits = yield Forward([sequence], [self.canvas.ids[block.start : block.stop]], [self.diffusion.shift])
            sequence.passes += 1
            if self.diffusion.shift:
                self.before, self.place = logits, sequence.place
        if not sequence.generation.broken_off:  # what is given back then lies with others already
            sequence.rollback(sequence.cached - prompt)
            runner.attend_both_ways(sequence.cache_slot, False)
        release([sequence])

    def _due(self, block: range, steps: int) -> list[int | list[int]]:
        """What each pass over a block makes certain: so many positions, or these; none is without."""
        if self.order != ORIGIN:
            return counts(len(block), steps)
        found: dict[int, list[int]] = {}
        for position in block:
            found.setdefault(arrival(uniform(self.sequence.seed, position, "arrival"), steps), []).append(position)
        return [found[step] for step in sorted(found)]

    def _pass(self, block: range, due: int | list[int]) -> Strategy:
        """Run the canvas as far as this block and make certain what is due; when time is up the next token too, which is then the last."""
        sequence, shift = self.sequence, self.diffusion.shift
        late = {sequence.position} if sequence.time_is_up else set()
        positions = self.canvas.open_in(block) if isinstance(due, int) else sorted({*due, *late})
        ids = [*sequence.given, *self.canvas.ids] if sequence.whole else self.canvas.ids[block.start : block.stop]
        count = block.stop - positions[0]  # of the newest positions
        has_earlier = sequence.whole or positions[0] > block.start  # the pass has the position before them
        logits = yield Forward([sequence], [ids], [count + (shift if has_earlier else 0)])
        sequence.passes += 1
        if sequence.finished:
            return
        sequence.rollback(len(ids))
        rows = aligned(logits, count, shift, None if has_earlier else self.before)
        guesses = self._guesses(positions, rows[[position - positions[0] for position in positions]])
        certain = guesses if isinstance(due, list) else self._surest(guesses, due, late)
        for guess in certain:
            known = self._likelihoods(guess, guess.position - positions[0], 0 if has_earlier else shift) if sequence.asks_likelihoods else None
            self.canvas.put(guess.position, guess.id, refuse_nan(guess.logprob), known)
        self._tell(guesses, certain)

    def _guesses(self, positions: list[int], logits: Tensor) -> list[Guess]:
        """Choose a token for each of these positions by its logits, [n, vocab]; never the mask."""
        sequence, params, self.step = self.sequence, self.sequence.request.params, self.step + 1
        logits = logits.index_fill(1, torch.tensor([self.diffusion.mask_token_id], device=logits.device), -torch.inf)
        rows = [sequence] * len(positions)
        recorder = TraceRecorder.of(rows, logits)
        scores = Filters(rows)(logits, recorder)
        keys = [noise_key(sequence.seed, position, f"canvas {self.step}") if params.samples else None for position in positions]
        ids, logprobs = choose(scores, keys)
        sure = logprobs.exp() if self.order == ORIGIN else confidence(self.order, scores, ids)
        traces = [None] * len(rows) if recorder is None else recorder.choices(scores, ids.tolist())
        return list(map(Guess, positions, ids.tolist(), logprobs.tolist(), sure.tolist(), traces))

    def _surest(self, guesses: list[Guess], count: int, late: set[int]) -> list[Guess]:
        """The surest of the guesses, and one that is late anyway, in the order of their positions."""
        noise = [uniform(self.sequence.seed, guess.position, f"order {self.step}") for guess in guesses] if self.alg_temp else ()
        places = surest(torch.tensor([guess.sure for guess in guesses], dtype=torch.float64), count, self.alg_temp, noise)
        return [guess for place, guess in enumerate(guesses) if place in places or guess.position in late]

    def _likelihoods(self, guess: Guess, row: int, earlier: int) -> TokenLogprobs:
        """What the model alone thinks of a guess, of the pass' canvas rows the one of this number; with `earlier`, the first was read before."""
        place = self.place if row < earlier else Place(self.sequence.place.likelihoods, self.sequence.place.row + row - earlier)
        return place.likelihoods.at(place.row, guess.id, self.sequence.request.params.logprobs, self.sequence.request.tokenizer)

    def _tell(self, guesses: list[Guess], certain: list[Guess]) -> None:
        """Trace the step, publish what is certain up to the first open position, and tell what is certain beyond it, and new guesses."""
        sequence, canvas, generation = self.sequence, self.canvas, self.sequence.generation
        if sequence.request.traced:
            for guess in certain:
                generation.trace(guess.trace, guess.position, sequence.choice)
            committed = tuple((guess.position, guess.id, guess.sure) for guess in certain)
            shown = tuple(None if is_open else id for id, is_open in zip(canvas.ids, canvas.open))
            generation.trace(DiffusionStep(self.step, committed, shown, sequence.passes), sequence.position, sequence.choice)
        sequence.fill(canvas)
        sequence.publish()
        for guess in guesses:
            told = self._told.get(guess.position) == guess.id and canvas.open[guess.position]
            if not sequence.finished and guess.position >= sequence.position and not told:
                self._told[guess.position] = guess.id
                generation.on_event(Provisional(sequence.request.index, guess.position, guess.id, math.exp(guess.logprob), sequence.choice))
