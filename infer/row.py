"""A request, and the rows (hypotheses) that search for its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .events import Committed, Event, Finished, Result
from .params import SamplingParams
from .stop import AnswerText


@dataclass(eq=False)
class Request:
    """One prompt with its settings, where its answer ends, and the ear that hears its events."""

    index: int
    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    end_ids: frozenset[int]
    new_text: Callable[[], AnswerText]
    hear: Callable[[Event], None] = lambda event: None
    result: Result | None = None
    published: int = 0

    def publish(self, row: Row, until: int | None = None) -> None:
        """Tell of the row's tokens that were not told yet, up to `until`; with all of a finished row told, finish."""
        tokens = row.new_ids
        until = len(tokens) if until is None else until
        for i in range(self.published, until):
            self.hear(Committed(self.index, i, tokens[i], row.logprobs[i], row.pieces[i]))
        self.published = max(self.published, until)
        if row.finish_reason is not None and until == len(tokens):
            self.result = Result(
                self.index, "".join(row.pieces), tokens, row.logprobs, row.finish_reason, len(self.prompt_ids), self.seed
            )
            self.hear(Finished(self.index, row.finish_reason))


@dataclass(eq=False)
class Row:
    """A hypothesis: the prompt and what follows it, and how much of that the cache has seen."""

    request: Request
    runner: object
    slot: int
    ids: list[int]
    text: AnswerText
    seen: int = 0
    logprobs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    _history: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    _remembered: int = 0

    @classmethod
    def open(cls, request: Request, runner) -> Row:
        """Return the request's first row, which holds the prompt and has been shown nothing of it."""
        return cls(request, runner, runner.row(), list(request.prompt_ids), request.new_text())

    @property
    def unseen(self) -> list[int]:
        """The ids that the next pass must bring."""
        return self.ids[self.seen :]

    @property
    def new_ids(self) -> list[int]:
        """The answer's ids so far."""
        return self.ids[len(self.request.prompt_ids) :]

    @property
    def position(self) -> int:
        """How many tokens the answer has: the position of the next."""
        return len(self.ids) - len(self.request.prompt_ids)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def commit(self, id: int, logprob: float) -> None:
        """Append a token to the answer and judge whether it ends there."""
        params = self.request.params
        self.ids.append(id)
        self.logprobs.append(logprob)
        own_end, callers_end = id in self.request.end_ids, id in params.stop_token_ids
        piece = "" if own_end or callers_end else self.text.push(id)
        if callers_end or own_end:
            self.finish_reason = "eos" if own_end else "stop"
        elif self.position >= params.max_new_tokens:
            self.finish_reason = "length"
        if self.finished:
            piece += self.text.finish()  # which may complete a stop string
        if self.text.stopped:
            self.finish_reason = "stop"
        self.pieces.append(piece)

    def history(self) -> Tensor:
        """Return prompt and answer so far as one [n] tensor; what is new since the last call is all that is copied."""
        n = len(self.ids)
        if n > len(self._history):
            grown = torch.empty(2 * n, dtype=torch.long)
            grown[: self._remembered] = self._history[: self._remembered]
            self._history = grown
        if n > self._remembered:
            self._history[self._remembered : n] = torch.tensor(self.ids[self._remembered :])
            self._remembered = n
        return self._history[:n]

    def forget(self, count: int) -> None:
        """Drop the newest `count` positions from the cache: guesses that were not committed."""
        if count:
            self.seen -= count
            self.runner.truncate(self.slot, self.seen)

    def fork(self) -> Row:
        """Return a row with the same ids and past that goes on by itself."""
        [slot] = self.runner.fork([self.slot])
        return Row(
            self.request, self.runner, slot, list(self.ids), self.text.fork(), self.seen,
            list(self.logprobs), list(self.pieces), self.finish_reason,
        )  # fmt: skip


def release(rows: list[Row]) -> None:
    """Give back the rows' places in the cache."""
    if rows:
        rows[0].runner.release([row.slot for row in rows])
