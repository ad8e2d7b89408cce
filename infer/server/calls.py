"""A call over HTTP and its requests to the engine: encoded in a worker thread, their events on the event loop, cancelled when the client goes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ...data.errors import UserError
from ..engine.loop import EngineClosed, Ticket
from ..engine.prompts import Prompt
from ..requests.events import Event, Finished
from .guard.admission import in_time
from .guard.errors import ApiError
from .metrics import watched

T = TypeVar("T")


class Call:
    """The requests of one call; nothing of it waits for a forward pass."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._watched = watched(self.tickets)
        self._over = False  # for whoever hands in still

    @classmethod
    async def begin(cls, prompts: Sequence[Prompt], submit: Callable[..., Ticket]) -> Call:
        """Hand in all prompts or none, each by `submit(prompt, on_event=...)`; raises UserError, as that does, for the first that is refused."""
        call = cls()
        try:
            async with in_time():
                await run_in_threadpool(call._submit, prompts, submit)
        except BaseException:
            call.cancel()
            raise
        return call

    def cancel(self) -> None:
        """End what is not answered yet, and hand in nothing more."""
        self._over = True
        for ticket in self.tickets:
            ticket.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield what happens with the place of its prompt, up to the end of the last answer.

        Raises the UserError that ended a request, EngineClosed where the engine has cancelled one, and ApiError where the time is up; the others are
        then cancelled.
        """
        left = sum(ticket.generation.request.params.num_return_sequences for ticket in self.tickets)
        while left:
            try:
                async with in_time():
                    place, event = await self._events.get()
            except ApiError:
                self.cancel()
                raise
            if isinstance(event, Finished):
                left -= 1
                if event.reason in ("error", "cancelled"):
                    self.cancel()
                    raise self._named(place) or EngineClosed("the request was cancelled: the server is closing")
            yield place, event

    def _named(self, place: int) -> UserError | None:
        """The error that ended a request, with its prompt by the place in this call: to the engine it is one of all."""
        generation = self.tickets[place].generation
        error, name = generation.error, "prompt 1" if len(self.tickets) == 1 else f"prompt[{place}]"
        told = re.sub(rf"\bprompt {generation.request.index + 1}\b", name, str(error))
        return UserError(told) if type(error) is UserError and told != str(error) else error

    def _submit(self, prompts: Sequence[Prompt], submit: Callable[..., Ticket]) -> None:
        for place, prompt in enumerate(prompts):
            if self._over:
                break
            try:
                self.tickets.append(submit(prompt, on_event=partial(self._hear, place)))
            except UserError as error:
                if len(prompts) == 1 or type(error) is not UserError:
                    raise
                named = str(error).replace("prompt 1 ", f"prompt[{place}] ", 1)  # to the engine each is the first of its call
                raise UserError(named if named != str(error) else f"of prompt[{place}]: {error}") from None
        if self._over:  # since before the last of them was there
            self.cancel()

    def _hear(self, place: int, event: Event) -> None:
        self._watched(place, event)
        self._loop.call_soon_threadsafe(self._events.put_nowait, (place, event))


async def heard_out(request: Request, call: Call, answer: Awaitable[T]) -> T:
    """Wait for an answer to a call, which is cancelled where the client goes before it is there."""
    watch = asyncio.create_task(cancel_when_gone(request, call))
    try:
        return await answer
    finally:
        watch.cancel()
        call.cancel()


async def while_there(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """Wait for what a request, whose body has been read, takes from others; breaks it off and raises ClientDisconnect where its client goes before."""
    work, watch = asyncio.create_task(answer), asyncio.create_task(gone(request))
    try:
        await asyncio.wait([work, watch], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        watch.cancel()
        work.cancel()


async def gone(request: Request) -> None:
    """Wait until the client of a request, whose body has been read, has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def cancel_when_gone(request: Request, call: Call) -> None:
    """Cancel a call, whose body has been read, when its client goes."""
    await gone(request)
    call.cancel()


class EventStream(StreamingResponse):
    """Server-sent events of a call, which is cancelled where the client goes before the last."""

    def __init__(self, call: Call, events: AsyncIterator[str], headers: Mapping[str, str]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._call.cancel()
