"""/metrics after known requests, counted by hand: tokens, answers, statuses and times, and what is in hand meanwhile."""

import threading
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from seodang.infer import SamplingParams
from seodang.infer.engine.core import Engine
from seodang.infer.engine.live import LiveEngine
from seodang.infer.requests.events import Committed, Finished
from seodang.infer.server.app import build_app
from seodang.infer.server.metrics import Metrics, Watch
from seodang.infer.server.served import Served

TIMEOUT = 20  # seconds: of a wait that ends at once where all is well
GREEDY = {"model": "tiny", "prompt": "abc", "max_tokens": 6, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def client(engine):
    with TestClient(build_app(Served(engine, "tiny")), raise_server_exceptions=False) as client:
        yield client


def metrics_of(text: str) -> dict:
    """Each sample's value by its name, or by its name and labels; created and bucket samples are left out."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples if not sample.name.endswith("_bucket")]
    return {(sample.name, *sample.labels.values()) if sample.labels else sample.name: sample.value for sample in samples}


def read(client) -> dict:
    response = client.get("/metrics")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain; version=")
    return metrics_of(response.text)


def test_what_was_asked_and_answered_is_counted(client, engine):
    before = read(client)
    assert before["seodang_generated_tokens_total"] == before["seodang_prompt_tokens_total"] == before["seodang_prefix_cache_bytes"] == 0
    assert before["seodang_cache_limit_bytes"] == engine.budget.limit and before["seodang_cache_reserved_bytes"] == 0
    post = lambda **changes: client.post("/v1/completions", json={**GREEDY, **changes}).status_code
    long = "b" * 100
    assert [post(), post(n=2, temperature=1.0), post(stream=True), post(prompt=[long, "de"]), post(prompt=long), post(top_p=7)] == [200] * 5 + [400]
    assert client.post("/v1/embeddings", json={"input": "abcd"}).status_code == 200 and client.get("/no/such/path").status_code == 404
    found = read(client)
    assert found["seodang_prompt_tokens_total"] == 3 + 3 + 3 + (100 + 2) + 100 + 4
    assert found["seodang_cached_prompt_tokens_total"] == 2 + 2 + 99
    assert found["seodang_generated_tokens_total"] == 6 * (1 + 2 + 1 + 2 + 1)
    assert (found["seodang_answers_total", "length"], found["seodang_answers_total", "stop"]) == (7, 1)
    assert found["seodang_time_to_first_token_seconds_count"] == 5 and found["seodang_time_between_tokens_seconds_count"] == 5 * 7
    requests = {key[1:]: value for key, value in found.items() if key[0] == "seodang_http_requests_total"}
    assert requests == {
        ("/v1/completions", "200"): 5, ("/v1/completions", "400"): 1, ("/v1/embeddings", "200"): 1, ("unknown", "404"): 1, ("/metrics", "200"): 1,
    }  # fmt: skip
    assert found["seodang_http_request_seconds_count", "/v1/completions"] == 6
    whole = found["seodang_http_request_seconds_sum", "/v1/completions"]
    assert 0 < found["seodang_time_to_first_token_seconds_sum"] + found["seodang_time_between_tokens_seconds_sum"] / 3 < whole
    assert found["seodang_prefix_cache_bytes"] == engine.prefix_cache.bytes > 0 and found["seodang_requests_running"] == 0


def test_what_is_in_hand_is_told_and_two_apps_count_apart(client, engine, tiny_llama, tiny_tokenizer, monkeypatch):
    go, held, step = threading.Event(), threading.Event(), Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: (held.set(), go.wait(TIMEOUT)) and step(self))
    tickets = [engine.submit([5], SamplingParams(max_new_tokens=2)) for _ in range(3)]
    assert held.wait(TIMEOUT)
    assert (read(client)["seodang_requests_waiting"], read(client)["seodang_requests_running"]) == (3, 0)
    with LiveEngine(tiny_llama, tiny_tokenizer) as other, TestClient(build_app(Served(other, "other"))) as second:
        assert read(second)["seodang_requests_waiting"] == 0 and second.get("/health").status_code == 200
        assert {key[1:]: value for key, value in read(second).items() if key[0] == "seodang_http_requests_total"} == {
            ("/metrics", "200"): 1, ("/health", "200"): 1,
        }  # fmt: skip
    go.set()
    assert [ticket.results(TIMEOUT)[0].finish_reason for ticket in tickets] == ["length"] * 3


def test_times_are_noted_by_answer_and_a_value_at_a_bound_lies_below_it(engine, monkeypatch):
    """By a clock of the test's, whose differences are exact."""
    times = iter([8.0, 8.25, 8.375, 8.5, 8.5, 11.5, 12.0])
    monkeypatch.setattr("seodang.infer.server.metrics.time", SimpleNamespace(perf_counter=lambda: next(times)))
    metrics = Metrics(engine)
    watch = Watch(metrics)
    for place, choice in ((0, 0), (0, 1), (0, 0), (1, 0), (1, 0)):  # the first after 0.25 s; 0.25 s and 3 s between two of an answer
        watch.hear(place, Committed(0, 0, 5, -1.0, "a", choice))
    watch.hear(0, Finished(0, "eos", 0))
    assert watch.first == 0.25 and watch.end("/x", "200") == {"total_ms": 4000.0}
    text = metrics.text().decode()
    assert metrics_of(text)["seodang_generated_tokens_total"] == 5 and metrics_of(text)["seodang_answers_total", "eos"] == 1
    for name, bounds in (("time_between_tokens", {"0.15": 0, "0.25": 1, "2.5": 1, "+Inf": 2}), ("time_to_first_token", {"0.1": 0, "0.25": 1, "+Inf": 1})):
        for bound, count in bounds.items():
            assert f'seodang_{name}_seconds_bucket{{le="{bound}"}} {count}.0\n' in text
    assert 'seodang_http_request_seconds_bucket{le="2.5",path="/x"} 0.0\n' in text
    assert 'seodang_http_request_seconds_bucket{le="5.0",path="/x"} 1.0\n' in text
