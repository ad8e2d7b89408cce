"""Merges the forward passes of all live strategies into one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...data.errors import UserError
from ..kernels.device import precise
from ..requests.request import Request, Row
from ..requests.strategy import Forward, Strategy
from ..requests.trace import Pass
from ..runners.early_exit import open_first_layers
from ..runners.open import open_runner
from ..strategies.registry import choose
from ..strategies.sampling import sampling
from .prefix_cache import PrefixCache

MAX_ROWS = 64  # answers that grow at the same time; the others wait
MAX_NEW_POSITIONS = 16_384  # prompts join a pass until it has this many positions: bounds the memory of activations


class Engine:
    """Runs strategies, generators over the rows they own, side by side: one pass of the runner a step for all.

    Rows of further models (a draft, an amateur) run in a pass of their own in the same step. A UserError in a strategy ends the request that the
    strategy serves; one that serves several tells its requests apart itself. Any other error is a defect and ends all.
    """

    def __init__(self, runner, max_rows: int = MAX_ROWS, memory: PrefixCache | None = None):
        self.runner = runner
        self.max_rows = max_rows
        self.memory = memory
        self.waiting: deque[Request] = deque()
        self._begun: list[Request] = []  # let in, and not done yet
        self._asked: dict[Strategy, Forward] = {}
        self._serves: dict[Strategy, Request] = {}  # of strategies that are one request's
        self._sampling: Strategy | None = None
        self._to_sample: deque[Request] = deque()
        self._unread: dict[Request, int] = {}  # let in, their prompts not run yet: how many rows they will still open
        self._opening = 0  # rows that those whose prompts were just run may open now
        self._runners: dict[Hashable, Any] = {id(runner.model): runner}
        self._joining: dict[Hashable, list[Row]] = {}  # rows on their way to a strategy that serves several requests
        self._shared: dict[Hashable, Strategy] = {}
        self._begin: dict[Hashable, Callable[[list[Row]], Strategy]] = {}

    def submit(self, request: Request) -> None:
        """Queue a request; it joins as soon as there is room."""
        self.waiting.append(request)

    def start(self, strategy: Strategy) -> None:
        """Let a strategy take part from the next step on."""
        self._advance(strategy, None)

    def join(self, key: Hashable, row: Row, begin: Callable[[list[Row]], Strategy]) -> None:
        """Let a row into the strategy that all rows of a key share; `begin` starts it on the list of those that wait, which it empties."""
        self._joining.setdefault(key, []).append(row)
        self._begin[key] = begin

    def runner_of(self, model: nn.Module):
        """Return the runner of a model, opened at the first call."""
        if id(model) not in self._runners:
            self._runners[id(model)] = open_runner(model)
        return self._runners[id(model)]

    def first_layers(self, layers: int):
        """Return a runner of the first layers of the engine's model, opened at the first call."""
        if ("first", layers) not in self._runners:
            self._runners["first", layers] = open_first_layers(self.runner, layers)
        return self._runners["first", layers]

    def step(self) -> bool:
        """Run one pass for all live strategies and let each go on; return whether any is left."""
        self._admit()
        if not self._asked:
            return bool(self.waiting)
        asked = list(self._asked.items())
        forwards = [forward for _, forward in asked]
        before = {row: row.seen for forward in forwards for row in forward.rows if row.request.traced}
        read = {row.request for forward in forwards for row in forward.rows} if self._unread else ()
        self._opening = sum(self._unread.pop(request, 0) for request in read)
        began = time.perf_counter()
        answers = self._run(forwards)
        if before:
            tell(forwards, before, time.perf_counter() - began)
        for (strategy, _), logits in zip(asked, answers):
            self._advance(strategy, logits)
        self._opening = 0
        self._begun = [request for request in self._begun if request.places or not request.done]
        return bool(self._asked or self.waiting or any(self._joining.values()))

    def close(self) -> None:
        """Drop what is unfinished and give back its memory; a runner that others use as well keeps their rows."""
        holding = self._holding
        for strategy in self._asked:
            strategy.close()
        for request in holding:
            request.give_back_all()
        self._begun.clear()
        self._asked.clear()
        self._serves.clear()
        self.waiting.clear()
        self._to_sample.clear()
        self._unread.clear()
        self._opening = 0
        self._joining.clear()

    @property
    def _holding(self) -> list[Request]:
        """The requests that may hold rows: those that were let in, and those of strategies that a caller started."""
        return list(dict.fromkeys([*self._begun, *(row.request for forward in self._asked.values() for row in forward.rows)]))

    def _admit(self) -> None:
        """Let waiting requests in, and start the sampling strategy where it is needed and not running."""
        self._let_in()
        if self._to_sample and self._sampling not in self._asked:
            self._sampling = sampling(self._arrivals)
            self.start(self._sampling)
        for key, rows in self._joining.items():
            if rows and self._shared.get(key) not in self._asked:
                self._shared[key] = self._begin[key](rows)
                self.start(self._shared[key])

    def _let_in(self) -> None:
        """Let waiting requests in while there is room for their rows; one that is wider than the room comes in alone."""
        while self.waiting:
            request = self.waiting[0]
            kind = choose(request.params)
            width = kind.width(request)
            held = sum(runner is self.runner for request in self._holding for runner, _ in request.places)
            taken = held + sum(self._unread.values()) + self._opening
            positions = sum(len(other.source_ids or other.prompt_ids) for other in (*self._unread, request))
            if taken and taken + width > self.max_rows or self._unread and positions > MAX_NEW_POSITIONS:
                return
            self._begun.append(self.waiting.popleft())
            request.started = time.monotonic()
            if kind.start is None:
                self._to_sample.append(request)  # its row is opened when the sampling strategy goes on
                self._unread[request] = width
            else:
                with request.contained():
                    strategy = kind.start(request, self)
                    if strategy is not None:
                        self._serves[strategy] = request
                        self.start(strategy)
                if request.error is None:
                    self._unread[request] = width - 1

    def _arrivals(self) -> list[Row]:
        """Open the first row of each request that is let in to be sampled."""
        self._let_in()
        arrived = []
        while self._to_sample:
            request = self._to_sample.popleft()
            del self._unread[request]
            with request.contained():
                arrived.append(Row.open(request, self.runner))
                self._unread[request] = request.width - 1
        return arrived

    def _advance(self, strategy: Strategy, logits: Tensor | None) -> None:
        try:
            self._asked[strategy] = strategy.send(logits)
        except (StopIteration, UserError) as end:
            self._asked.pop(strategy, None)
            request = self._serves.pop(strategy, None)
            if isinstance(end, UserError):
                if request is None:
                    raise
                request.fail(end)

    def _run(self, forwards: Sequence[Forward]) -> list[Tensor]:
        """Run one pass a runner and return each forward's logits; companions run along and are combined."""
        batches: dict[int, Batch] = {}
        parts = [self._lay(forward, batches) for forward in forwards]
        for batch in batches.values():
            batch.run()
        return [answer(forward, batches, own) for forward, own in zip(forwards, parts)]

    def _lay(self, forward: Forward, batches: dict[int, Batch]) -> list[tuple[Row, int, int | None]]:
        """Put a forward's rows, and their companions, into the batches of their runners; return where each was put."""
        places = []
        for row, new, keep in zip(forward.rows, forward.ids, forward.keep):
            batch = batch_of(row, batches)
            at = batch.add(row, new, keep)
            batch.layers.update(forward.layers)
            other = None
            if row.companion is not None:
                other = batch_of(row.companion, batches).add(row.companion, beside(row, new), keep)
            advance(row, len(new))
            places.append((row, at, other))
        return places


