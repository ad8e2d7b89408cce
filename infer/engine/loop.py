"""The loop of a live engine: a thread that runs its passes, and the tickets by which other threads follow their requests."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import SimpleQueue

from ...data.errors import UserError
from ..requests.events import Event, Finished, Result
from ..requests.generation import Generation
from .core import Engine

log = logging.getLogger(__name__)


class EngineClosed(UserError):
    """The engine takes no requests any more: it was closed, or its loop died."""


class Ticket:
    """A request that was handed in: its events as they come, its results, and how to cancel it. For any thread."""

    def __init__(self, generation: Generation, on_event: Callable[[Event], None] | None, loop: Loop):
        self.generation = generation
        self._heard: SimpleQueue[Event | None] | None = SimpleQueue() if on_event is None else None
        self._tell = on_event or self._heard.put
        self._loop = loop
        self._unfinished = set(range(generation.request.params.num_return_sequences))  # choices
        self._trace: list[Event] = []
        self._over = threading.Event()
        self._lock = threading.Lock()  # where a step is stuck, it is who closes the engine that tells the end
        self._due: deque[Event] = deque()  # that is to be told, by who tells already
        self._telling = False
        generation.on_event = self._hear

    @property
    def done(self) -> bool:
        """Whether every answer has finished."""
        return self._over.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every answer has finished, or so many seconds; return whether they have."""
        return self._over.wait(timeout)

    def events(self) -> Iterator[Event]:
        """Yield what happens as it does, up to the `Finished` of the last answer; one that fails raises nothing, its `Finished` says so.

        Each event comes once, whoever asks. Raises UserError where they go to a function of the caller's.
        """
        if self._heard is None:
            raise UserError("the events of this request go to its on_event: submit it without to iterate over them")
        return iter(self._next, None)

    def results(self, timeout: float | None = None) -> list[Result]:
        """Wait for the answers and return them in the order of their choices.

        Raises TimeoutError where they are not there after so many seconds, and UserError where an `on_event` would wait for its own thread.
        """
        self._refuse_to_wait(self.done)
        if not self.wait(timeout):
            raise TimeoutError(f"request {self.generation.request.index} is not answered after {timeout} s: wait longer, or cancel it")
        found = [result for _, result in sorted(self.generation.results.items())]
        return [replace(result, trace=self._trace) for result in found] if self._trace else found

    def cancel(self) -> None:
        """Have the answers that are not there yet end with the reason "cancelled" after the step in hand; for a request that is over nothing changes."""
        self._loop.post(lambda: self.done or self._loop.engine.cancel(self.generation))

    def _refuse_to_wait(self, is_there: bool) -> None:
        if not is_there and self._loop.is_own_thread():
            raise UserError("an on_event cannot wait for an answer: the thread that it is called in is the one that makes it")

    def _next(self) -> Event | None:
        self._refuse_to_wait(not self._heard.empty())
        event = self._heard.get()
        if event is None:
            self._heard.put(None)  # whoever asks again, or waits beside, ends too
        return event

    def _hear(self, event: Event) -> None:
        """Pass an event on, one behind the other whatever thread it comes from; nothing comes behind the end of an answer, or of all."""
        with self._lock:
            finished = isinstance(event, Finished)
            if event.choice not in self._unfinished if finished else not self._unfinished:
                return
            if self.generation.request.traced:
                self._trace.append(event)
            if finished:
                self._unfinished.remove(event.choice)
                if not self._unfinished:  # before it is told: whoever hears of the last answer can have all of them
                    self._loop.forget(self)
                    self._over.set()
            self._due.append(event)
            if self._telling:
                return
            self._telling = True
        while (due := self._next_due()) is not None:
            self._pass_on(due)

    def _next_due(self) -> Event | None:
        """Return what is to be told next; where nothing is, another thread may tell, and who iterates ends once all answers have."""
        with self._lock:
            if self._due:
                return self._due.popleft()
            self._telling = False
            if self._heard is not None and not self._unfinished:
                self._heard.put(None)
            return None

    def _pass_on(self, event: Event) -> None:
        """Tell an event; an error of the caller's function ends its request, and it is not called again."""
        try:
            self._tell(event)
        except BaseException:  # whatever it is, the loop has others to serve
            log.exception("on_event of request %d raised: the request is cancelled", event.prompt_index)
            self._tell = lambda event: None
            self.cancel()


