"""An id for every request, and a line in the log at its end: counts and times, never a word of a prompt or an answer."""

from __future__ import annotations

import json
import logging
import traceback
import uuid
from urllib.parse import quote

from fastapi import FastAPI, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..engine.live import LiveEngine
from .guard.errors import answer_by_error
from .metrics import WATCH, Metrics, Watch, metric_routes

log = logging.getLogger("seodang.server")

ID = "x-request-id"
LONGEST_ID = LONGEST_PATH = 128  # characters
DEFECTS = ("seodang.infer.engine.loop", "seodang.infer.server.answering", "uvicorn.error", "asyncio")  # loggers that are handed exceptions
GONE = 499  # the status of a request whose client went away, as proxies write it


def add_log_and_metrics(app: FastAPI, engine: LiveEngine) -> None:
    """Have every request of an app answered with its id, logged at its end and counted, and /metrics tell the counts."""
    metrics = Metrics(engine)
    app.include_router(metric_routes(metrics))
    app.add_middleware(RequestLog, metrics=metrics)


def show_log() -> None:
    """Write the lines to standard error, unless whoever runs this has said already where they go."""
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)


class NoWords(logging.Filter):
    """Leaves of an exception that is logged its kind and where it was raised: its words may be those of a prompt."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text, record.exc_info = without_words(record.exc_info[1]), None
        return True


def hide_words() -> None:
    """Have the loggers that tell of defects leave out the words of exceptions, from now on."""
    for name in DEFECTS:
        logger = logging.getLogger(name)
        if not any(isinstance(each, NoWords) for each in logger.filters):
            logger.addFilter(NoWords())


def without_words(error: BaseException) -> str:
    """A traceback in which each exception is told by its kind alone."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    told = "" if before is None else without_words(before) + "\n\nwhich led to\n\n"
    inner = "".join(f"\n{without_words(each)}" for each in error.exceptions) if isinstance(error, BaseExceptionGroup) else ""
    return f"{told}{''.join(traceback.format_tb(error.__traceback__))}{type(error).__name__}{inner}"


class RequestLog:
    """Gives each response the request's `x-request-id`, and at its end logs one JSON object at INFO on the logger "seodang.server".

    It has id, method, path (without its query) and status; where the model was asked, prompt_tokens, cached_tokens, completion_tokens,
    finish_reasons (one an answer) and first_token_ms; and total_ms.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        exchange, watch = Exchange(request_id(scope), receive, send), Watch(self._metrics)
        token = WATCH.set(watch)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:  # a defect: whoever catches it further out has no id to answer with
            if exchange.status is None:
                response = await answer_by_error(Request(scope), error)
                await response(scope, exchange.receive, exchange.send)
            raise
        finally:
            WATCH.reset(token)
            status = GONE if exchange.gone or exchange.status is None else exchange.status
            known = {"id": exchange.id, "method": scope["method"], "path": quote(scope["path"])[:LONGEST_PATH], "status": status}
            log.info(json.dumps({**known, **watch.end(route_of(scope), str(status))}))


class Exchange:
    """A request's messages on their way through: the response is given the id, and its status and an early end are noted."""

    def __init__(self, id: str, receive: Receive, send: Send):
        self.id, self._receive, self._send = id, receive, send
        self.status: int | None = None
        self.gone = False  # the client, before the last of the response
        self._over = False

    async def receive(self) -> Message:
        """Pass on what comes from the client."""
        message = await self._receive()
        self.gone |= message["type"] == "http.disconnect" and not self._over
        return message

    async def send(self, message: Message) -> None:
        """Pass on what goes to the client."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[ID] = self.id
        else:
            self._over |= message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)


def request_id(scope: Scope) -> str:
    """Return the caller's own id, unless it is none, longer than `LONGEST_ID`, or has characters that are not printable ASCII; then a new one."""
    given = Headers(scope=scope).get(ID, "").strip()
    return given if 0 < len(given) <= LONGEST_ID and given.isascii() and given.isprintable() else f"req-{uuid.uuid4().hex}"


def route_of(scope: Scope) -> str:
    """Return the path as the app declares it, so that there are only so many; "unknown" for one that it does not have."""
    return getattr(scope.get("route"), "path", "unknown")
