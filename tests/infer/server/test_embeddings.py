"""/v1/embeddings: the vectors of `embed`, in both encodings, with their usage; each mistake by its field, and a client that goes away."""

import asyncio
import base64
import json
import struct
import threading

import pytest
import torch
from fastapi.testclient import TestClient

from seodang.infer import embed
from seodang.infer.engine.core import Engine
from seodang.infer.engine.embedding import EmbeddingTicket
from seodang.infer.engine.live import LiveEngine
from seodang.infer.engine.pace import Pace
from seodang.infer.server.app import build_app
from seodang.infer.server.served import Served

TIMEOUT = 20  # seconds: of a wait that ends at once where all is well


@pytest.fixture
def client(engine):
    with TestClient(build_app(Served(engine, "tiny"))) as client:
        yield client


def post(client, **body):
    return client.post("/v1/embeddings", json={"model": "tiny", **body})


def test_vectors_are_those_of_embed_for_a_text_ids_and_lists_of_them(client, tiny_llama, tiny_tokenizer):
    for given, prompts in (("abc", ["abc"]), ([5, 6, 7], [[5, 6, 7]]), (["abc", "de"], ["abc", "de"]), ([[5, 6], [7]], [[5, 6], [7]])):
        answer = post(client, input=given, user="somebody", dimensions=32).json()
        found = torch.tensor([each["embedding"] for each in answer["data"]])
        torch.testing.assert_close(found, embed(tiny_llama, tiny_tokenizer, prompts), rtol=0, atol=1e-6)
        assert [(each["object"], each["index"]) for each in answer["data"]] == [("embedding", i) for i in range(len(prompts))]
        tokens = sum(len(prompt) for prompt in prompts)  # a letter is a token
        assert (answer["object"], answer["model"], answer["usage"]) == ("list", "tiny", {"prompt_tokens": tokens, "total_tokens": tokens})


def test_base64_is_the_same_numbers_as_little_endian_float32(client):
    numbers = [each["embedding"] for each in post(client, input=["abc", "de"], encoding_format="float").json()["data"]]
    encoded = [each["embedding"] for each in post(client, input=["abc", "de"], encoding_format="base64").json()["data"]]
    assert [list(struct.unpack("<32f", base64.b64decode(each))) for each in encoded] == numbers


@pytest.mark.parametrize(
    "body, param, message",
    [
        ({}, "input", "input is missing"), ({"input": []}, "input", "must be a text"), ({"input": [1.5]}, "input", "must be a text"),
        ({"input": ""}, "input", "the input is empty"), ({"input": ["a", ""]}, "input", "input[1] is empty"), ({"input": [999]}, "input", "the id 999"),
        ({"input": "a" * 300}, "input", "the input has 300 tokens, more than the 256 positions"), ({"input": ["a"] * 5}, "input", "5 inputs are more than the 4"),
        ({"input": "a", "dimensions": 16}, "dimensions", "a vector of this model has 32: give 32, or leave it out"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "float"), ({"input": "a", "temperature": 1}, "temperature", "temperature"),
        ({"input": "a", "user": 5}, "user", "user"), ({"input": "\\ud800"}, None, "half"),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_what_is_wrong_is_a_400_that_names_the_field(client, body, param, message):
    content = json.dumps({"model": "tiny", **body}).replace("\\\\", "\\")
    response = client.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert message in error["message"], error["message"]


def test_another_model_is_a_404_and_one_without_states_a_400(client, tiny, tiny_tokenizer):
    assert post(client, input="a", model="other").json()["error"]["code"] == "model_not_found"
    with LiveEngine(tiny("t5"), tiny_tokenizer) as engine, TestClient(build_app(Served(engine, "tiny"))) as t5:
        response = post(t5, input="a")
    assert response.status_code == 400 and "t5 is an encoder-decoder model" in response.json()["error"]["message"]


def test_a_client_that_goes_away_frees_its_rows(tiny_llama, tiny_tokenizer, monkeypatch):
    """It goes where a part of its texts has been read, and no further part is before it is known."""
    step, cancel, cancelled, tickets = Engine.step, EmbeddingTicket.cancel, threading.Semaphore(0), []
    engine = LiveEngine(tiny_llama, tiny_tokenizer, pace=Pace(part=2, stall=None))
    runner, take = engine._loop.engine.runner, engine._loop.take

    def gated(self) -> bool:
        if runner.positions >= 4:
            assert all(cancelled.acquire(timeout=TIMEOUT) for _ in range(2))
        return step(self)

    monkeypatch.setattr(Engine, "step", gated)
    monkeypatch.setattr(EmbeddingTicket, "cancel", lambda self: (cancel(self), cancelled.release()))
    monkeypatch.setattr(engine._loop, "take", lambda ticket: (take(ticket), tickets.append(ticket)))
    messages = [{"type": "http.request", "body": json.dumps({"input": ["abcdefgh", "ijklmnop"]}).encode(), "more_body": False}]
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": [], "query_string": b"", "http_version": "1.1", "scheme": "http"}

    async def receive() -> dict:
        while not messages and runner.positions < 4:
            await asyncio.sleep(0.001)
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message) -> None:
        pass

    with engine:
        asyncio.run(build_app(Served(engine, "tiny"))(scope, receive, send))
        assert [ticket.results(TIMEOUT)[0].finish_reason for ticket in tickets] == ["cancelled"] * 2
        for _ in range(100):
            cancelled.release()
        assert engine.embed([5]).embedding(TIMEOUT).shape == (32,) and runner.live == 0
