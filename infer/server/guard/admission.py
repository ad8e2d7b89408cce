"""How much is taken in hand at a time, and for how long: requests, the bytes of their bodies, and the seconds of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, answer_by_error

REQUEST_SECONDS = 600.0
BODIES = 128 << 20  # bytes of all bodies in hand together; what Python makes of one may be ten times as much
LAST_WORDS = 5.0  # seconds beyond a request's own, in which its client can read that they are over
UNTIL: ContextVar[float] = ContextVar("until")  # by the event loop's clock: when the request that is being answered has to be


class Admission:
    """Has each request answered within so many seconds from when it comes, and refuses those with a body (429) beyond so many, or so many bytes, at a time.

    Who waits for an answer is told of the end by `in_time`. What cannot be told any more, for the client does not read, is broken off `LAST_WORDS` later.
    """

    def __init__(self, app: ASGIApp, requests: int, seconds: float = REQUEST_SECONDS):
        self._app, self._most, self._seconds = app, requests, seconds
        self._requests = self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        begun, taken = False, 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            size = len(message.get("body", b""))
            if self._bytes + size > BODIES:
                raise ApiError(429, f"the bodies in hand have {BODIES} bytes already: ask again later", code="queue_full")
            taken += size
            self._bytes += size
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        if self._requests >= self._most:
            error = ApiError(429, f"{self._requests} requests are in hand already, as many as may be: ask again later", code="queue_full")
            return await (await answer_by_error(Request(scope), error))(scope, receive, send)
        self._requests += 1
        until = asyncio.get_running_loop().time() + self._seconds
        token = UNTIL.set(until)
        try:
            async with asyncio.timeout_at(until + LAST_WORDS):
                await self._app(scope, counted, noted)
        except TimeoutError:
            if not begun:
                await (await answer_by_error(Request(scope), too_late()))(scope, receive, send)
        finally:
            UNTIL.reset(token)
            self._requests -= 1
            self._bytes -= taken


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """Wait within for no longer than the request that is being answered may take: raises ApiError (408) then."""
    try:
        async with asyncio.timeout_at(UNTIL.get(None)):
            yield
    except TimeoutError:
        raise too_late() from None


def too_late() -> ApiError:
    """The error of a request that is not answered in time: to ask again would take as long."""
    told = "the answer was not there within the seconds that a request may take here (--request_seconds): ask for fewer tokens, or fewer answers at a time"
    return ApiError(408, told, code="request_timeout")
