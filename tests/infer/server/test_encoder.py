"""An encoder served: its vectors alone and among others', what it refuses by name, and what it says of itself."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fastapi.testclient import TestClient

from seodang.data.errors import UserError
from seodang.infer import SentenceEncoder
from seodang.infer.encoders.live import LiveEncoder
from seodang.infer.server.app import build_app
from seodang.infer.server.served import ServedEncoder

TIMEOUT = 20  # seconds: of a wait that ends at once where all is well
TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11 w12", "w9 w8"]
LONG = " ".join(f"w{number}" for number in range(40))


@pytest.fixture
def encoder(encoder_folder):
    return SentenceEncoder.open(encoder_folder, dtype="float32", device="cpu", normalise=True)


@pytest.fixture
def engine(encoder):
    with LiveEncoder(encoder, max_waiting=64) as engine:
        yield engine


@pytest.fixture
def client(engine):
    with TestClient(build_app(ServedEncoder(engine, "tiny"))) as client:
        yield client


def post(client, **body):
    return client.post("/v1/embeddings", json={"model": "tiny", **body})


def test_texts_of_unequal_lengths_go_through_the_encoder_together(engine, encoder):
    wanted, runner = encoder.embed(TEXTS), engine._loop.engine.runner
    passed, release = [], __import__("threading").Event()
    observe = runner.observe

    def watched(slots, ids, keep, layers):
        release.wait(TIMEOUT)
        passed.append(len(ids))
        return observe(slots, ids, keep, layers)

    runner.observe = watched
    tickets = [engine.embed("w1")] + [engine.embed(text) for text in TEXTS]  # the first may be under way before the others are there
    release.set()
    got = torch.stack([ticket.embedding(TIMEOUT) for ticket in tickets[1:]])
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
    assert len(passed) <= 2 and sum(passed) == 5 and max(passed) >= 4
    assert engine.rows_in_use == 0 and runner.live == 0


def test_vectors_over_http_for_texts_ids_and_many_clients(client, encoder):
    answer = post(client, input=TEXTS).json()
    found = torch.tensor([each["embedding"] for each in answer["data"]])
    torch.testing.assert_close(found, encoder.embed(TEXTS), rtol=0, atol=1e-6)
    assert answer["usage"] == {"prompt_tokens": 14 + 8, "total_tokens": 14 + 8} and "truncated" not in answer
    ids = encoder.tokenizer("w4")["input_ids"]
    torch.testing.assert_close(torch.tensor(post(client, input=ids).json()["data"][0]["embedding"]), found[1], rtol=0, atol=1e-6)
    with ThreadPoolExecutor(8) as pool:
        each = list(pool.map(lambda text: post(client, input=text).json()["data"][0]["embedding"], TEXTS * 4))
    torch.testing.assert_close(torch.tensor(each), found.repeat(4, 1), rtol=0, atol=1e-6)


def test_a_text_that_is_too_long_is_refused_or_cut_and_told(client, encoder):
    refused = post(client, input=["w1", LONG]).json()["error"]
    assert "input[1] has 42 tokens, more than the 32 that the encoder reads" in refused["message"] and refused["param"] == "input"
    answer = post(client, input=["w1", LONG], truncate=True).json()
    assert answer["truncated"] == [1] and answer["usage"]["prompt_tokens"] == 3 + 32
    torch.testing.assert_close(torch.tensor([each["embedding"] for each in answer["data"]]), encoder.embed(["w1", LONG]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "body, message",
    [
        ({"input": ""}, "the input is empty"), ({"input": [999]}, "999"), ({"input": "w1", "dimensions": 8}, "a vector of this model has 32"),
        ({"input": "w1", "prompt_name": "query"}, "prompt 'query' is none of the model's (none)"), ({"input": "w1", "temperature": 1}, "temperature is unknown"),
    ],
)  # fmt: skip
def test_mistakes_are_told(client, body, message):
    answer = post(client, **body)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_what_only_a_speaker_has_is_refused_by_name(client):
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/load_lora_adapter"):
        answer = client.post(path, json={"model": "tiny", "prompt": "w1"})
        assert answer.status_code == 404 and f"{path} is not here: tiny is an encoder" in answer.json()["error"]["message"]
    assert client.get("/").status_code == 404


def test_it_says_what_it_is(client):
    [told] = client.get("/v1/models").json()["data"]
    assert told["kind"] == "encoder" and told["max_model_len"] == 32 and told["defaults"] == {}
    assert told["runtime"]["runner"] == "encoder" and told["runtime"]["kernel"].startswith("torch ") and told["runtime"]["weights"] == "float32"
    assert told["embeddings"] == {"dimensions": 32, "pooling": ["mean"], "normalised": True, "prompts": {}}
    assert client.get("/health").json()["status"] == "ok" and client.get("/ready").status_code == 200
    assert "/v1/embeddings" in client.get("/openapi.json").json()["paths"] and client.get("/docs").status_code == 200
    assert client.post("/tokenize", json={"prompt": "w1"}).json()["count"] == 3
    assert "seodang_requests_running 0.0" in client.get("/metrics").text


def test_an_encoder_answers_nothing(engine):
    with pytest.raises(UserError, match="bert is an encoder: it turns texts into vectors and answers none"):
        engine.submit("w1")
    with pytest.raises(UserError, match="adapter is for models that speak"):
        engine.embed("w1", adapter="a")
