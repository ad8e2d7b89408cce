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
from ..requests.request import Request, TokenSequence
from ..requests.strategy import Forward, Strategy
from ..requests.trace import PassTrace
from ..runners.early_exit import open_first_layers
from ..runners.open import open_runner
from ..strategies.registry import choose
from ..strategies.sampling import sampling
from .prefix_cache import PrefixCache

MAX_ROWS = 64  # answers that grow at the same time; the others wait
MAX_NEW_POSITIONS = 16_384  # prompts join a pass until it has this many positions: bounds the memory of activations


class Engine:
    """Runs strategies, generators over the sequences they own, side by side: one pass of the runner a step for all.

    Rows of further models (a draft, an amateur) run in a pass of their own in the same step. A UserError in a strategy ends the request that the
    strategy serves; one that serves several tells its requests apart itself. Any other error is a defect and ends all.
    """

    def __init__(self, runner, max_rows: int = MAX_ROWS, prefix_cache: PrefixCache | None = None):
        self.runner = runner
        self.max_rows = max_rows
        self.prefix_cache = prefix_cache
        self.waiting: deque[Request] = deque()
        self._begun: list[Request] = []  # let in, and not done yet
        self._asked: dict[Strategy, Forward] = {}
        self._serves: dict[Strategy, Request] = {}  # of strategies that are one request's
        self._sampling: Strategy | None = None
        self._to_sample: deque[Request] = deque()
        self._unread: dict[Request, int] = {}  # let in, their prompts not run yet: how many sequences they will still open
        self._opening = 0  # sequences that those whose prompts were just run may open now
        self._runners: dict[Hashable, Any] = {id(runner.model): runner}
        self._joining: dict[Hashable, list[TokenSequence]] = {}  # sequences on their way to a strategy that serves several requests
        self._shared: dict[Hashable, Strategy] = {}
        self._begin: dict[Hashable, Callable[[list[TokenSequence]], Strategy]] = {}

    def submit(self, request: Request) -> None:
        """Queue a request; it joins as soon as there is room."""
        self.waiting.append(request)

    def start(self, strategy: Strategy) -> None:
        """Let a strategy take part from the next step on."""
        self._advance(strategy, None)

    def join(self, key: Hashable, sequence: TokenSequence, begin: Callable[[list[TokenSequence]], Strategy]) -> None:
        """Let a sequence into the strategy that all sequences of a key share; `begin` starts it on the list of those that wait, which it empties."""
        self._joining.setdefault(key, []).append(sequence)
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
        before = {sequence: sequence.seen for forward in forwards for sequence in forward.sequences if sequence.request.traced}
        read = {sequence.request for forward in forwards for sequence in forward.sequences} if self._unread else ()
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
        """Drop what is unfinished and give back its memory; a runner that others use as well keeps their sequences."""
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
        """The requests that may hold sequences: those that were let in, and those of strategies that a caller started."""
        return list(dict.fromkeys([*self._begun, *(sequence.request for forward in self._asked.values() for sequence in forward.sequences)]))

    def _admit(self) -> None:
        """Let waiting requests in, and start the sampling strategy where it is needed and not running."""
        self._let_in()
        if self._to_sample and self._sampling not in self._asked:
            self._sampling = sampling(self._arrivals)
            self.start(self._sampling)
        for key, sequences in self._joining.items():
            if sequences and self._shared.get(key) not in self._asked:
                self._shared[key] = self._begin[key](sequences)
                self.start(self._shared[key])

    def _let_in(self) -> None:
        """Let waiting requests in while there is room for their sequences; one that is wider than the room comes in alone."""
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
                self._to_sample.append(request)  # its sequence is opened when the sampling strategy goes on
                self._unread[request] = width
            else:
                with request.contained():
                    strategy = kind.start(request, self)
                    if strategy is not None:
                        self._serves[strategy] = request
                        self.start(strategy)
                if request.error is None:
                    self._unread[request] = width - 1

    def _arrivals(self) -> list[TokenSequence]:
        """Open the first sequence of each request that is let in to be sampled."""
        self._let_in()
        arrived = []
        while self._to_sample:
            request = self._to_sample.popleft()
            del self._unread[request]
            with request.contained():
                arrived.append(TokenSequence.open(request, self.runner))
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
        """Run one pass a runner and return each forward's logits; guidance runs along and are combined."""
        batches: dict[int, Batch] = {}
        parts = [self._lay(forward, batches) for forward in forwards]
        for batch in batches.values():
            batch.run()
        return [answer(forward, batches, own) for forward, own in zip(forwards, parts)]

    def _lay(self, forward: Forward, batches: dict[int, Batch]) -> list[tuple[TokenSequence, int, int | None]]:
        """Put a forward's sequences, and their guidance sequences, into the batches of their runners; return where each was put."""
        places = []
        for sequence, new, keep in zip(forward.sequences, forward.ids, forward.keep):
            batch = batch_of(sequence, batches)
            at = batch.add(sequence, new, keep)
            batch.layers.update(forward.layers)
            other = None
            if sequence.guidance is not None:
                other = batch_of(sequence.guidance, batches).add(sequence.guidance, beside(sequence, new), keep)
            advance(sequence, len(new))
            places.append((sequence, at, other))
        return places


