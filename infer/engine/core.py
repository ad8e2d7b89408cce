"""The engine: takes requests in, starts their strategies, and runs one pass a step for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from functools import partial

from torch import Tensor, nn

from ...data.errors import UserError
from ..requests.generation import Generation
from ..requests.request import Request
from ..requests.sequence import TokenSequence
from ..requests.strategy import Arrivals, Forward, Strategy
from ..runners.contract import Runner
from ..runners.early_exit import open_first_layers
from ..runners.open import open_runner
from .batch import run_forwards, seen_before, trace_pass
from .prefix_cache import PrefixCache
from .reading import asks_to_read, read_given
from .scheduler import Scheduler

MAX_ROWS = 64  # answers that grow at the same time; the others wait


class Engine:
    """Runs strategies, generators over the sequences they own, side by side: one pass of the runner a step for all.

    Sequences of further models (a draft, an amateur) run in a pass of their own in the same step. A UserError in a strategy ends the request
    that it serves; a strategy that serves several tells its requests apart itself. Any other error is a defect and ends all.
    """

    def __init__(self, runner: Runner, max_rows: int = MAX_ROWS, prefix_cache: PrefixCache | None = None):
        """At most `max_rows` sequences of the runner grow at a time, but for a single request that needs more."""
        self.runner = runner
        self.prefix_cache = prefix_cache
        self.scheduler = Scheduler(runner, max_rows)
        self._asked: dict[Strategy, Forward] = {}  # the running strategies with the pass that each waits for
        self._serves: dict[Strategy, Generation] = {}  # of strategies that are one request's
        self._runners: dict[Hashable, Runner] = {id(runner.model): runner}
        self._joined: dict[Hashable, list[TokenSequence]] = {}  # sequences on their way to the strategy of a key
        self._shared: dict[Hashable, Strategy] = {}  # the strategy of each key, which may have ended
        self._begin: dict[Hashable, Callable[[Arrivals], Strategy]] = {}

    def submit(self, generation: Generation) -> None:
        """Queue a request; it comes in as soon as there is room. Raises UserError for one without a strategy."""
        request = generation.request
        if request.strategy is None:
            raise UserError(f"request {request.index} has no strategy: give it one when it is made, or start a strategy over its sequence")
        self.scheduler.submit(generation, slots_of(request, self.runner))

    def start(self, strategy: Strategy) -> None:
        """Let a strategy over sequences of the caller's take part from the next step on."""
        self._advance(strategy, None)
        if strategy in self._asked:
            for sequence in self._asked[strategy].sequences:
                self.scheduler.track(sequence.generation)

    def step(self) -> bool:
        """Run one pass for all strategies and let each go on; return whether any is left, or a request waits."""
        if self.prefix_cache is not None:
            self.prefix_cache.look(self.runner)  # whoever called may have changed the model since the last step
        self._admit()
        self._begin_shared()
        if not self._asked:
            self._admit(idle=True)
            self._begin_shared()
        if not self._asked:
            return bool(self.scheduler.waiting)
        strategies, forwards = list(self._asked), list(self._asked.values())
        before, began = seen_before(forwards), time.perf_counter()
        outputs = run_forwards(forwards)
        if before:
            trace_pass(forwards, before, time.perf_counter() - began)
        sequences = [sequence for forward in forwards for sequence in forward.sequences]
        self.scheduler.prompts_were_run({sequence.generation for sequence in sequences if sequence.runner is self.runner})
        for strategy, logits in zip(strategies, outputs):
            self._advance(strategy, logits)
        self.scheduler.end_step()
        return bool(self._asked or self.scheduler.waiting or any(self._joined.values()))

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

    def _admit(self, idle: bool = False) -> None:
        """Let waiting requests in while there is room, each with its strategy started or its sequence joined to one that it shares.

        An `idle` engine, whose slots are held by strategies that ended without releasing them, lets the next in all the same.
        """
        while (generation := self.scheduler.admit(idle)) is not None:
            idle = False
            with generation.contained():
                if asks_to_read(generation.request):
                    read_given(generation, self.runner)
                strategy = generation.request.strategy.start(generation, self)
                if strategy is not None:
                    self._serves[strategy] = generation
                    self._advance(strategy, None)

    def _begin_shared(self) -> None:
        """Start the shared strategies that have sequences and are not running."""
        for key, sequences in list(self._joined.items()):
            if sequences and self._shared.get(key) not in self._asked:
                self._shared[key] = self._begin[key](partial(self._arrivals, key))
                self._advance(self._shared[key], None)

    def _arrivals(self, key: Hashable) -> list[TokenSequence]:
        """Let requests in that have room by now, so that none waits a step for it, and return the sequences that have joined this key."""
        self._admit()
        arrived, self._joined[key] = self._joined[key], []
        return arrived

    def _advance(self, strategy: Strategy, logits: Tensor | None) -> None:
        """Let a strategy go on to its next pass, with the logits of the last one, [sum(keep), vocab], or begin."""
        try:
            self._asked[strategy] = strategy.send(logits)
        except (StopIteration, UserError) as end:
            self._asked.pop(strategy, None)
            generation = self._serves.pop(strategy, None)
            if isinstance(end, UserError):
                if generation is None:
                    raise
                generation.fail(end)


def slots_of(request: Request, runner: Runner) -> int:
    """Return how many slots of its model's runner a request may come to hold; guidance by the model itself doubles them."""
    guided = request.guidance is not None and request.guidance.runner in (None, runner)
    return request.strategy.width(request) * (2 if guided else 1)
