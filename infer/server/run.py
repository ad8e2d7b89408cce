"""The app behind a socket, until a signal ends it."""

from __future__ import annotations

import asyncio
import gc
import socket
import time

import uvicorn

from ...data.errors import UserError
from ..engine.live import LiveEngine
from .app import build_app
from .guard.access import Access
from .guard.admission import REQUEST_SECONDS
from .log import hide_words, show_log
from .served import Served

DRAIN = 20.0  # seconds that requests in hand may go on once a signal has come
LAST_WORDS = 2.0  # seconds beyond, in which their clients are told
CLOSING = "the server is closing: ask again when it is back, or ask another"


class Server(uvicorn.Server):
    """uvicorn's server, which bounds the heads of requests, and at its end has the engine refuse what comes (503) and finish what is in hand, for `DRAIN` seconds at most.

    A second Ctrl-C breaks that off. A connection whose client reads nothing is closed `LAST_WORDS` later.
    """

    def __init__(self, config: uvicorn.Config, engine: LiveEngine):
        super().__init__(config)
        config.http = http_protocol()
        self._engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what is in hand and close all connections."""
        until = time.monotonic() + DRAIN + LAST_WORDS
        closing = asyncio.create_task(asyncio.to_thread(self._engine.close, DRAIN, CLOSING))
        while not (closing.done() or self.force_exit):  # who comes meanwhile is answered still
            await asyncio.wait([closing], timeout=0.05)
        self.config.timeout_graceful_shutdown = max(until - time.monotonic(), LAST_WORDS)
        await super().shutdown(sockets)
        if self.force_exit:
            await asyncio.to_thread(self._engine.close)
            if self.server_state.tasks:
                await asyncio.wait(self.server_state.tasks, timeout=LAST_WORDS)
            await self.lifespan.shutdown()  # else its task is cancelled, with a traceback
        await closing


def serve(served: Served, listening: socket.socket, access: Access = Access(), request_seconds: float = REQUEST_SECONDS) -> None:
    """Serve a model to those who have access until SIGINT or SIGTERM, which is raised again at the end; the engine is closed by then. Each request leaves a line on stderr."""
    show_log()
    hide_words()
    gc.collect()
    gc.freeze()  # what is loaded by now stays: to walk all of it at each full collection would keep everybody waiting, for a second on a busy machine
    Server(uvicorn.Config(build_app(served, access, request_seconds), log_level="warning", lifespan="on"), served.engine).run([listening])


def http_protocol() -> type[asyncio.Protocol] | str:
    """Return how uvicorn is to read HTTP: without httptools by h11, which has a bound of its own for heads, of 64 KiB."""
    try:
        from .guard.heads import BoundedHeads
    except ModuleNotFoundError:
        return "h11"
    return BoundedHeads


def bound(host: str, port: int) -> socket.socket:
    """Return a socket at an address, port 0 for any that is free; raises UserError for one that cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, kind)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except OSError:
            found.close()
            raise
    except (OSError, UnicodeError) as error:  # a name that is none is told by either
        raise UserError(f"cannot serve at {host} port {port} ({getattr(error, 'strerror', error)}): give another --host or --port") from None
    return found


def address_of(listening: socket.socket) -> str:
    """Return the socket's address as clients write it."""
    host, port, *_ = listening.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