def tell(forwards: Sequence[Forward], before: dict[TokenSequence, int], seconds: float) -> None:
    """Tell the requests that are traced what a pass cost; `before` says how much their sequences had seen until then."""
    of_all = sum(len(ids) for forward in forwards for ids in forward.ids)
    for request in dict.fromkeys(sequence.request for sequence in before):
        own = [sequence for sequence in before if sequence.request is request]
        new = sum(sequence.seen - before[sequence] for sequence in own)
        request.note(PassTrace(seconds, new, of_all, sum(sequence.seen for sequence in own), not all(before[sequence] for sequence in own)), own[0].position)


def beside(sequence: TokenSequence, new: list[int]) -> list[int]:
    """Return what the sequence's guidance has to be shown when the sequence is shown `new`: its own prompt first, then the same."""
    prompt = len(sequence.unseen) - sequence.position if sequence.seen < len(sequence.request.prompt_ids) else 0
    ids = sequence.guidance.ids[sequence.guidance.seen :] + new[prompt:]
    sequence.guidance.ids += new[prompt:]
    sequence.guidance.seen = len(sequence.guidance.ids)
    return ids


def advance(sequence: TokenSequence, count: int) -> None:
    """Count what the sequence is shown, the hidden positions of its prompt with it."""
    if sequence.seen < len(sequence.request.prompt_ids):
        sequence.seen += len(sequence.request.masked_positions)
    sequence.seen += count


class Batch:
    """The sequences of one runner that go through a pass together, and what came of them."""

    def __init__(self, runner):
        self.runner = runner
        self.slots: list[int] = []
        self.ids: list[list[int]] = []
        self.keep: list[int] = []
        self.layers: set[int] = set()

    def add(self, sequence: TokenSequence, new: list[int], keep: int) -> int:
        self.slots.append(sequence.cache_slot)
        self.ids.append(new)
        self.keep.append(keep)
        return len(self.slots) - 1

    def run(self) -> None:
        if self.layers:
            logits, states = self.runner.observe(self.slots, self.ids, self.keep, sorted(self.layers))
            counts = [len(new) for new in self.ids]
            self.states = {layer: precise(state).split(counts) for layer, state in states.items()}
        else:
            logits = self.runner.forward(self.slots, self.ids, self.keep)
        self.whole = precise(logits)
        self._parts: tuple[Tensor, ...] | None = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The logits of each sequence."""
        if self._parts is None:
            self._parts = self.whole.split(self.keep)
        return self._parts


def batch_of(sequence: TokenSequence, batches: dict[int, Batch]) -> Batch:
    """Return the batch that the sequence's runner has in this step."""
    if id(sequence.runner) not in batches:
        batches[id(sequence.runner)] = Batch(sequence.runner)
    return batches[id(sequence.runner)]


def answer(forward: Forward, batches: dict[int, Batch], places: list[tuple[TokenSequence, int, int | None]]) -> Tensor:
    """Gather a forward's logits, [sum(keep), vocab], and hand it its hidden states."""
    batch = batches[id(forward.sequences[0].runner)]
    if forward.layers:
        forward.states = {layer: torch.cat([batch.states[layer][at] for _, at, _ in places]) for layer in forward.layers}
    if all(other is None for *_, other in places):
        first, last = places[0][1], places[-1][1] + 1  # a forward's sequences stand together
        begin = sum(batch.keep[:first])
        return batch.whole[begin : begin + sum(batch.keep[first:last])]
    return torch.cat([combined(sequence, batch.parts[at], batches, other) for sequence, at, other in places])


def combined(sequence: TokenSequence, logits: Tensor, batches: dict[int, Batch], other: int | None) -> Tensor:
    """The sequence's logits, changed by its guidance's where it has one."""
    if other is None:
        return logits
    guidance = batches[id(sequence.guidance.runner)].parts[other]
    return sequence.request.guidance[2](logits, guidance)
