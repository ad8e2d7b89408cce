"""The generation of a request's answers: how far it is, the cache slots that it holds, and what has been published."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor

from ...data.errors import UserError
from ..runners.contract import Runner
from .events import Answer, Committed, Event, Finished, Observed, PromptRead, Result
from .likelihoods import TokenLogprobs
from .request import Request
from .runtime import runtime_of
from .stats import Stats


class Stage(Enum):
    """How far a request is."""

    WAITING = "waiting"
    PREFILLING = "prefilling"  # let in, its prompt not run yet
    RUNNING = "running"
    DONE = "done"  # all its results are there


@dataclass
class Published:
    """What has been published of an answer that is not finished."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    top_logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(eq=False)
class Generation:
    """All that changes while a request is answered.

    `on_event` is called with each event as it happens. `stage`, `slots_reserved`, how many cache slots of the request's own model are
    kept free for it, and `bytes_reserved`, how much of the budget is, belong to the scheduler. `forked` says whether its further answers
    were forked from its prompt. `past` is a slot that has read all that is given but the last token, `guidance_past` one that has read so of
    the guidance's prompt, and `prefix_logprobs` what the model thought of the answer's prefix, where that is asked. `cached_tokens` counts the
    prompt's tokens that came out of a prefix cache. `runner` is that of the engine which it was handed to.
    """

    request: Request
    on_event: Callable[[Event], None] = lambda event: None
    stage: Stage = Stage.WAITING
    runner: Runner | None = None
    started: float | None = None  # by time.monotonic(), when it was let in
    slots_reserved: int = 0
    bytes_reserved: int = 0
    slots_held: set[tuple[Runner, int]] = field(default_factory=set)
    forked: bool = False
    cancelled: bool = False
    by_parts: bool = False  # whether its prompt is read by parts, which keep no other prompt out of a pass
    results: dict[int, Result] = field(default_factory=dict)  # by choice
    past: int | None = None
    guidance_past: int | None = None
    cached_tokens: int = 0
    prefix_logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    embedding: Tensor | None = None  # [hidden], where the prompt's vector is all that is asked
    error: UserError | None = None  # what ended it before its answers were there
    _published: dict[int, Published] = field(default_factory=dict)
    _candidates: list[Answer] = field(default_factory=list)  # finished, of a request that selects among them

    @property
    def result(self) -> Result | None:
        """The first answer's result, None before it is finished."""
        return self.results.get(0)

    @property
    def done(self) -> bool:
        """Whether all results are there."""
        return self.stage is Stage.DONE

    @property
    def broken_off(self) -> bool:
        """Whether it has failed or was cancelled before its answers were there."""
        return self.error is not None or self.cancelled

    def hold_slot(self, runner: Runner, slot: int) -> int:
        """Note that a slot was allocated for the request, and return it."""
        self.slots_held.add((runner, slot))
        return slot

    def hand_over_slot(self, runner: Runner, slot: int) -> None:
        """Note that a slot is somebody else's from now on."""
        self.slots_held.remove((runner, slot))

    def release_slot(self, runner: Runner, slot: int) -> None:
        """Give a slot's memory back, unless that has been done."""
        if (runner, slot) in self.slots_held:
            self.slots_held.remove((runner, slot))
            runner.release([slot])

    def release_all_slots(self) -> None:
        """Give back all slots that the request still holds."""
        for runner in {runner for runner, _ in self.slots_held}:
            runner.release([slot for of, slot in self.slots_held if of is runner])
        self.slots_held.clear()

    def tell_prompt(self, logprobs: list[TokenLogprobs | None]) -> None:
        """Keep what the model thought of the prompt's tokens, and publish it."""
        self.prompt_logprobs = logprobs
        self.on_event(PromptRead(self.request.index, logprobs))

    def publish(
        self, choice: int, ids: Sequence[int], logprobs: Sequence[float], pieces: Sequence[str], top_logprobs: Sequence[TokenLogprobs] = ()
    ) -> None:
        """Publish the tokens of an answer that were not published yet; ids, logprobs and texts are those of the answer so far.

        Of a request that selects among its answers nothing is published before all of them are finished.
        """
        if not self.broken_off and self.request.select is None:
            self._publish(choice, ids, logprobs, pieces, top_logprobs)

    def finish(self, answer: Answer, choice: int) -> None:
        """Publish a finished answer; a request that selects keeps it until all are there and publishes the selected ones."""
        if self.broken_off:
            return
        if self.request.select is None:
            self._finish(answer, choice)
            return
        self._candidates.append(answer)
        if len(self._candidates) == self.request.width:
            for rank, selected in enumerate(self.request.select(self._candidates)):
                self._finish(selected, rank)

    def fail(self, error: UserError) -> None:
        """End the request by an error: each answer that is not there yet is what was published of it, and all its slots are given back."""
        if self.broken_off:
            return
        self.error = error
        self._break_off("error", str(error))
        self.release_all_slots()

    def cancel(self) -> None:
        """End the request unasked for, its answers as by an error, but for the reason "cancelled"; its slots are the engine's to give back."""
        self.cancelled = True
        self._break_off("cancelled")

    @contextmanager
    def contained(self) -> Iterator[None]:
        """Let a UserError that is raised within end this request, and no other."""
        try:
            yield
        except UserError as error:
            self.fail(error)

    def let_go(self) -> None:
        """Forget what was published and the results: they have been handed on, and further requests of the call need the memory."""
        for kept in (self.results, self._published, self._candidates):
            kept.clear()

    def trace(self, record: Any, position: int, choice: int = 0) -> None:
        """Pass on what was observed at a position of an answer, where the request is traced."""
        if self.request.traced:
            self.tell(record, position, choice)

    def tell(self, record: Any, position: int, choice: int = 0) -> None:
        """Pass on what was observed at a position of an answer, unless the request is broken off: nothing comes behind an end."""
        if not self.broken_off:
            self.on_event(Observed(self.request.index, position, record, choice))

    def _publish(
        self, choice: int, ids: Sequence[int], logprobs: Sequence[float], pieces: Sequence[str], top_logprobs: Sequence[TokenLogprobs]
    ) -> None:
        published = self._published.setdefault(choice, Published())
        for i in range(len(published.ids), len(ids)):
            published.ids.append(ids[i])
            published.logprobs.append(logprobs[i])
            published.pieces.append(pieces[i])
            published.top_logprobs += top_logprobs[i : i + 1]
            known = top_logprobs[i] if top_logprobs else None
            self.on_event(Committed(self.request.index, i, ids[i], logprobs[i], pieces[i], choice, known))

    def _finish(self, answer: Answer, choice: int) -> None:
        self._publish(choice, answer.ids, answer.logprobs, answer.pieces, answer.top_logprobs)
        request = self.request
        self.results[choice] = Result(
            request.index, answer.text, answer.ids, answer.logprobs, answer.finish_reason, request.prompt_length, answer.seed, choice,
            answer.score, grown_as=answer.grown_as, top_logprobs=answer.top_logprobs, prompt_logprobs=self.prompt_logprobs,
            cached_tokens=self.cached_tokens, forwards=answer.forwards, stats=self._stats(answer.ids),
        )  # fmt: skip
        if len(self.results) == request.params.num_return_sequences:
            self.stage = Stage.DONE
        self.on_event(Finished(request.index, answer.finish_reason, choice))

    def _stats(self, ids: Sequence[int]) -> Stats | None:
        """What an answer that ends now took."""
        if self.runner is None:
            return None
        seconds = None if self.started is None else time.monotonic() - self.started
        return Stats(self.request.prompt_length, len(ids), seconds, runtime_of(self.runner))

    def _break_off(self, reason: str, error: str | None = None) -> None:
        """Finish each answer that is not there yet as what was published of it."""
        request = self.request
        missing = [choice for choice in range(request.params.num_return_sequences) if choice not in self.results]
        for choice in missing:
            published = self._published.get(choice, Published())
            self.results[choice] = Result(
                request.index, "".join(published.pieces), published.ids, published.logprobs, reason, request.prompt_length,
                request.seed_of(choice), choice, error=error, grown_as=choice, top_logprobs=published.top_logprobs,
                prompt_logprobs=self.prompt_logprobs, cached_tokens=self.cached_tokens, stats=self._stats(published.ids),
            )  # fmt: skip
        self.stage = Stage.DONE
        for choice in missing:
            self.on_event(Finished(request.index, reason, choice, error))
