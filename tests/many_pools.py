"""Workers in this process, who do what they are asked in any order, and are lost where a test says so."""

import random
from collections.abc import Callable
from typing import Any

from seodang.recipes.many.dispatch import Heard
from seodang.recipes.many.ray_pool import told


class InProcess:
    """A pool as `RayPool` is one. `dies(call, given)` says, of what is asked next ("open" too), what the lost worker is said to have died of."""

    def __init__(self, opener: Callable[[], Any], workers: int | None, dies: Callable[[str, Any], str | None] = lambda call, given: None, seed: int = 0):
        self._opener, self.workers, self._dies, self._draw = opener, workers or 1, dies, random.Random(seed)
        self._there: dict[int, Any] = {}
        self._asked: dict[int, tuple[str, Any]] = {}
        self.calls: list[tuple[int, str, Any]] = []  # what was done, by which worker

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._there.values():
            if hasattr(each, "close"):
                each.close()

    def open(self, worker: int) -> None:
        assert worker not in self._there and worker not in self._asked
        self._asked[worker] = ("open", None)

    def ask(self, worker: int, call: str, given: Any) -> None:
        assert worker in self._there and worker not in self._asked
        self._asked[worker] = (call, given)

    def wait(self) -> list[Heard]:
        assert self._asked, "nothing is under way: this would wait for ever"
        worker = self._draw.choice(sorted(self._asked))
        call, given = self._asked.pop(worker)
        self.calls.append((worker, call, given))
        if (why := self._dies(call, given)) is not None:
            self._there.pop(worker, None)
            return [Heard(worker, lost=why)]
        if call == "open":
            kind, value = told(self._opener)
            if kind == "value":
                self._there[worker], value = value, value.said
        else:
            kind, value = told(lambda: getattr(self._there[worker], call)(*given))
        return [Heard(worker, value if kind == "value" else None, **({} if kind == "value" else {kind: value}))]
