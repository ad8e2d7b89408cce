"""Heads of requests over a real socket: one that is too large is a 431 whose memory is not kept, one that does not come leaves its connection closed."""

import json
import socket
import threading
import time

import pytest
import uvicorn

from seodang.infer.server.app import build_app
from seodang.infer.server.guard import heads
from seodang.infer.server.guard.heads import MAX_HEAD
from seodang.infer.server.run import Server, bound
from seodang.infer.server.served import Served

TIMEOUT = 20  # seconds: of a wait that ends at once where all is well
FIRST = b"GET /version HTTP/1.1\r\nHost: x\r\n"
CONTENT = json.dumps({"model": "tiny", "prompt": "abc", "max_tokens": 1}).encode() + b" " * 2000
POSTED = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(CONTENT), CONTENT)


@pytest.fixture
def connect(engine):
    """A function that connects with a server."""
    with bound("127.0.0.1", 0) as listening:
        listening.listen()
        server = Server(uvicorn.Config(build_app(Served(engine, "tiny")), log_level="warning", lifespan="on"), engine)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield lambda: socket.create_connection(listening.getsockname()[:2], TIMEOUT)
        server.should_exit = True
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def answer(connection: socket.socket) -> bytes:
    """What comes until the connection is closed, or has an answer whole."""
    said = b""
    while part := connection.recv(65_536):
        said += part
        head, _, body = said.partition(b"\r\n\r\n")
        if body and b"ontent-length: %d\r" % len(body) in head + b"\r":
            break
    return said


@pytest.mark.parametrize("piece", [b"X-Long: " + b"a" * 2000, b"X: %s\r\n" % (b"a" * 990)], ids=["one header", "many headers"])
def test_a_head_that_is_too_large_is_a_431_before_it_ends(connect, piece):
    connection = connect()
    connection.sendall(FIRST)
    with pytest.raises(OSError):  # soon nobody reads it any more
        for _ in range(3000):
            connection.sendall(piece)
            time.sleep(0.0005)
    with connect() as other:
        other.sendall(FIRST + b"X: " + b"a" * (MAX_HEAD - len(FIRST) - 100) + b"\r\n\r\n")
        assert answer(other).startswith(b"HTTP/1.1 200")


def test_its_client_hears_why(connect):
    connection = connect()
    connection.sendall(FIRST + b"X: " + b"a" * MAX_HEAD)
    assert answer(connection).startswith(b"HTTP/1.1 431") and connection.recv(1) == b""


def test_a_head_that_does_not_come_leaves_its_connection_closed_and_a_body_has_its_own_time(connect, monkeypatch):
    monkeypatch.setattr(heads, "HEAD_SECONDS", 0.3)
    silent, slow, second, body = connect(), connect(), connect(), connect()
    slow.sendall(FIRST)
    second.sendall(FIRST + b"\r\n")
    assert answer(second).startswith(b"HTTP/1.1 200")
    second.sendall(b"GET /ver")  # of a connection that had an answer
    body.sendall(POSTED[:-5])
    began = time.monotonic()
    assert [connection.recv(1) for connection in (silent, slow, second)] == [b""] * 3 and time.monotonic() - began < 5
    body.sendall(POSTED[-5:])
    assert answer(body).startswith(b"HTTP/1.1 200")


def test_a_body_is_no_part_of_the_next_head(connect, monkeypatch):
    monkeypatch.setattr(heads, "MAX_HEAD", 300)
    connection = connect()
    connection.sendall(POSTED + FIRST)
    time.sleep(0.2)
    connection.sendall(b"\r\n")
    said = b""
    while said.count(b"HTTP/1.1 200") < 2:
        part = connection.recv(65_536)
        assert part, said
        said += part
