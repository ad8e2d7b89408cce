"""Many prompts asked of a server, so many at a time: results as they come, to whoever iterates, from a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..engine.params import SamplingParams
from .answers import Refused, RemoteResult, failed, one_line, other_model, results_of
from .connection import Connection, GivenUp, Server, Trouble
from .fields import LATER

UNANSWERED = 3  # prompts in a row that the server could not answer in all their tries: it is asked no more
SAME_WORDS = 8  # prompts that it refuses in the same words before it has answered any: what is wrong is not theirs


@dataclass(frozen=True)
class Question:
    """A prompt by its number, the path and the body that ask it, and the settings that these come from."""

    index: int
    path: str
    body: dict[str, Any]
    params: SamplingParams
    token_ids: bool = False


class Asking(Iterator[RemoteResult]):
    """The answers to many prompts, each as soon as it is there, those of one prompt together.

    Nothing is asked before the first is wanted. `question` makes a prompt's, by its index, when its turn comes. At most `concurrency` are asked at a time, and with `ahead` none that stands so
    many places behind the first that is not answered; `trusted` says that it has answered prompts like these before. What goes wrong with a prompt alone is its results' `error`; GivenUp is raised, behind what has
    come, where the server would answer no other either. Whoever stops early calls `close`, and finds in `rest` what had come by then.
    """

    def __init__(self, server: Server, question: Callable[[int], Question], indices: Sequence[int], concurrency: int, ahead: int | None = None, trusted: bool = False):
        self._server, self._question, self._indices = server, question, indices
        self._concurrency, self._ahead = concurrency, ahead
        self._arrived: deque[RemoteResult] = deque()
        self._handed_out = False  # the first of these: until the next is asked for, `rest` has it
        self._changed, self._over, self._error = threading.Condition(), False, None
        self._room = asyncio.Semaphore(2 * concurrency)  # for prompts that are asked, and for those whose results nobody has taken yet
        self._outcomes, self._newer = Outcomes(trusted), False
        self._connection: Connection | None = None
        self._loop = asyncio.new_event_loop()
        self._all: asyncio.Task | None = None
        self._thread = threading.Thread(target=self._run, name="asking", daemon=True)

    @property
    def retried(self) -> int:
        """How often something was asked again."""
        return self._connection.retried if self._connection else 0

    @property
    def rest(self) -> list[RemoteResult]:
        """What has come and is not done with: the result that was handed out last, perhaps, and those behind it."""
        return [*self._arrived]

    def __next__(self) -> RemoteResult:
        if self._all is None:
            self._all = self._loop.create_task(self._ask_all())
            self._thread.start()
        with self._changed:
            if self._handed_out:
                self._handed_out = False
                done = self._arrived.popleft()
                if not (self._arrived and self._arrived[0].prompt_index == done.prompt_index):
                    self._tell(self._room.release)
            self._changed.wait_for(lambda: self._arrived or self._over)
            if self._arrived:
                self._handed_out = True
                return self._arrived[0]
        self._thread.join()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Ask no more, and break off what is being asked."""
        if self._all is None:
            self._loop.close()
        else:
            self._tell(self._all.cancel)
            self._thread.join()

    def _tell(self, what: Callable[[], Any]) -> None:
        """Have something done in the thread that asks, unless it has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._all)
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # whoever iterates raises it
            self._error = error
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            with self._changed:
                self._over = True
                self._changed.notify()

    async def _ask_all(self) -> None:
        async with self._server.connected(self._concurrency) as self._connection:
            running: dict[asyncio.Task, int] = {}
            try:
                for place, index in enumerate(self._indices):
                    while len(running) == self._concurrency or self._ahead is not None and place - min(running.values(), default=place) >= self._ahead:
                        await settled(running)
                    await self._room.acquire()
                    running[asyncio.create_task(self._answer(self._question(index)))] = place
                while running:
                    await settled(running)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _answer(self, question: Question) -> None:
        """Ask a prompt and hand in what comes of it; raises GivenUp where that says that no other would be answered."""
        try:
            body = await self._posted(question)
            self._refuse_other_model(body, question)
            self._hand_in(self._read(body, question))
            self._outcomes.answered()
        except Refused as error:
            self._hand_in(failed(str(error), question.index, question.params))
            self._outcomes.refused(str(error))
        except Trouble as error:
            self._hand_in(failed(str(error), question.index, question.params))
            self._outcomes.unanswered(str(error))

    def _refuse_other_model(self, body: Any, question: Question) -> None:
        """Raise GivenUp for an answer of another model than was asked."""
        asked = self._server.answered_by or question.body["model"]
        if told := other_model(body, asked):
            remedy = "ask for that one, or say by --answered_by that it is another name of the same"
            raise GivenUp(f"the model {one_line(told)!r} answers where {asked!r} was asked: {remedy}")

    def _read(self, body: Any, question: Question) -> list[RemoteResult]:
        """The answers in a body; raises Refused, in words that may be shown, where it has not all of them."""
        try:
            return results_of(body, question.index, question.params, question.token_ids)
        except Refused as error:
            raise Refused(self._connection.told(str(error))) from None

    async def _posted(self, question: Question) -> Any:
        """The server's answer, the length by its newer name where the server wants that."""
        body, (usual, newer) = question.body, LATER
        if self._newer:
            body = {newer if name == usual else name: value for name, value in body.items()}
        try:
            return await self._connection.post(question.path, body)
        except Refused as error:
            if usual not in body or not all(name in str(error) for name in LATER):
                raise
        self._newer = True
        return await self._posted(question)

    def _hand_in(self, results: list[RemoteResult]) -> None:
        with self._changed:
            self._arrived.extend(results)
            self._changed.notify()


async def settled(running: dict[asyncio.Task, int]) -> None:
    """Wait until one of the tasks is done, and forget those that are; raises what one of them raised."""
    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        del running[task]
    if errors := [error for task in done if (error := task.exception())]:
        raise errors[0]


class Outcomes:
    """How prompts fared, one after another; raises GivenUp where those to come would fare no better."""

    def __init__(self, trusted: bool) -> None:
        self._any = trusted  # was answered
        self._in_a_row, self._same, self._words = 0, 0, ""

    def answered(self) -> None:
        """A prompt was answered."""
        self._any, self._in_a_row = True, 0

    def refused(self, words: str) -> None:
        """A prompt was refused."""
        self._in_a_row = 0
        self._same, self._words = self._same + 1 if words == self._words else 1, words
        if not self._any and self._same == SAME_WORDS:
            raise GivenUp(f"it refuses every prompt: {words}")

    def unanswered(self, words: str) -> None:
        """A prompt got no answer in all its tries."""
        self._in_a_row += 1
        if self._in_a_row == UNANSWERED:
            raise GivenUp(f"it answers no more: {words}")