class Loop:
    """What the thread runs: it reads its mail between two steps and sleeps where nothing is left to do.

    All that touches the engine's strategies happens here. Only `post` and the table of tickets are for other threads.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.closed: str | None = None  # why it takes no more
        self.died = False
        self.began: float | None = None  # by time.monotonic(), while a step or a piece of mail is in hand
        self.thread = threading.Thread(target=self.run, name="seodang-engine", daemon=True)
        self._mail: SimpleQueue[Callable[[], object]] = SimpleQueue()  # whose put may come within another of the same thread
        self._tickets: dict[int, Ticket] = {}
        self._lock = threading.RLock()  # garbage collection may stop a loop from within any line
        self._stopped = False
        engine.on_defect = lambda error: log.error("a defect ended one or more requests; the engine goes on", exc_info=error)

    def post(self, mail: Callable[[], object]) -> None:
        """Have the loop's thread call this before its next step; one that has ended never does."""
        self._mail.put(mail)

    def is_own_thread(self) -> bool:
        """Whether the caller is called by the loop itself, as an `on_event` is."""
        return threading.current_thread() is self.thread

    def refuse_where_closed(self) -> None:
        """Raise EngineClosed where no request is taken any more: after `refuse`, and in a process that was forked, which has no copy of the thread."""
        if self.closed is not None:
            raise EngineClosed(self.closed)
        if not self.thread.is_alive():
            raise EngineClosed("the engine's thread has ended: make another engine, in a process that was forked one of its own")

    def take(self, ticket: Ticket) -> None:
        """Let a request in, behind those that came before; raises EngineClosed where none is taken any more."""
        with self._lock:
            self.refuse_where_closed()
            self._tickets[ticket.generation.request.index] = ticket
        self.post(lambda: self._submit(ticket.generation))

    def forget(self, ticket: Ticket) -> None:
        """Drop a request that is over."""
        with self._lock:
            self._tickets.pop(ticket.generation.request.index, None)

    def refuse(self, why: str) -> None:
        """Take no request from now on."""
        with self._lock:
            self.closed = self.closed or why

    def tickets(self) -> list[Ticket]:
        """Those that are not over."""
        with self._lock:
            return list(self._tickets.values())

    def stop(self) -> None:
        """Have the thread cancel what is left and end, after the step in hand."""
        self.refuse("the engine is closed: make another one")
        self.post(lambda: setattr(self, "_stopped", True))

    def run(self) -> None:
        """Serve until `stop`, or until an error that the engine does not contain; whoever waits then is told."""
        error = None
        try:
            going = False
            while not self._stopped:
                mail = None if going and self._mail.empty() else self._mail.get()
                self.began = time.monotonic()
                if mail is None:
                    going = self.engine.step()
                else:
                    mail()
                    going = True
                self.began = None
        except BaseException as raised:  # the thread's last word: nobody else would hear it
            error, self.died = raised, True
            log.critical("the engine's loop died", exc_info=raised)
            self.refuse(f"the engine's loop died of {type(raised).__name__}: the log says more")  # whose words may be those of a prompt
        self._end(None if error is None else EngineClosed(self.closed))

    def _submit(self, generation: Generation) -> None:
        with generation.contained():
            self.engine.submit(generation)

    def _end(self, error: EngineClosed | None) -> None:
        """Finish every request that is left, cancelled or by the error, and give back all memory."""
        for ticket in self.tickets():
            try:
                ticket.generation.cancel() if error is None else ticket.generation.fail(error)
            except Exception:  # after an error the caches may be in any state; the next one is to hear all the same
                log.exception("request %d could not be ended in order", ticket.generation.request.index)
        try:
            self.engine.close()
            if (cache := self.engine.prefix_cache) is not None:
                cache.make_room(cache.bytes)
        except Exception:
            log.exception("the engine could not be closed in order")
