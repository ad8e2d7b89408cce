"""Shards given to workers, who may be lost: each shard is asked again a few times, each place filled again, and nothing waits for ever."""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from seodang.data.errors import UserError

TRIES = 3  # of a shard whose workers are lost, and of a place whose workers are lost while they begin


@dataclass(frozen=True)
class Heard:
    """What is heard of a worker: that it is open, or the `value` of what it was asked.

    Else what was wrong: `refused`, the user's own mistake, or `lost`, with which the worker is gone; `placeless` says that it never had a machine to run on.
    """

    worker: int
    value: Any = None
    refused: str | None = None
    lost: str | None = None
    placeless: bool = False


class Pool(Protocol):
    """Where workers run, so many of them at most."""

    workers: int

    def open(self, worker: int) -> None:
        """Begin a worker, by a number that none has now."""

    def ask(self, worker: int, call: str, given: Any) -> None:
        """Have an open worker do something."""

    def wait(self) -> list[Heard]:
        """What was heard of workers, once something is; nothing, after a while."""


class Dispatcher:
    """So many workers of a pool, opened when there is something to do for them. `opened` is called with what the first says when it is open."""

    def __init__(self, pool: Pool, workers: int, opened: Callable[[Any], None] = lambda said: None):
        self._pool, self._free, self._opened = pool, [*range(workers)], opened
        self._opening: set[int] = set()
        self._idle: list[int] = []
        self._busy: dict[int, Any] = {}
        self._failed: Counter[int] = Counter()  # openings of a place, one after the other

    def run(self, call: str, tasks: Iterable[Any], given: Callable[[Any], Any], taken: Callable[[Any, Any], None]) -> dict[Any, str]:
        """Have every task done, each by one of the workers: `given` says what of it goes there, `taken` gets what comes back, once a task.

        Returns what was said last of those whose workers were lost `TRIES` times. Raises UserError for what a worker refuses, and where none can be opened.
        """
        waiting, losses, lost = deque(tasks), Counter(), {}
        while waiting or self._busy:
            self._open(len(waiting))
            while self._idle and waiting:
                worker, task = self._idle.pop(), waiting.popleft()
                self._busy[worker] = task
                self._pool.ask(worker, call, given(task))
            for heard in self._pool.wait():
                if heard.refused is not None:
                    raise UserError(heard.refused)
                begun = heard.worker in self._busy
                task = self._busy.pop(heard.worker, None)
                if heard.lost is None:
                    self._heard(heard, begun)
                    if begun:
                        taken(task, heard.value)
                    continue
                self._lost(heard)
                if begun:
                    losses[task] += 1
                    if losses[task] < TRIES:
                        waiting.append(task)  # behind the others, which may have nothing to do with what went wrong
                    else:
                        lost[task] = heard.lost
        return lost

    def _open(self, tasks: int) -> None:
        while self._free and len(self._opening) + len(self._idle) < tasks:
            worker = self._free.pop(0)
            self._opening.add(worker)
            self._pool.open(worker)

    def _heard(self, heard: Heard, begun: bool) -> None:
        if not begun:
            self._opening.discard(heard.worker)
            self._failed[heard.worker] = 0
            self._opened(heard.value)
            self._opened = lambda said: None
        self._idle.append(heard.worker)

    def _lost(self, heard: Heard) -> None:
        """Let a worker's place be filled again, if that has not failed too often. Raises UserError where no place is left."""
        if heard.worker in self._idle:
            self._idle.remove(heard.worker)
        if heard.worker in self._opening:
            self._opening.discard(heard.worker)
            self._failed[heard.worker] += TRIES if heard.placeless else 1
        if self._failed[heard.worker] < TRIES:
            self._free.append(heard.worker)
        elif not (self._free or self._opening or self._idle or self._busy):
            raise UserError(f"no worker can begin: {heard.lost}; mend what it says, and give the same command again")
