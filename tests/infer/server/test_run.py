"""The server behind a real socket: a client that goes away, and an end that lets answers end."""

import json
import logging
import signal
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn

from seodang.data.errors import UserError
from seodang.infer import SamplingParams
from seodang.infer.engine.core import Engine
from seodang.infer.server import run
from seodang.infer.server.app import build_app
from seodang.infer.server.guard import limits
from seodang.infer.server.run import Server, address_of, bound
from seodang.infer.server.served import Served

TIMEOUT = 20  # seconds: of a wait that ends at once where all is well
GREEDY = {"model": "tiny", "prompt": "abc", "max_tokens": 6, "temperature": 0}


@contextmanager
def served(engine):
    """The engine behind a socket of this machine, served by a thread; yields the port and the server."""
    listening = bound("127.0.0.1", 0)
    listening.listen()
    server = Server(uvicorn.Config(build_app(Served(engine, "tiny")), log_level="warning", lifespan="on"), engine)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield listening.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join(TIMEOUT)
        assert not thread.is_alive() and not engine._thread.is_alive()


def sent(port: int, body: dict, missing: int = 0) -> socket.socket:
    """A connection on which a request has been sent, but for so many of its last bytes."""
    connection = socket.create_connection(("127.0.0.1", port), TIMEOUT)
    content = json.dumps({**GREEDY, **body}).encode()
    whole = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)
    connection.sendall(whole[: len(whole) - missing])
    return connection


def test_a_client_that_goes_away_frees_its_rows(engine):
    """While it is streamed to, while it waits for the whole, and while its request waits to come in."""
    with served(engine) as (port, _):
        for stream in (True, False):
            begun = threading.Event()
            told, engine._loop.take = engine._loop.take, lambda ticket: (told(ticket), tickets.append(ticket), begun.set())
            tickets = []
            connection = sent(port, {"max_tokens": 250, "stream": stream, "prompt": ["abc", "de"]})
            if stream:
                assert b"200 OK" in connection.recv(4096)
            assert begun.wait(TIMEOUT)
            connection.close()
            while len(tickets) < 2:
                time.sleep(0.001)
            reasons = [ticket.results(TIMEOUT)[0].finish_reason for ticket in tickets]
            engine._loop.take = told
            assert reasons == ["cancelled"] * 2, stream
        [result] = engine.submit([5], SamplingParams(max_new_tokens=2)).results(TIMEOUT)
    assert engine._loop.engine.runner.live == 0


def read_to_end(connection: socket.socket) -> str:
    parts = []
    while part := connection.recv(65_536):
        parts.append(part)
    return b"".join(parts).decode()


@pytest.mark.parametrize("drain", [TIMEOUT, 0.0])
def test_a_server_that_ends_lets_answers_end_or_says_that_they_were_broken_off(engine, monkeypatch, caplog, drain):
    monkeypatch.setattr(run, "DRAIN", drain)
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: time.sleep(0.002) or step(self))
    with served(engine) as (port, server):
        connection = sent(port, {"max_tokens": 100, "stream": True})
        head = connection.recv(4096).decode()
        server.should_exit = True
        while drain and engine.health().ok:
            time.sleep(0.001)
        assert not drain or "the server is closing: ask again" in (late := sent(port, {}).recv(4096).decode()) and late.startswith("HTTP/1.1 503")
        answer = head + read_to_end(connection)
    assert answer.endswith("data: [DONE]\n\n\r\n0\r\n\r\n")
    assert ('"finish_reason":"length"' in answer, "the request was cancelled: the server is closing" in answer) == (drain > 0, drain == 0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_who_sends_too_much_hears_so_and_not_that_the_connection_broke(engine):
    with served(engine) as (port, _):
        content = b"a" * (4 << 20)
        connection = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))
        assert read_to_end(connection).startswith("HTTP/1.1 413")


def test_a_body_that_does_not_come_keeps_nobody_waiting(engine, monkeypatch, caplog):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.05)
    with served(engine) as (port, server):
        answer = read_to_end(sent(port, {}, missing=5))  # the connection is closed: the rest would be no request
        assert answer.startswith("HTTP/1.1 408") and "the body did not come within 0.05 s" in answer
        monkeypatch.setattr(limits, "BODY_SECONDS", TIMEOUT)
        gone = sent(port, {}, missing=5)
        while len(server.server_state.tasks) < 1:
            time.sleep(0.001)
        gone.close()
        while server.server_state.tasks:
            time.sleep(0.001)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_second_ctrl_c_breaks_off_what_is_in_hand(engine, monkeypatch, caplog):
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: time.sleep(0.05) or step(self))
    with served(engine) as (port, server):
        connection = sent(port, {"max_tokens": 250, "stream": True})  # some 12 seconds
        assert b"200 OK" in connection.recv(4096)
        server.handle_exit(signal.SIGINT, None)
        while engine.health().ok:
            time.sleep(0.001)
        began = time.monotonic()
        server.handle_exit(signal.SIGINT, None)
        server._captured_signals.clear()
        assert "the request was cancelled: the server is closing" in read_to_end(connection)
    assert time.monotonic() - began < 5
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_address_that_cannot_be_had_is_refused():
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert address_of(taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match=rf"cannot serve at 127.0.0.1 port {port} \(Address already in use\)"):
            bound("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot serve at no.such.host.invalid port 0"):
        bound("no.such.host.invalid", 0)
    with pytest.raises(UserError, match="cannot serve at a{70} port 0"):  # no label of a name may be so long
        bound("a" * 70, 0)
