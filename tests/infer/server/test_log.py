"""The id that every response carries, and the line that every request leaves in the log: what it says, and that it says no text."""

import asyncio
import json
import logging
import threading

import pytest
from fastapi.testclient import TestClient

from seodang.infer import generate
from seodang.infer.engine.core import Engine
from seodang.infer.engine.params import SamplingParams
from seodang.infer.server import answering
from seodang.infer.server.app import build_app
from seodang.infer.server.log import DEFECTS, hide_words
from seodang.infer.server.served import Served

TIMEOUT = 20  # seconds: of a wait that ends at once where all is well
GREEDY = {"model": "tiny", "prompt": "abc", "max_tokens": 6, "temperature": 0, "ignore_eos": True}
CANARY = "canary-4711"


@pytest.fixture
def client(engine, caplog):
    caplog.set_level(logging.DEBUG)
    with TestClient(build_app(Served(engine, "tiny")), raise_server_exceptions=False) as client:
        yield client


def lines(caplog) -> list[dict]:
    """What the server has logged of its requests so far."""
    return [json.loads(record.message) for record in caplog.records if record.name == "seodang.server"]


def post(client, id: str | None = None, **changes):
    return client.post("/v1/completions", json={**GREEDY, **changes}, headers={} if id is None else {"X-Request-ID": id})


def test_every_response_carries_the_callers_id_or_a_new_one(client, monkeypatch):
    asked = {
        "whole": lambda id: post(client, id), "stream": lambda id: post(client, id, stream=True), "mistake": lambda id: post(client, id, top_p=7),
        "unknown": lambda id: client.get("/no/such/path", headers={"x-request-id": id}),
        "method": lambda id: client.get("/v1/completions", headers={"x-request-id": id}),
        "metrics": lambda id: client.get("/metrics", headers={"x-request-id": id}),
    }  # fmt: skip
    for name, ask in asked.items():
        assert ask(f"mine-{name} 1").headers["x-request-id"] == f"mine-{name} 1"
    with monkeypatch.context() as patch:
        patch.setattr(answering, "usage", lambda call: 1 / 0)
        broken = post(client, "mine")
    assert (broken.status_code, broken.headers["x-request-id"], broken.json()["error"]["type"]) == (500, "mine", "server_error")
    assert post(client, "a" * 128).headers["x-request-id"] == "a" * 128
    new = [post(client, id).headers["x-request-id"] for id in (None, "", "a" * 129, "caf\u00e9".encode("latin-1"), b"tab\there")]
    assert len(set(new)) == 5 and all(id.startswith("req-") and len(id) == 36 for id in new)


def test_a_request_leaves_one_line_of_counts_and_times(client, caplog):
    post(client, "whole", prompt=["b" * 100, "de"], n=2, temperature=1.0)
    post(client, "stream", prompt="b" * 100, stream=True)
    post(client, "stopped", stop=[generate_text(client)[2]])
    post(client, "mistake", top_p=7)
    client.post("/v1/embeddings", json={"input": ["ab", "cde"]}, headers={"x-request-id": "vectors"})
    client.get("/health?token=" + CANARY, headers={"x-request-id": "health"})
    found = {line["id"]: line for line in lines(caplog)}
    assert len(lines(caplog)) == 7 and {record.levelno for record in caplog.records if record.name == "seodang.server"} == {logging.INFO}
    times = {id: (line.pop("first_token_ms", None), line.pop("total_ms")) for id, line in found.items()}
    answered = {"method": "POST", "path": "/v1/completions", "status": 200}
    counts = lambda prompt, cached, written, *reasons: {
        "prompt_tokens": prompt, "cached_tokens": cached, "completion_tokens": written, "finish_reasons": [*reasons],
    }  # fmt: skip
    assert found["whole"] == {"id": "whole", **answered, **counts(102, 0, 24, *["length"] * 4)}
    assert found["stream"] == {"id": "stream", **answered, **counts(100, 99, 6, "length")}
    assert found["stopped"] == {"id": "stopped", **answered, **counts(3, 2, 3, "stop")}
    assert found["mistake"] == {"id": "mistake", "method": "POST", "path": "/v1/completions", "status": 400}
    assert found["vectors"] == {"id": "vectors", "method": "POST", "path": "/v1/embeddings", "status": 200, **counts(5, 0, 0, "stop", "stop")}
    assert found["health"] == {"id": "health", "method": "GET", "path": "/health", "status": 200}
    assert all(0 < first < total for first, total in (times[id] for id in ("whole", "stream", "stopped")))
    assert times["vectors"][0] is times["health"][0] is None and min(total for _, total in times.values()) >= 0


def generate_text(client) -> str:
    return post(client, "asked").json()["choices"][0]["text"]


def test_a_path_is_logged_as_one_short_word(client, caplog):
    client.get("/no%0Asuch%22path/" + "x" * 200)
    [line] = lines(caplog)
    assert line["path"].startswith("/no%0Asuch%22path/xxx") and len(line["path"]) == 128 and line["status"] == 404


