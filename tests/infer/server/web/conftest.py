"""A server for the page's tests: the real app over a tiny model, where answers can be written in advance, held back, or refused."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from live_server import behind_a_socket
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from seodang.infer.engine.live import LiveEngine
from seodang.infer.server.app import build_app
from seodang.infer.server.served import Served


@dataclass
class Script:
    """What a request is answered: its pieces of text, after the `held`-th of which it waits for `go`; or deltas, events of a trace, steps, an error."""

    pieces: list[Any] = field(default_factory=list)
    held: int | None = None
    error: tuple[int, str, dict[str, str]] | None = None  # status, message, headers
    go: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)  # the client went away while it was held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.error:
            status, message, headers = self.error
            body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
            return await JSONResponse(body, status, headers)(scope, receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        watch = asyncio.create_task(self.watch(receive))
        for place, piece in enumerate(self.pieces):
            while place == self.held and not (self.go.is_set() or self.gone.is_set()):
                await asyncio.sleep(0.01)
            if self.gone.is_set():
                return
            if isinstance(piece, dict) and {"trace", "step"} & piece.keys():
                await self.chunk(send, {"choices": [], **piece})
                continue
            delta = piece if isinstance(piece, dict) else {"content": piece}
            await self.chunk(send, {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        await self.chunk(send, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 12, "completion_tokens": len(self.pieces), "prompt_tokens_details": {"cached_tokens": 5}}
        await self.chunk(send, {"choices": [], "usage": usage})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        watch.cancel()

    async def watch(self, receive: Receive) -> None:
        """Notice when the client goes."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone.set()

    async def chunk(self, send: Send, value: dict[str, Any]) -> None:
        """Send a chunk of the stream."""
        await send({"type": "http.response.body", "body": f"data: {json.dumps(value)}\n\n".encode(), "more_body": True})


class Scripted:
    """The app, which answers chats by `scripts` while there are some; all bodies of chats are kept, with the key that each was sent with."""

    def __init__(self, app: ASGIApp):
        self.app, self.scripts, self.bodies, self.keys = app, [], [], []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = dict(scope["headers"]).get(b"authorization", b"").decode()
        if scope["path"] != "/v1/chat/completions":
            return await self.app(scope, receive, send)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(json.loads(body))
        self.keys.append(given)
        if self.scripts:
            return await self.scripts.pop(0)(scope, receive, send)
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return messages.pop() if messages else await receive()

        return await self.app(scope, again, send)


@contextmanager
def scripted_server(model, tokenizer, name: str = "pupil") -> Iterator[tuple[str, Scripted]]:
    """Serve a model behind a socket of this machine; yields where, and what scripts its answers."""
    with LiveEngine(model, tokenizer, max_rows=8) as engine:
        app = Scripted(build_app(Served(engine, name, answer_tokens=24)))
        with behind_a_socket(app, engine) as address:
            yield f"{address}/", app


@pytest.fixture(scope="module")
def _server(tiny_llama, byte_tokenizer):
    with scripted_server(tiny_llama, byte_tokenizer(128)) as server:
        yield server


@pytest.fixture
def server(_server):
    """Where the page is, and the app, whose next answers are those of its `scripts`."""
    address, app = _server
    app.scripts, app.bodies, app.keys, open_to_all = [], [], [], app.app
    yield address, app
    app.app = open_to_all
    for script in app.scripts:
        script.go.set()


@pytest.fixture
def script(server):
    """`script(*pieces, held=None, error=None)`: write the next answer in advance."""

    def write(*pieces, **more) -> Script:
        server[1].scripts.append(Script(list(pieces), **more))
        return server[1].scripts[-1]

    return write


@pytest.fixture
def chat(browse, server):
    """`chat(**context)`: the page, ready, in a browser."""

    def open_page(**context):
        page = browse(server[0], **context)
        page.wait_for_selector("body.ready")
        return page

    return open_page


@pytest.fixture
def say():
    """`say(page, text)`: send a message and wait for the end of its answer."""

    def say(page, text: str) -> None:
        page.fill("#message", text)
        page.press("#message", "Enter")
        page.wait_for_selector("#send:not([hidden])")
        page.wait_for_selector("article.assistant:not([aria-busy=true])")

    return say
