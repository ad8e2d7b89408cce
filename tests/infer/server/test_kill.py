"""The server killed in the midst of answers: its clients see that the connection broke, never half an answer that claims to be whole, and it can be had again at once."""

import http.client
import json
import os
import signal
import socket
import time

import pytest

from seodang.infer.engine.core import Engine
from seodang.infer.engine.live import LiveEngine
from seodang.infer.server.run import bound, serve
from seodang.infer.server.served import Served

TIMEOUT = 20  # seconds: of a wait that ends at once where all is well
GREEDY = {"temperature": 0, "ignore_eos": True}
STREAMS = {
    "/v1/completions": {"prompt": ["abc", "de"], "max_tokens": 200}, "/v1/chat/completions": {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 200},
    "/v1/responses": {"input": "abc", "max_output_tokens": 200},
}  # fmt: skip
WHOLE = [*STREAMS.items(), ("/v1/completions", {"prompt": "abc", "max_tokens": 200, "n": 2, "temperature": 1.0, "logprobs": 5})]

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"), pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]


def start(model, tokenizer, port: int) -> int:
    """Serve a model in a process of its own, 10 ms a step; its id, as soon as it answers."""
    if (child := os.fork()) == 0:
        try:
            step = Engine.step
            Engine.step = lambda engine: time.sleep(0.01) or step(engine)
            with bound("127.0.0.1", port) as listening, LiveEngine(model, tokenizer, max_rows=16) as engine:
                listening.listen(64)
                serve(Served(engine, "tiny"), listening)
        finally:
            os._exit(1)
    until = time.monotonic() + TIMEOUT
    while True:
        try:
            assert json.load(asked(port, "/health"))["running"] == 0
            return child
        except ConnectionRefusedError:
            assert os.waitpid(child, os.WNOHANG)[0] == 0 and time.monotonic() < until
            time.sleep(0.01)


def sent(port: int, path: str, body: dict) -> http.client.HTTPConnection:
    """A connection on which something has been asked."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    connection.request("POST", path, json.dumps({**GREEDY, **body}), {"Content-Type": "application/json"})
    return connection


def asked(port: int, path: str, body: dict | None = None) -> http.client.HTTPResponse:
    """An answer, of which the head has come."""
    if body is not None:
        return sent(port, path, body).getresponse()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    connection.request("GET", path)
    return connection.getresponse()


def test_a_kill_breaks_answers_off_and_the_server_is_back_on_the_same_port(tiny_llama, tiny_tokenizer):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    short = {"prompt": "abc", "max_tokens": 8}
    child = start(tiny_llama, tiny_tokenizer, port)
    before = json.load(asked(port, "/v1/completions", short))["choices"]
    waiting = [sent(port, path, body) for path, body in WHOLE]
    streams = {path: asked(port, path, {**body, "stream": True}) for path, body in STREAMS.items()}
    begun = {path: b"".join(stream.readline() for _ in range(12)) for path, stream in streams.items()}  # frames of a token or two
    assert json.load(asked(port, "/health"))["running"] >= len(WHOLE) + len(STREAMS)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    for connection in waiting:
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):  # not a byte of it came
            connection.getresponse()
    for path, stream in streams.items():
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)) as broken:
            stream.read()
        said = (begun[path] + getattr(broken.value, "partial", b"")).decode()
        assert said.count("data: ") > 2 and "[DONE]" not in said and '"finish_reason":"' not in said
        assert not any(end in said for end in ("response.completed", "response.incomplete", "event: error", '"error":{'))
    again = start(tiny_llama, tiny_tokenizer, port)  # while its last clients still hold their ends of the connections
    try:
        answer = asked(port, "/v1/completions", short)
        content = answer.read()
        assert int(answer.headers["Content-Length"]) == len(content) and json.loads(content)["choices"] == before  # by its length, half of it is none
    finally:
        os.kill(again, signal.SIGKILL)
        os.waitpid(again, 0)
