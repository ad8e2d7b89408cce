"""The engine: takes requests in, starts their strategies, and runs one pass a step for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial

from torch import Tensor, nn

from ...data.errors import UserError
from ..requests.generation import Generation, Stage
from ..requests.request import Request
from ..requests.sequence import TokenSequence, release_finished
from ..requests.strategy import Arrivals, Forward, Strategy
from ..runners.contract import Runner
from ..runners.early_exit import open_first_layers
from ..runners.open import open_runner
from .batch import run_forwards, seen_before, trace_pass
from .budget import Budget
from .pace import Pace
from .prefix_cache import PrefixCache
from .reading import PromptReading, asks_to_read, goes_by_parts, read_first
from .scheduler import MAX_NEW_POSITIONS, Scheduler

MAX_ROWS = 64  # answers that grow at the same time; the others wait


class Engine:
    """Runs strategies, generators over the sequences they own, side by side: one pass of the runner a step for all.

    Sequences of further models (a draft, an amateur) run in a pass of their own in the same step. A UserError in a strategy ends the request
    that it serves; a strategy that serves several tells its requests apart itself. Any other error is a defect and ends all, unless
    `on_defect` is there to be told of it: then it ends the requests of the strategy, or of the pass, that it came from.
    """

    def __init__(
        self,
        runner: Runner,
        max_rows: int = MAX_ROWS,
        prefix_cache: PrefixCache | None = None,
        budget: Budget | None = None,
        pace: Pace | None = None,
    ):
        """At most `max_rows` sequences of the runner grow at a time, but for a single request that needs more, within the `budget` of memory.

        `pace` says how much of waiting prompts goes into a pass.
        """
        self.runner = runner
        self.prefix_cache = prefix_cache
        self.scheduler = Scheduler(runner, max_rows, budget, prefix_cache)
        self.pace = pace or Pace(MAX_NEW_POSITIONS, stall=None)
        self.on_defect: Callable[[Exception], None] | None = None
        self._asked: dict[Strategy, Forward] = {}  # the running strategies with the pass that each waits for
        self._serves: dict[Strategy, list[Generation]] = {}  # the requests that each strategy runs for, none of the caller's own
        self._runners: dict[Hashable, Runner] = {id(runner.model): runner}
        self._joined: dict[Hashable, list[TokenSequence]] = {}  # sequences on their way to the strategy of a key
        self._shared: dict[Hashable, Strategy] = {}  # the strategy of each key, which may have ended
        self._begin: dict[Hashable, Callable[[Arrivals], Strategy]] = {}

    def submit(self, generation: Generation) -> None:
        """Queue a request; it comes in as soon as there is room. Raises UserError for one without a strategy, or beyond the budget."""
        request = generation.request
        if request.strategy is None:
            raise UserError(f"request {request.index} has no strategy: give it one when it is made, or start a strategy over its sequence")
        generation.runner = self.runner
        self.scheduler.submit(generation, slots_of(request, self.runner), self)

    def start(self, strategy: Strategy) -> None:
        """Let a strategy over sequences of the caller's take part from the next step on."""
        self._advance(strategy, None)
        if strategy in self._asked:
            for sequence in self._asked[strategy].sequences:
                sequence.generation.runner = self.runner
                self.scheduler.track(sequence.generation)

    def cancel(self, generation: Generation) -> bool:
        """End a request that is not done, its answers by the reason "cancelled"; return whether there was anything to end.

        What it holds comes free at the next step: before its pass, or where it shares a strategy with others, behind it.
        """
        if generation.done:
            return False
        generation.cancel()
        self.scheduler.remove(generation)
        return True

    def step(self) -> bool:
        """Run one pass for all strategies and let each go on; return whether any is left, or a request waits."""
        self._drop_cancelled()
        if self.prefix_cache is not None:
            self.prefix_cache.look(self.runner)  # whoever called may have changed the model since the last step
        self._admit()
        self._begin_shared()
        if not self._asked:
            self._admit(idle=True)
            self._begin_shared()
        if not self._asked:
            self.scheduler.end_step()  # those that were cancelled are over
            return self._going
        streaming = self.scheduler.streaming
        due = self._due(self.pace.room(streaming))
        forwards = list(due.values())
        of_prompts = sum(len(new) for sequence, new in news(forwards) if sequence.generation.stage is Stage.PREFILLING)
        before, began = seen_before(forwards), time.perf_counter()
        try:
            outputs = run_forwards(forwards)
        except Exception as error:
            contained = self._contained(error)
            for strategy in due:
                self._end(strategy, contained)
            return self._going
        seconds = time.perf_counter() - began
        if before:
            trace_pass(forwards, before, seconds)
        self.pace.took(seconds, of_prompts, streaming)
        self.scheduler.prompts_were_run({sequence.generation for sequence in answering(forwards) if sequence.runner is self.runner})
        shared = self._shared.values()
        for strategy, logits in sorted(zip(due, outputs), key=lambda each: each[0] in shared):  # last, for the others may send them sequences
            self._advance(strategy, logits)
        self.scheduler.end_step()
        return self._going

    def close(self) -> None:
        """Drop what is unfinished and give back its memory; a runner that others use as well keeps their sequences."""
        for strategy in self._asked:
            strategy.close()
        self.scheduler.close()
        for those in (self._asked, self._serves, self._joined, self._shared, self._begin):
            those.clear()

    def join(self, key: Hashable, sequence: TokenSequence, begin: Callable[[Arrivals], Strategy]) -> None:
        """Hand a sequence to the strategy that all sequences of a key share; where none runs, `begin` makes one, which asks for its arrivals."""
        self._joined.setdefault(key, []).append(sequence)
        self._begin[key] = begin

    def runner_of(self, model: nn.Module) -> Runner:
        """Return the runner of a model, opened at the first call; raises UserError for a model that has none."""
        if id(model) not in self._runners:
            self._runners[id(model)] = open_runner(model)
        return self._runners[id(model)]

    def first_layers(self, layers: int) -> Runner:
        """Return a runner of the first layers of the engine's model, opened at the first call; raises UserError for an architecture without."""
        if ("first", layers) not in self._runners:
            self._runners["first", layers] = open_first_layers(self.runner, layers)
        return self._runners["first", layers]

    @property
    def _going(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self._asked or self.scheduler.waiting or self.scheduler.aside or any(self._joined.values()))

    def _admit(self, idle: bool = False) -> None:
        """Let waiting requests in while there is room, each with its strategy started or its sequence joined to one that it shares.

        An `idle` engine, whose slots are held by strategies that ended without releasing them, lets the next in all the same.
        """
        room = self.pace.whole(self.scheduler.streaming and not self.scheduler.crowded)
        while (generation := self.scheduler.admit(idle, room)) is not None:
            idle = False
            try:
                strategy = self._begun(generation, room)
            except Exception as error:
                generation.fail(error if isinstance(error, UserError) else self._contained(error))
                continue
            if strategy is not None:
                self._serves[strategy] = [generation]
                self._advance(strategy, None)

    def _begun(self, generation: Generation, room: int) -> Strategy | None:
        """Return the strategy that a request begins with, None where it joined one that it shares; what is longer than the room goes in by parts."""
        generation.by_parts = goes_by_parts(generation.request, self, room)
        if generation.by_parts or asks_to_read(generation.request):
            return read_first(generation, self)
        return generation.request.strategy.start(generation, self)

    def _begin_shared(self) -> None:
        """Start the shared strategies that have sequences and are not running; those that run and are open to others take theirs into the next pass."""
        for key, sequences in list(self._joined.items()):
            asked = self._asked.get(self._shared.get(key))
            if sequences and asked is not None and asked.open:
                asked.take_in(self._arrived(key))
            elif sequences and asked is None:
                self._shared[key] = self._begin[key](partial(self._arrivals, key))
                self._serves[self._shared[key]] = []
                self._advance(self._shared[key], None)

    def _arrivals(self, key: Hashable) -> list[TokenSequence]:
        """Let requests in that have room by now, so that none waits a step for it, and return the sequences that have joined this key."""
        self._admit()
        return self._arrived(key)

    def _arrived(self, key: Hashable) -> list[TokenSequence]:
        """Return the sequences that have joined a running strategy, but for those that were cancelled on their way."""
        arrived, self._joined[key] = self._joined[key], []
        arrived = release_finished(arrived)  # others were cancelled on their way
        served = self._serves[self._shared[key]]
        served[:] = [generation for generation in served if not generation.done] + [sequence.generation for sequence in arrived]
        return arrived

    def _due(self, room: int) -> dict[Strategy, Forward]:
        """Return what goes into the next pass, by strategy: all but parts of prompts for which there is no room, first come first served."""
        due = {}
        for strategy, forward in self._asked.items():
            if forward.partial:
                if room < 1:
                    continue
                room -= forward.cut(room)
            due[strategy] = forward
        return due

    def _advance(self, strategy: Strategy, logits: Tensor | None) -> None:
        """Let a strategy go on to its next pass, with the logits of the last one, [sum(keep), vocab], or begin."""
        try:
            self._asked[strategy] = strategy.send(logits)
        except StopIteration:
            self._end(strategy)
        except Exception as error:
            is_its_own = isinstance(error, UserError) and strategy in self._serves and strategy not in self._shared.values()
            self._end(strategy, error if is_its_own else self._contained(error))

    def _end(self, strategy: Strategy, error: UserError | None = None) -> None:
        """Forget a strategy, end the requests that it ran for by the error, if there is one, and give back what those hold that were broken off."""
        strategy.close()
        self._asked.pop(strategy, None)
        for generation in self._serves.pop(strategy, []):
            if error is not None and not generation.done:
                generation.fail(error)
            if error is not None or generation.cancelled:  # also who was done or cancelled by then: no strategy gives it back any more
                generation.release_all_slots()

    def _contained(self, error: Exception) -> UserError:
        """Tell whoever is to know of a defect, and return what its requests end by; raises it where nobody is."""
        if self.on_defect is None:
            raise error
        self.on_defect(error)
        return error if isinstance(error, UserError) else UserError(f"internal error: {type(error).__name__}: {error}")

    def _drop_cancelled(self) -> None:
        """End the strategies whose requests were all cancelled."""
        for strategy, served in list(self._serves.items()):
            if served and all(generation.cancelled for generation in served):
                self._end(strategy)


def news(forwards: Sequence[Forward]) -> Iterator[tuple[TokenSequence, list[int]]]:
    """Yield the sequences of a pass with what is new of each."""
    for forward in forwards:
        yield from zip(forward.sequences, forward.ids)


def answering(forwards: Sequence[Forward]) -> Iterator[TokenSequence]:
    """Yield the sequences of a pass that ask what follows them: those whose prompt is not in yet do not."""
    for forward in forwards:
        yield from (sequence for sequence, keep in zip(forward.sequences, forward.keep) if keep and not isinstance(sequence, PromptReading))


def slots_of(request: Request, runner: Runner) -> int:
    """Return how many slots of its model's runner a request may come to hold; guidance by the model itself doubles them."""
    guided = request.guidance is not None and request.guidance.runner in (None, runner)
    return request.strategy.width(request) * (2 if guided else 1)