def tell(forwards: Sequence[Forward], before: dict[Row, int], seconds: float) -> None:
    """Tell the requests that are traced what a pass cost; `before` says how much their rows had seen until then."""
    of_all = sum(len(ids) for forward in forwards for ids in forward.ids)
    for request in dict.fromkeys(row.request for row in before):
        own = [row for row in before if row.request is request]
        new = sum(row.seen - before[row] for row in own)
        request.note(Pass(seconds, new, of_all, sum(row.seen for row in own), not all(before[row] for row in own)), own[0].position)


def beside(row: Row, new: list[int]) -> list[int]:
    """Return what the row's companion has to be shown when the row is shown `new`: its own prompt first, then the same."""
    prompt = len(row.unseen) - row.position if row.seen < len(row.request.prompt_ids) else 0
    ids = row.companion.ids[row.companion.seen :] + new[prompt:]
    row.companion.ids += new[prompt:]
    row.companion.seen = len(row.companion.ids)
    return ids


def advance(row: Row, count: int) -> None:
    """Count what the row is shown, the hidden positions of its prompt with it."""
    if row.seen < len(row.request.prompt_ids):
        row.seen += len(row.request.hidden)
    row.seen += count


class Batch:
    """The rows of one runner that go through a pass together, and what came of them."""

    def __init__(self, runner):
        self.runner = runner
        self.rows: list[int] = []
        self.ids: list[list[int]] = []
        self.keep: list[int] = []
        self.layers: set[int] = set()

    def add(self, row: Row, new: list[int], keep: int) -> int:
        self.rows.append(row.slot)
        self.ids.append(new)
        self.keep.append(keep)
        return len(self.rows) - 1

    def run(self) -> None:
        if self.layers:
            logits, states = self.runner.observe(self.rows, self.ids, self.keep, sorted(self.layers))
            counts = [len(new) for new in self.ids]
            self.states = {layer: precise(state).split(counts) for layer, state in states.items()}
        else:
            logits = self.runner.forward(self.rows, self.ids, self.keep)
        self.whole = precise(logits)
        self._parts: tuple[Tensor, ...] | None = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The logits of each row."""
        if self._parts is None:
            self._parts = self.whole.split(self.keep)
        return self._parts


def batch_of(row: Row, batches: dict[int, Batch]) -> Batch:
    """Return the batch that the row's runner has in this step."""
    if id(row.runner) not in batches:
        batches[id(row.runner)] = Batch(row.runner)
    return batches[id(row.runner)]


def answer(forward: Forward, batches: dict[int, Batch], places: list[tuple[Row, int, int | None]]) -> Tensor:
    """Gather a forward's logits, [sum(keep), vocab], and hand it its hidden states."""
    batch = batches[id(forward.rows[0].runner)]
    if forward.layers:
        forward.states = {layer: torch.cat([batch.states[layer][at] for _, at, _ in places]) for layer in forward.layers}
    if all(other is None for *_, other in places):
        first, last = places[0][1], places[-1][1] + 1  # a forward's rows stand together
        begin = sum(batch.keep[:first])
        return batch.whole[begin : begin + sum(batch.keep[first:last])]
    return torch.cat([combined(row, batch.parts[at], batches, other) for row, at, other in places])


def combined(row: Row, logits: Tensor, batches: dict[int, Batch], other: int | None) -> Tensor:
    """The row's logits, changed by its companion's where it has one."""
    if other is None:
        return logits
    companion = batches[id(row.companion.runner)].parts[other]
    return row.request.companion[2](logits, companion)
