"""From masks to answers: the passes over the canvases of all requests, and what becomes certain in each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from ..constraints.candidates import Candidates
from ..filters.pipeline import Filters
from ..requests.events import Provisional
from ..requests.likelihoods import Place, TokenLogprobs, said
from ..requests.rng import choose, refuse_nan, uniform
from ..requests.rng import key as noise_key
from ..requests.sequence import release
from ..requests.strategy import Arrivals, Forward, Strategy
from ..requests.trace import ChoiceTrace, DiffusionStep, TraceRecorder
from ..runners.paradigm import diffusion_of
from .canvas import Canvas, CanvasPosition, CanvasSequence, aligned
from .commit import Guess, due
from .hooks import Hooks
from .kept import Kept
from .orders import ENTROPY, OF_THE_MODEL, RANDOM, confidences
from .plan import Plan

MAX_POSITIONS = 16_384  # a pass: bounds the memory of activations
MAX_LOGITS = 100_000_000  # a pass, of all rows: 400 MB of float32
MAX_CHOSEN = 16_000_000  # scores that tokens are chosen by at a time: 64 MB of float32
T = TypeVar("T")


def denoised(arrivals: Arrivals) -> Strategy:
    """Fill in all canvases, a pass of each at a time, until none is left; `arrivals` is asked for more before each pass.

    Those that a pass has no room for come first in the next. Sequences are filtered together, each by its own settings. The noise of every draw comes of the sequence's seed, the position and the step.
    """
    live: list[Denoising] = []
    while True:
        live += [each for each in map(Denoising, arrivals()) if not each.is_over()]
        if not live:
            return
        running, waiting = that_fit(live, [(each.size, each.rows * each.sequence.runner.vocab_size) for each in live])
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


def that_fit(live: list[T], sizes: Iterable[tuple[int, int]]) -> tuple[list[T], list[T]]:
    """Those that go through the next pass, the first and as many as it has room for, and the others; `sizes` are how many positions and logits each has."""
    positions, logits = zip(*sizes)
    count = sum(p <= MAX_POSITIONS and n <= MAX_LOGITS for p, n in zip(accumulate(positions), accumulate(logits)))
    return live[: max(count, 1)], live[max(count, 1) :]


def guessed(asking: Sequence[tuple[Denoising, Tensor]]) -> list[tuple[Denoising, list[Guess]]]:
    """Choose a token for each position that is asked for by its logits, [n, vocab] an answer, never the mask; a request whose filters fail has ended.

    So many positions at a time: filters and orders keep several copies of what they work on.
    """
    if not asking:
        return []
    places = [(each, position) for each, _ in asking for position in each.positions]
    logits = torch.cat([each.hooked(part) for each, part in asking])
    rows = max(MAX_CHOSEN // logits.shape[1], 1)
    found = iter([guess for at in range(0, len(places), rows) for guess in chosen(places[at : at + rows], logits[at : at + rows])])
    return [(each, [next(found) for _ in range(len(part))]) for each, part in asking]


def chosen(places: Sequence[tuple[Denoising, int]], logits: Tensor) -> Iterable[Guess]:
    """A guess for each position of some answers by its logits, [n, vocab]."""
    owners, positions = zip(*places)
    sequences = [CanvasPosition(each.sequence, position) for each, position in places]
    logits = logits.index_fill(1, torch.tensor([owners[0].mask], device=logits.device), -torch.inf)
    recorder = TraceRecorder.of(sequences, logits)
    scores, errors = Filters(sequences).each(logits, recorder)
    for row, error in errors.items():
        sequences[row].generation.fail(error)
    ids, logprobs = choose(scores, [each.key_of(position) for each, position in places])
    sure = confidences([each.plan.order for each in owners], logits, scores, ids)
    certain = confidences([each.bounding for each in owners], logits, scores, ids)
    traces = [None] * len(owners) if recorder is None else recorder.choices(scores, ids.tolist())
    return map(Denoising.guess, owners, positions, ids.tolist(), logprobs.tolist(), sure, certain, traces)


class Denoising:
    """An answer on its way from masks to text: its canvas, what its next pass is for (`task`), and which positions that asks for."""

    def __init__(self, sequence: CanvasSequence):
        self.sequence, self.diffusion = sequence, diffusion_of(sequence.runner.model.config)
        params = sequence.request.params
        self.mask, self.bound = self.diffusion.mask_token_id, params.entropy_bound
        self.canvas = Canvas.blank(params.max_new_tokens, self.mask)
        for position, id in sequence.request.pinned.items():
            self.canvas.pin(position, id, self._certainty(id))
        self.candidates = next((each for each in sequence.constraints if isinstance(each, Candidates)), None)
        self.plan = Plan(sequence, self.canvas, self.diffusion.block_length)
        self.hooks = Hooks(sequence, self.canvas, self.mask)
        self.before, self.step, self.positions, self._late = sequence.before, 0, [], False
        self.kept = Kept(sequence, len(self.canvas.ids), self.diffusion.shift) if sequence.whole else None
        self._unread = [] if sequence.whole else sequence.unseen  # of the prompt: it goes with the first pass, looking back
        self._prompt, self._told = sequence.cached + len(self._unread), {}  # how long it is in the cache; the guesses that were told last
        self._remasked: list[int] = []  # since the last step
        self._is_full = True  # the newest pass, where some are not
        sequence.attend_both_ways(True, len(self._unread))
        self._tasks = self.plan.tasks()
        with sequence.generation.contained():
            self._publish([], {**sequence.request.pinned, **self._pinned(None), **self._decided()})
        self.go_on()

    @property
    def window(self) -> range:
        """The positions that its next pass reads, counted from the first of the canvas: those of the prompt are below 0."""
        if self.kept is not None:
            return self.kept.window(self.task.block)
        own = self.plan.window or self.task.block
        return range(-len(self._unread), own.stop) if self._unread else own

    @property
    def rows(self) -> int:
        """How many positions of the canvas its next pass has."""
        return self.window.stop - max(self.window.start, 0)

    @property
    def size(self) -> int:
        """How many positions its next pass has."""
        return len(self.window) if self.sequence.guidance is None else 2 * len(self.window)

    @property
    def bounding(self) -> str | None:
        """The order by which a bound knows entropies, where that is not the answer's own."""
        return None if self.bound is None or self.plan.order == ENTROPY else ENTROPY

    def key_of(self, position: int) -> int | None:
        """What the noise of a position's ids hangs on in this step; None where the likeliest is taken."""
        sequence = self.sequence
        return noise_key(sequence.seed, position, f"canvas {self.step}") if sequence.request.params.samples else None

    def ask(self) -> tuple[list[int], int]:
        """The ids of the next pass, and of how many of the newest it wants the logits; where time is up, it asks for the next token at least."""
        (block, wanted, _), sequence, shift = self.task, self.sequence, self.diffusion.shift
        self._window, row, begin = self.window, self._unread + self.canvas.ids, len(self._unread)
        if self.kept is not None:
            self._is_full, row, begin = self.kept.is_full(block), sequence.given + row, self.kept.prompt
            self.kept.prepare(block)
        ids = row[begin + self._window.start : begin + self._window.stop]
        if wanted is None:
            self.positions = []
            return ids, sequence.least_kept(shift)
        self.step, self._late = self.step + 1, sequence.time_is_up
        self.positions = sorted({*wanted, sequence.position} if self._late else wanted) if isinstance(wanted, list) else self.plan.wanted(block)
        return ids, (self._window.stop if self._unread else self._count) + (shift if self._has_earlier else 0)

    @property
    def _count(self) -> int:
        """How many newest positions there are from the first that is asked for."""
        return self._window.stop - self.positions[0]

    @property
    def _has_earlier(self) -> bool:
        """Whether the pass has the position before those, where the first is read under a shift."""
        return self.positions[0] > self._window.start

    def read(self, logits: Tensor) -> Tensor:
        """Take the canvas out of the cache, but for what is to stay, and return the logits of the positions asked for, [n, vocab]."""
        sequence, shift = self.sequence, self.diffusion.shift
        sequence.passes += 1
        if self.task.due is None:
            if shift:
                self.before = logits, sequence.place
            self._unread = []
            return logits[:0]
        if self._unread:
            logits = self._behind_the_prompt(logits)
        if self.kept is None:
            sequence.rollback(sequence.cached - self._prompt - max(self._window.start, 0))
        else:
            self.kept.leave()
        rows = aligned(logits, self._count, shift, None if self._has_earlier or not shift else self.before[0])
        return rows[[position - self.positions[0] for position in self.positions]]

    def _behind_the_prompt(self, logits: Tensor) -> Tensor:
        """Keep what the first pass says at the end of the prompt that it brought, and return the logits of all passes, those from the first position asked for on."""
        sequence, first = self.sequence, self.positions[0]
        if self.diffusion.shift:
            self.before = logits[:1].clone(), sequence.place
        if sequence.place is not None:
            sequence.place = Place(sequence.place.likelihoods, sequence.place.row + first)
        self._unread = []
        return logits[first:]

    def hooked(self, logits: Tensor) -> Tensor:
        """What the request's hook makes of the logits, [n, vocab]; one that fails ends the request, and changes nothing."""
        with self.sequence.generation.contained():
            return self.hooks.logits(self.step, self.positions, logits)
        return logits

    def guess(self, position: int, id: int, logprob: float, sure: float, certain: float, trace: ChoiceTrace | None) -> Guess:
        """A token with how sure it is; `certain` is the negative entropy, where the order does not say it."""
        if self.plan.order == RANDOM:
            sure = uniform(self.sequence.seed, position, f"random {self.step}")
        chance = sure if self.plan.order in OF_THE_MODEL else math.exp(logprob)
        entropy = -sure if self.plan.order == ENTROPY else -certain
        return Guess(position, id, logprob, sure, chance, entropy, trace)

    def take(self, guesses: list[Guess]) -> None:
        """Make certain what is due, publish what is certain up to the first open position, and tell what is beyond it, and new guesses.

        Raises UserError where the model's scores are no numbers, and where a function of the caller's fails.
        """
        sequence, canvas = self.sequence, self.canvas
        if sequence.finished:
            return
        certain = self._agreeing(guesses if isinstance(self.task.due, list) else self._surest(guesses, self.task.due))
        for guess in certain:
            canvas.put(guess.position, guess.id, refuse_nan(guess.logprob), self._likelihoods(guess) if sequence.asks_likelihoods else None)
        self._reopen(self.task.remask)
        pinned = self._pinned(self.step) | self._decided()
        if sequence.request.traced or sequence.request.include_steps:
            self._trace([guess for guess in certain if guess.position not in pinned], pinned, guesses)
        self._remasked.clear()
        self._publish(guesses, pinned)

    def _publish(self, guesses: Iterable[Guess], pinned: dict[int, int]) -> None:
        """Publish what is certain up to the first open position, and tell of what is beyond it what is new."""
        sequence = self.sequence
        sequence.fill(self.canvas)
        sequence.publish()
        if not sequence.finished:
            told = {guess.position: (guess.id, math.exp(guess.logprob)) for guess in guesses} | {position: (id, 1.0) for position, id in pinned.items()}
            self._tell({position: each for position, each in told.items() if position >= sequence.position})

    def _surest(self, guesses: list[Guess], count: int) -> list[Guess]:
        """The guesses that are due, in the order of their positions; where time is up, the first of them too."""
        sequence = self.sequence
        noise = [uniform(sequence.seed, guess.position, f"order {self.step}") for guess in guesses] if sequence.request.params.alg_temp else ()
        places = {*due(guesses, count, sequence.request.params, sequence.request.ends, noise)} | ({0} if self._late else set())
        return [guesses[place] for place in sorted(places)]

    def _agreeing(self, guesses: list[Guess]) -> list[Guess]:
        """Those of the guesses, surest first, that one of the texts that the answer may be has together; the others stay open, to be asked for again."""
        if self.candidates is None:
            return guesses
        kept = []
        for guess in sorted(guesses, key=lambda each: -each.sure):
            if not kept or guess.id in self.candidates.at(guess.position):
                self.candidates.add(guess.position, guess.id)
                kept.append(guess)
        return sorted(kept, key=lambda each: each.position)

    def _decided(self) -> dict[int, int]:
        """Put the tokens that all texts have which the answer may still be, and return them by position."""
        if self.candidates is None:
            return {}
        certain = zip(self.canvas.all, self.canvas.ids, self.canvas.open)
        self.candidates.see({position: id for position, id, is_open in certain if not is_open})
        found = self.candidates.decided(self.canvas.open_in(self.canvas.all))
        for position, id in found.items():
            self.canvas.put(position, id, 0.0, self._certainty(id))
        return found

    def _reopen(self, positions: Iterable[int]) -> None:
        """Make certain positions masks again."""
        for position in positions:
            self.canvas.reopen(position, self.mask)
            self._remasked.append(position)

    def _pinned(self, step: int | None) -> dict[int, int]:
        """Put the tokens that the caller's hook puts, and return them by position."""
        new = self.hooks.tokens(step)
        for position, id in new.items():
            self.canvas.pin(position, id, self._certainty(id))
        return new

    def _certainty(self, id: int) -> TokenLogprobs | None:
        """What is told, where it is asked, of how likely a token is that no pass has chosen."""
        return TokenLogprobs(id, 0.0, *said(self.sequence.request.tokenizer, id)) if self.sequence.asks_likelihoods else None

    def _likelihoods(self, guess: Guess) -> TokenLogprobs:
        """What the model alone thinks of a guess, by the row of the pass that its position was read in."""
        sequence, row = self.sequence, guess.position - self.positions[0]
        if self.diffusion.shift and not self._has_earlier:
            row -= 1
        place = self.before[1] if row < 0 else Place(sequence.place.likelihoods, sequence.place.row + row)
        return place.likelihoods.at(place.row, guess.id, sequence.request.params.logprobs, sequence.request.tokenizer)

    def _trace(self, certain: list[Guess], pinned: dict[int, int], guesses: list[Guess]) -> None:
        sequence, generation = self.sequence, self.sequence.generation
        for guess in certain:
            generation.trace(guess.trace, guess.position, sequence.choice)
        found = sorted([(guess.position, guess.id, guess.sure, guess.logprob) for guess in certain] + [(*each, 1.0, 0.0) for each in pinned.items()])
        committed, logprobs = tuple(each[:3] for each in found), tuple(each[3] for each in found)
        remasked, news = tuple(self._remasked), self._news(guesses)
        step = DiffusionStep(self.step, committed, self.canvas.shown, sequence.passes, logprobs, remasked, news, not self._is_full)
        generation.tell(step, sequence.position, sequence.choice)

    def _news(self, guesses: list[Guess]) -> tuple[tuple[int, int, float], ...]:
        """The guesses of open positions that are others than were told before; any is, of a position that is open again."""
        for position in self._remasked:
            self._told.pop(position, None)
        news = [guess for guess in guesses if self.canvas.open[guess.position] and self._told.get(guess.position) != guess.id]
        return tuple((guess.position, guess.id, guess.logprob) for guess in news)

    def _tell(self, guesses: dict[int, tuple[int, float]]) -> None:
        """Tell guesses, ids with their probabilities, that are others than before, and those that have become certain."""
        sequence = self.sequence
        for position, (id, probability) in guesses.items():
            if self._told.get(position) != id or not self.canvas.open[position]:
                self._told[position] = id
                sequence.generation.on_event(Provisional(sequence.request.index, position, id, probability, sequence.choice))

    def go_on(self) -> None:
        """Come to the next task that needs a pass, if the answer is not over."""
        while not self.sequence.finished:
            self.task = next(self._tasks)
            if self.task.due != []:
                return
            self._reopen(self.task.remask)

    def is_over(self) -> bool:
        """Whether nothing more comes; the slot is then given back, with the prompt alone where that was read by itself."""
        sequence = self.sequence
        if not sequence.finished:
            return False
        if not sequence.generation.broken_off:  # else it may be somebody else's by now
            sequence.rollback(max(sequence.cached - self._prompt, 0))  # nothing was read where all was decided before the first pass
            sequence.attend_both_ways(False)
        release([sequence])
        return True
