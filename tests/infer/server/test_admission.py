"""How much is in hand at a time and for how long: too many requests, too many bytes, and answers that are not there in time."""

import asyncio
import json
import threading
import time

import pytest
from fastapi.testclient import TestClient

from seodang.infer.engine.core import Engine
from seodang.infer.server import completions
from seodang.infer.server.app import build_app
from seodang.infer.server.guard import admission
from seodang.infer.server.guard.admission import Admission
from seodang.infer.server.served import Served

TIMEOUT = 20  # seconds: of a wait that ends at once where all is well
GREEDY = {"model": "tiny", "prompt": "abc", "max_tokens": 200, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def slow(client, monkeypatch):
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: time.sleep(0.01) or step(self))


@pytest.fixture
def client(engine):
    with TestClient(build_app(Served(engine, "tiny"), request_seconds=0.5), raise_server_exceptions=False) as client:
        client.post("/v1/completions", json={**GREEDY, "max_tokens": 1})  # the first pass of all takes longer
        yield client


def test_an_answer_that_is_not_there_in_time_is_a_408_that_is_not_asked_again_and_its_rows_come_free(client, engine, slow, is_empty):
    began = time.perf_counter()
    response = client.post("/v1/completions", json={**GREEDY, "prompt": ["abc", "de"]})
    assert response.status_code == 408 and response.headers["x-should-retry"] == "false" and 0.4 < time.perf_counter() - began < 4
    error = response.json()["error"]
    assert error["code"] == "request_timeout" and "--request_seconds" in error["message"]
    assert is_empty(engine)
    assert client.post("/v1/completions", json={**GREEDY, "max_tokens": 1}).status_code == 200


def test_a_stream_that_takes_too_long_ends_by_an_error_event_and_its_rows_come_free(client, engine, slow, is_empty):
    *parts, last, done, end = client.post("/v1/completions", json={**GREEDY, "stream": True}).text.split("\n\n")
    assert parts and (done, end) == ("data: [DONE]", "")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "request_timeout"
    assert not any('"finish_reason":"' in part for part in parts)
    assert is_empty(engine)
    answer = client.post("/v1/responses", json={"model": "tiny", "input": "abc", "max_output_tokens": 200, "stream": True, "temperature": 0, "ignore_eos": True})
    assert answer.text.split("\n\n")[-2].startswith("event: error\n") and "request_timeout" in answer.text and "response.completed" not in answer.text


def test_the_time_to_wait_and_to_be_encoded_counts_too(client, engine, monkeypatch, is_empty):
    """Behind a step that lasts, and behind an encoding that does: a request that is handed in only afterwards is cancelled."""
    go, step = threading.Event(), Engine.step
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", lambda self: go.wait(TIMEOUT) and step(self))
        assert client.post("/v1/completions", json=GREEDY).status_code == 408
        assert client.post("/v1/embeddings", json={"input": "abc"}).status_code == 408
        go.set()
    assert is_empty(engine)
    with engine._encoding:
        assert client.post("/v1/completions", json=GREEDY).status_code == 408
    assert is_empty(engine)
    monkeypatch.setattr(completions.Completion, "__init__", lambda *given: time.sleep(0.7))
    assert client.post("/v1/completions", json=GREEDY).status_code == 408


def test_beyond_so_many_requests_or_bytes_at_a_time_no_body_is_read(monkeypatch):
    """Two requests of the three that may be in hand wait for the rest of their bodies, then three; each answer tells how many bytes it has read."""
    monkeypatch.setattr(admission, "BODIES", 1000)

    async def app(scope, receive, send) -> None:
        size, more = 0, True
        try:
            while more:
                message = await receive()
                size, more = size + len(message["body"]), message["more_body"]
        except admission.ApiError as error:
            size = error.status
        await send({"type": "http.response.start", "status": size, "headers": []})

    async def run() -> None:
        bounded = Admission(app, requests=3)

        async def ask(size: int, rest: asyncio.Event | None = None, method: str = "POST") -> tuple[int, int]:
            said, read = [], 0

            async def receive() -> dict:
                nonlocal read
                read += 1
                if read == 2:
                    await rest.wait()
                return {"type": "http.request", "body": b"x" * size if read == 1 else b"", "more_body": rest is not None and read == 1}

            async def send(message) -> None:
                said.append(message)

            scope = {"type": "http", "method": method, "path": "/", "headers": [], "query_string": b""}
            await bounded(scope, receive, send)
            return said[0]["status"], read

        rest = asyncio.Event()
        waiting = [asyncio.create_task(ask(400, rest)) for _ in range(2)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert await ask(200) == (200, 1)
        assert await ask(201) == (429, 1)  # 1,001 bytes
        waiting.append(asyncio.create_task(ask(0, rest)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert await ask(0) == (429, 0)
        assert await ask(1, method="GET") == (1, 1)
        rest.set()
        assert [status for status, _ in await asyncio.gather(*waiting)] == [400, 400, 0]
        assert await ask(1000) == (1000, 1)
        assert bounded._requests == bounded._bytes == 0

    asyncio.run(run())


def test_a_client_that_reads_nothing_is_let_go(monkeypatch):
    monkeypatch.setattr(admission, "LAST_WORDS", 0.05)
    cancelled = []

    async def app(scope, receive, send) -> None:
        try:
            await asyncio.sleep(TIMEOUT)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def run() -> list:
        said: list = []

        async def send(message) -> None:
            said.append(message)

        await Admission(app, requests=1, seconds=0.05)({"type": "http", "method": "POST", "path": "/", "headers": []}, None, send)
        return said

    assert asyncio.run(run())[0]["status"] == 408 and cancelled == [True]
