"""Merges the forward passes of all live strategies into one."""

from __future__ import annotations

from collections import deque

from torch import Tensor

from .row import Request, Row
from .sampling import sampling
from .strategy import Forward, Strategy

MAX_ROWS = 64  # answers that grow at the same time; the others wait
MAX_NEW_POSITIONS = 16_384  # prompts join a pass until it has this many positions: bounds the memory of activations


class Engine:
    """Runs strategies, generators over the rows they own, side by side: one pass of the runner a step for all."""

    def __init__(self, runner, max_rows: int = MAX_ROWS):
        self.runner = runner
        self.max_rows = max_rows
        self.waiting: deque[Request] = deque()
        self._asked: dict[Strategy, Forward] = {}
        self._sampling: Strategy | None = None

    def submit(self, request: Request) -> None:
        """Queue a request for sampling; it joins as soon as there is room."""
        self.waiting.append(request)

    def start(self, strategy: Strategy) -> None:
        """Let a strategy take part from the next step on."""
        self._advance(strategy, None)

    def step(self) -> bool:
        """Run one pass for all live strategies and let each go on; return whether any is left."""
        if self.waiting and self._sampling not in self._asked:
            self._sampling = sampling(self._arrivals)
            self.start(self._sampling)
        if not self._asked:
            return False
        asked = list(self._asked.items())
        rows = [row for _, forward in asked for row in forward.rows]
        ids = [new for _, forward in asked for new in forward.ids]
        keep = [count for _, forward in asked for count in forward.keep]
        logits = self.runner.forward([row.slot for row in rows], ids, keep)
        for row, new in zip(rows, ids):
            row.seen += len(new)
        parts = logits.split([sum(forward.keep) for _, forward in asked])
        for (strategy, _), part in zip(asked, parts):
            self._advance(strategy, part)
        return bool(self._asked or self.waiting)

    def close(self) -> None:
        """Drop what is unfinished and give back its memory."""
        for strategy in self._asked:
            strategy.close()
        self._asked.clear()
        self.waiting.clear()
        self.runner.refresh()

    def _advance(self, strategy: Strategy, logits: Tensor | None) -> None:
        try:
            self._asked[strategy] = strategy.send(logits)
        except StopIteration:
            self._asked.pop(strategy, None)

    def _arrivals(self) -> list[Row]:
        """Open rows for waiting requests while there is room for them."""
        arrived: list[Row] = []
        positions = 0
        while self.waiting and self.runner.live < self.max_rows:
            positions += len(self.waiting[0].prompt_ids)
            if arrived and positions > MAX_NEW_POSITIONS:
                break
            arrived.append(Row.open(self.waiting.popleft(), self.runner))
        return arrived