def test_no_text_of_prompts_or_answers_is_logged(client, caplog, engine, tiny_llama, tiny_tokenizer, monkeypatch):
    [result] = generate(tiny_llama, tiny_tokenizer, [CANARY], SamplingParams(max_new_tokens=12, ignore_eos=True))
    answer = post(client, prompt=CANARY, max_tokens=12).json()["choices"][0]["text"]
    assert answer == result.text and len(answer) >= 10
    parts = post(client, prompt=CANARY, max_tokens=12, stream=True).text.split("\n\n")[:-2]
    assert answer == "".join(json.loads(part[6:])["choices"][0]["text"] for part in parts)
    refused = [
        post(client, prompt={"text": CANARY}), post(client, prompt=CANARY * 40), post(client, stop=[CANARY] * 99), post(client, echo=CANARY),
        post(client, model=CANARY), post(client, guided_regex=f"({CANARY}"), post(client, bad_words=CANARY), post(client, **{CANARY: 1}),
        client.post("/v1/completions", content=b'{"prompt": "' + CANARY.encode(), headers={"Content-Type": "application/json"}), client.get(f"/health?prompt={CANARY}"),
        client.post("/v1/embeddings", json={"input": CANARY, "dimensions": 5}),
    ]  # fmt: skip
    assert [each.status_code for each in refused] == [400] * 4 + [404, 400, 200] + [400] * 2 + [200, 400]
    assert sum(CANARY in each.text for each in refused) > 3  # the client is told
    with monkeypatch.context() as patch:
        patch.setattr(answering, "usage", lambda call: 1 / 0)
        assert post(client, prompt=CANARY, max_tokens=12).status_code == 500
        assert "internal error" in post(client, prompt=CANARY, max_tokens=12, stream=True, stream_options={"include_usage": True}).text
        patch.setattr("seodang.infer.requests.sequence.TokenSequence.commit", lambda *given: 1 / 0)
        post(client, prompt=CANARY, max_tokens=12)
    ours = [record for record in caplog.records if not record.name.startswith("http")]  # that is the client's own
    told = "\n".join(f"{record.__dict__} {logging.Formatter().format(record)}" for record in ours)
    assert "ZeroDivisionError" in told and len(lines(caplog)) == 2 + len(refused) + 3
    assert CANARY not in told and answer not in told and json.dumps(answer)[1:-1] not in told


def test_a_client_that_goes_away_is_logged_as_gone(engine, caplog, monkeypatch):
    """Before the whole answer, and within a stream; what its answers ended by is said."""
    caplog.set_level(logging.INFO)
    step, go = Engine.step, threading.Event()

    def gated(self) -> bool:
        if self.runner.positions > 5:
            assert go.wait(TIMEOUT)
        return step(self)

    monkeypatch.setattr(Engine, "step", gated)
    app = build_app(Served(engine, "tiny"))
    for stream in (False, True):
        go.clear()
        engine._loop.engine.runner.positions = 0
        messages = [{"type": "http.request", "body": json.dumps({**GREEDY, "max_tokens": 99, "stream": stream}).encode(), "more_body": False}]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [(b"content-type", b"application/json")], "query_string": b"", "http_version": "1.1", "scheme": "http"}

        async def receive() -> dict:
            while not messages and engine._loop.engine.runner.positions <= 5:
                await asyncio.sleep(0.001)
            if messages:
                return messages.pop()
            asyncio.get_running_loop().call_later(0.05, go.set)
            return {"type": "http.disconnect"}

        async def send(message) -> None:
            pass

        asyncio.run(app(scope, receive, send))
        go.set()
        line = lines(caplog)[-1]
        assert (line["status"], line["finish_reasons"], line["prompt_tokens"]) == (499, ["cancelled"], 3) and line["completion_tokens"] < 99


@pytest.fixture
def hidden():
    """Exceptions are logged as the command has them logged, and afterwards as before."""
    before = {name: list(logging.getLogger(name).filters) for name in DEFECTS}
    hide_words()
    hide_words()  # which changes nothing more
    assert all(len(logging.getLogger(name).filters) == len(each) + 1 for name, each in before.items())
    yield
    for name, each in before.items():
        logging.getLogger(name).filters[:] = each


def raising(*given, **how):
    try:
        {}[CANARY]
    except KeyError as error:
        raise RuntimeError(f"of {CANARY}") from error


@pytest.mark.parametrize(
    "place",
    [
        "seodang.infer.server.answering.usage", "seodang.infer.requests.sequence.TokenSequence.commit", "seodang.infer.engine.live.new_requests",
        "seodang.infer.server.completions.settings_of", "seodang.infer.server.calls.Call._hear", "seodang.infer.engine.core.Engine._admit",
    ],
)  # fmt: skip
def test_a_defect_whose_words_are_a_prompts_is_logged_and_told_without_them(engine, caplog, monkeypatch, hidden, place):
    """Wherever it is: where it was raised is in the log. Neither its client nor any other is told its words."""
    caplog.set_level(logging.DEBUG)
    app = build_app(Served(engine, "tiny"))
    with TestClient(app, raise_server_exceptions=False) as client:
        with monkeypatch.context() as patch:
            patch.setattr(place, raising)
            told = [] if place.endswith("_hear") else [post(client).text, post(client, stream=True, stream_options={"include_usage": True}).text]
            if place.endswith("_hear"):
                ticket = engine.submit("abc", SamplingParams(max_new_tokens=2), on_event=raising)
                ticket.wait(TIMEOUT)
        told += [client.get("/health").text, post(client).text]
    assert not any(CANARY in each for each in told)
    logged = "\n".join(f"{record.__dict__} {logging.Formatter().format(record)}" for record in caplog.records if not record.name.startswith("http"))
    assert CANARY not in logged and (place.endswith(("live.new_requests", "settings_of")) or "in raising" in logged and "RuntimeError" in logged)


def test_what_is_left_of_an_exception_is_where_it_was_raised_and_of_what_kind(hidden, caplog):
    try:
        raising()
    except RuntimeError:
        logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=True)
    told = logging.Formatter().format(caplog.records[-1])
    assert "KeyError\n\nwhich led to\n\n" in told and told.endswith("\nRuntimeError") and told.count("in raising") == 2 and CANARY not in told
