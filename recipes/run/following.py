"""Results as they come: shown at once or in their order, with a progress bar, up to the end or to a signal."""

import sys
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

from seodang.data.errors import UserError
from seodang.infer.remote.connection import GivenUp
from seodang.recipes.run.stopping import Stopping


class Straight:
    """Shows results as they come."""

    def __init__(self, show: Callable):
        self._show, self.shown = show, 0

    def __call__(self, result) -> None:
        self._show(result)
        self.shown += 1

    def close(self) -> None:
        """Show what is held: nothing."""


class InOrder(Straight):
    """Shows results in the order of the prompts and of their `each` choices, and holds those whose turn is still to come.

    What is `held` may lie elsewhere than in memory. The `first` so many are shown already.
    """

    def __init__(self, show: Callable, each: int, held: MutableMapping[int, Any] | None = None, first: int = 0):
        super().__init__(show)
        self._each, self._next = each, first
        self._held: MutableMapping[int, Any] = {} if held is None else held

    def __call__(self, result) -> None:
        self.put(result.prompt_index * self._each + result.choice, result)

    def put(self, place: int, result: Any) -> None:
        """Show the result of a place, counted from 0, or hold it until its turn."""
        if place < self._next:
            return  # it is shown: what failed was one behind it
        if place != self._next:
            self._held[place] = result
            return
        super().__call__(result)
        self._next += 1
        self.go_on()

    def go_on(self) -> None:
        """Show what is held and has its turn."""
        while self._next in self._held:
            self._show_held(self._next)
            self._next += 1

    def close(self) -> None:
        """Show what is held, in its order: what it waited for will not come."""
        for place in sorted(self._held):
            self._show_held(place)

    def _show_held(self, place: int) -> None:
        super().__call__(self._held[place])
        del self._held[place]  # not before: it may not have been possible to show it


def in_turn(show: Callable, each: int, ordered: bool) -> Straight:
    """What shows results in the order of their prompts, or as they come."""
    return InOrder(show, each) if ordered else Straight(show)


def answers_bar() -> Any:
    """A progress bar of answers, each task of which has a field of how fast they come, on stderr where there is someone to see it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[speed]}"))
    console = Console(file=sys.stderr)
    return Progress(*columns, console=console, redirect_stdout=console.is_terminal)


def follow(results: Iterable, show: Straight, total: int, where: str) -> set[int]:
    """Show each result, with a progress bar on stderr where there is someone to see it; return the prompts that ended in an error.

    Stopped by a signal, or where nothing more is to be had, it shows what is finished, and says on stderr how much that is.
    """
    tokens, failed, last = 0, set(), None
    with Stopping() as stopping:
        try:
            with answers_bar() as progress:
                task = progress.add_task("", total=total, completed=show.shown, speed="")
                for result in results:
                    with stopping.whole():  # a line is written whole, and once
                        show(result)
                        last = result
                    if result.error is not None:
                        failed.add(result.prompt_index)
                    tokens += result.tokens
                    seconds = max(progress.tasks[task].elapsed or 0, 1e-9)
                    progress.update(task, advance=1, speed=f"{tokens / seconds:.0f} tokens/s{asked_again(results)}")
                progress.refresh()
        except (KeyboardInterrupt, SystemExit, UserError, GivenUp):
            with stopping.whole():
                for result in come(results):
                    if result is not last:
                        show(result)
                show.close()
            print(f"{show.shown} of {total} answers are {where}", file=sys.stderr)
            raise
    return failed


def come(results: Iterable) -> list:
    """What was there when it was stopped and has not been shown, the last that was perhaps among it."""
    if hasattr(results, "rest"):
        results.close()
        return results.rest
    return []


def asked_again(results: Iterable) -> str:
    """How often a server had to be asked again, in words."""
    count = getattr(results, "retried", 0)
    return f", asked again {count} times" if count else ""
