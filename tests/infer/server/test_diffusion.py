"""A served diffusion checkpoint: answers whole and streamed alike, steps in a trace, and what it cannot do refused as a client's mistake."""

import json

import pytest
from fastapi.testclient import TestClient

from seodang.infer import SamplingParams, generate
from seodang.infer.engine.live import LiveEngine
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.infer.server.app import build_app
from seodang.infer.server.served import Served

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Where?"}], "max_tokens": 8, "temperature": 0, "steps": 4, "ignore_eos": True}


@pytest.fixture(params=["bidirectional", "prompt_causal"])
def served(request, fresh_tiny, tiny_tokenizer):
    """A client, and the answer that it is to get."""
    model = fresh_tiny("llama")
    declare(model.config, Diffusion(127, 1, request.param))
    params = SamplingParams(max_new_tokens=8, steps=4, ignore_eos=True)
    [want] = generate(model, tiny_tokenizer, [ASK["messages"]], params)
    with LiveEngine(model, tiny_tokenizer, max_rows=8) as engine, TestClient(build_app(Served(engine, "tiny"))) as client:
        assert (engine.prefix_cache is None) == (request.param == "bidirectional")
        client.model, client.tokenizer = model, tiny_tokenizer
        yield client, want


def test_answers_whole_and_streamed_are_those_of_a_call_and_a_trace_has_the_steps(served):
    client, want = served
    whole = client.post("/v1/chat/completions", json={**ASK, "trace": True, "logprobs": True}).json()
    assert whole["choices"][0]["message"]["content"] == want.text and whole["usage"]["completion_tokens"] == 8
    steps = [event for event in whole["trace"] if event["type"] == "diffusion"]
    certain = sorted((each["position"], each["id"]) for step in steps for each in step["certain"])
    assert [step["step"] for step in steps] == [1, 2, 3, 4] and certain == list(enumerate(want.ids))
    assert [event["type"] for event in whole["trace"]].count("provisional") > 0
    response = client.post("/v1/chat/completions", json={**ASK, "stream": True})
    *frames, done, _ = response.text.split("\n\n")
    parts = [json.loads(frame.removeprefix("data: "))["choices"][0] for frame in frames]
    assert done == "data: [DONE]" and parts[-1]["finish_reason"] == "length"
    assert "".join(part["delta"].get("content") or "" for part in parts) == want.text
    drawn = client.post("/v1/chat/completions", json={**ASK, "temperature": 1, "n": 3, "seed": 2}).json()
    assert len({choice["message"]["content"] for choice in drawn["choices"]}) == 3
    text = client.post("/v1/completions", json={"model": "tiny", "prompt": "abc", "max_tokens": 8, "temperature": 0}).json()
    assert text["choices"][0]["finish_reason"] in ("length", "stop")
    by_rule = {**ASK, "block_length": 3, "confidence_threshold": 0.1, "cfg_scale": 1.5, "eos_penalty": 1.0, "alg": "low_confidence"}
    del by_rule["steps"]
    [asked] = generate(client.model, client.tokenizer, [ASK["messages"]], SamplingParams(max_new_tokens=8, **{name: by_rule[name] for name in [*by_rule][-6:]}))
    assert client.post("/v1/chat/completions", json=by_rule).json()["choices"][0]["message"]["content"] == asked.text != want.text
    more = client.post("/v1/responses", json={"model": "tiny", "input": "Where?", "max_output_tokens": 16, "temperature": 0})
    assert more.status_code == 200 and more.json()["output"]


def test_passes_over_what_is_kept_are_asked_for_by_a_field_and_told_in_the_trace(served):
    client, _ = served
    response = client.post("/v1/chat/completions", json={**ASK, "steps": 8, "cache_refresh": 3, "trace": True})
    if client.model.config.diffusion["attention"] == "prompt_causal":
        assert response.status_code == 400 and "cache_refresh=3 keeps by approximation what this llama keeps exactly" in response.text
        return
    params = SamplingParams(max_new_tokens=8, steps=8, ignore_eos=True, cache_refresh=3)
    [want] = generate(client.model, client.tokenizer, [ASK["messages"]], params)
    told = response.json()
    assert told["choices"][0]["message"]["content"] == want.text and told["usage"]["forward_passes"] == 8
    assert [step.get("cached", False) for step in told["trace"] if step["type"] == "diffusion"] == [False, True, True] * 2 + [False, True]


def test_what_it_cannot_do_is_the_clients_mistake(served):
    client, _ = served
    refused = {
        ("/v1/chat/completions", "frequency_penalty"): {**ASK, "frequency_penalty": 1},
        ("/v1/chat/completions", "response_format"): {**ASK, "response_format": {"type": "json_object"}},
        ("/v1/chat/completions", "num_beams"): {**ASK, "num_beams": 3},
        ("/v1/chat/completions", "steps"): {**ASK, "steps": 0},
        ("/v1/chat/completions", "confidence_threshold=0.9"): {**ASK, "confidence_threshold": 0.9},
        ("/v1/chat/completions", "remask must be in (0, 1], got 2"): {**ASK, "remask": 2},
        ("/v1/chat/completions", "generation_tokens_hook_func"): {**ASK, "generation_tokens_hook_func": "print"},
        ("/v1/completions", "prompt_logprobs"): {"model": "tiny", "prompt": "abc", "max_tokens": 8, "prompt_logprobs": 1},
        ("/v1/completions", "prompt_logprobs=1"): {"model": "tiny", "prompt": "abc", "max_tokens": 8, "echo": True, "logprobs": 1},
        ("/v1/embeddings", "embedding"): {"model": "tiny", "input": "abc"},
    }
    for (path, named), body in refused.items():
        response = client.post(path, json=body)
        assert response.status_code == 400 and named in response.text, (path, named, response.text)


def test_its_fields_are_those_that_it_has_a_use_for(served, engine):
    client, _ = served
    own, others = (
        asked.get("/openapi.json").json()["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
        for asked in (client, TestClient(build_app(Served(engine, "tiny"))))
    )
    assert {"steps", "alg", "alg_temp", "block_length", "remask"} <= own.keys() and "generation_tokens_hook_func" not in own
    assert own["remask"]["anyOf"][0]["exclusiveMinimum"] == 0 and own["remask"]["anyOf"][0]["maximum"] == 1 and "random" in own["alg"]["anyOf"][0]["enum"]
    assert {"steps", "alg", "alg_temp"} <= own.keys() and not {"num_beams", "penalty_alpha", "guidance_scale"} & own.keys()
    assert {"num_beams", "penalty_alpha", "guidance_scale"} <= others.keys() and not {"steps", "alg", "alg_temp"} & others.keys()
    assert (own["strategy"]["default"], others["strategy"]["default"]) == ("diffusion", "sampling")
    told = [asked.get("/v1/models").json()["data"][0]["defaults"] for asked in (client, TestClient(build_app(Served(engine, "tiny"))))]
    assert [each["max_new_tokens"] for each in told] == [128, 1024]  # where nobody says it
    assert list(own["strategy"]["x-strategies"]) == ["diffusion"] and "diffusion" not in others["strategy"]["x-strategies"]
