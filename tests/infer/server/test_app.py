"""Health and completions over HTTP: whole and streamed, each mistake with its status, and a client that goes away."""

import json
import logging
import threading
import time
from dataclasses import asdict

import pytest
import torch
from fastapi.testclient import TestClient

from seodang import __version__
from seodang.infer import SamplingParams, generate, score
from seodang.infer.engine.core import Engine
from seodang.infer.engine.live import LiveEngine
from seodang.infer.requests.stats import Runtime
from seodang.infer.runners.native.library import built_for
from seodang.infer.server import answering, operations
from seodang.infer.server.app import build_app
from seodang.infer.server.guard import limits
from seodang.infer.server.served import Served

TIMEOUT = 20  # seconds: of a wait that ends at once where all is well
JSON = {"Content-Type": "application/json"}
GREEDY = {"model": "tiny", "prompt": "abc", "max_tokens": 6, "temperature": 0}


@pytest.fixture
def client(engine):
    with TestClient(build_app(Served(engine, "tiny")), raise_server_exceptions=False) as client:
        yield client
    assert not engine.health().ok and not engine._thread.is_alive()  # the app has closed it


@pytest.fixture(scope="module")
def steady(tiny_llama, byte_tokenizer):
    """A client of a server that many tests share."""
    engine = LiveEngine(tiny_llama, byte_tokenizer(), max_rows=8, max_waiting=4)
    with engine, TestClient(build_app(Served(engine, "tiny"))) as client:
        yield client


@pytest.fixture
def said(tiny_llama, tiny_tokenizer):
    """`said(prompt, **settings)`: what generate says."""
    return lambda prompt, **settings: generate(tiny_llama, tiny_tokenizer, [prompt], SamplingParams(max_new_tokens=6, **settings))


def post(client, **changes):
    return client.post("/v1/completions", json={**GREEDY, **changes})


def streamed(client, **changes) -> list[dict]:
    """The events of a stream, which ends by [DONE]."""
    with client.stream("POST", "/v1/completions", json={**GREEDY, "stream": True, **changes}) as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        *events, done, end = response.read().decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def joined(events: list[dict], index: int = 0) -> str:
    return "".join(choice["text"] for event in events for choice in event["choices"] if choice["index"] == index)


def error_of(response, status: int, param: str | None = None, code: str | None = None) -> str:
    error = response.json()["error"]
    assert response.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"} and (error["param"], error["code"]) == (param, code)
    assert error["type"] == ("server_error" if status >= 500 else "requests" if status == 429 else "invalid_request_error")
    return error["message"]


def test_a_completion_is_what_generate_says_with_its_usage(client, said):
    [result] = said("abc")
    answer = post(client).json()
    assert answer.pop("id").startswith("cmpl-") and abs(answer.pop("created") - time.time()) < 60
    assert answer == {
        "object": "text_completion",
        "model": "tiny",
        "choices": [{"index": 0, "text": result.text, "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}},
    }


def test_a_stream_gives_the_same_text_under_one_id_and_its_usage_where_asked(client, said):
    [result] = said("abc")
    events = streamed(client, stream_options={"include_usage": True})
    assert len(events) > 4 and joined(events) == result.text
    assert len({(event["id"], event["created"], event["object"], event["model"]) for event in events}) == 1
    *parts, last = events
    assert [part["choices"][0]["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["length"]
    assert all(part["usage"] is None for part in parts)
    assert last["choices"] == [] and (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (3, 6)
    assert all("usage" not in event for event in streamed(client))


def test_prompts_are_a_text_ids_or_lists_of_them_and_n_answers_each(client, said):
    for prompt, each in (("abc", ["abc"]), ([5, 6, 7], [[5, 6, 7]]), (["abc", "de"], ["abc", "de"]), ([[5, 6], [7]], [[5, 6], [7]])):
        choices = post(client, prompt=prompt).json()["choices"]
        assert [choice["text"] for choice in choices] == [said(one)[0].text for one in each]
    sampled = {"prompt": ["abc", "de"], "n": 2, "temperature": 1.5, "seed": 4}
    wanted = [result.text for one in ("abc", "de") for result in said(one, num_return_sequences=2, temperature=1.5, seed=4)]
    choices = post(client, **sampled).json()["choices"]
    assert [(choice["index"], choice["text"]) for choice in choices] == list(enumerate(wanted))
    events = streamed(client, **sampled)
    assert [joined(events, index) for index in range(4)] == wanted
    ends = [choice["index"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert sorted(ends) == [0, 1, 2, 3]


def test_usage_tells_what_came_out_of_the_cache_of_the_same_salt(client):
    prompt = "b" * 100
    cached = lambda **changes: post(client, prompt=prompt, **changes).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert [cached(), cached(), cached(cache_salt="mine"), cached(cache_salt="mine"), cached()] == [0, 99, 0, 99, 99]
    events = streamed(client, prompt=[prompt, prompt + "c"], stream_options={"include_usage": True})
    assert events[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 199}


def test_half_a_character_is_never_sent(tiny, byte_tokenizer):
    """Each byte of a Korean character is a token of its own here; a schema says what is to come."""
    schema = {"type": "json_schema", "json_schema": {"name": "word", "schema": {"enum": ["서당"]}}}
    with LiveEngine(tiny("llama", vocab_size=260), byte_tokenizer(260)) as engine, TestClient(build_app(Served(engine, "tiny"))) as client:
        events = streamed(client, response_format=schema, max_tokens=12, stream_options={"include_usage": True})
    assert [event["choices"][0]["text"] for event in events[:-1]] == ['"', "서", "당", '"', ""]
    assert events[-1]["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize(
    "changes, param, message",
    [
        ({"prompt": None}, "prompt", "is missing"), ({"prompt": []}, "prompt", "must be a text"), ({"prompt": [True]}, "prompt", "must be a text"),
        ({"prompt": [[]]}, "prompt", "must be a text"), ({"prompt": {"a": 1}}, "prompt", "must be a text"), ({"prompt": [1.5]}, "prompt", "must be a text"),
        ({"prompt": ["a"] * 5}, "prompt", "5 prompts are more than the 4"), ({"prompt": ["abc", [999]]}, "prompt", "prompt[1] has the id 999"),
        ({"stop": ["x"] * 5}, "stop", "5 texts, more than the 4"), ({"prompt": ""}, "prompt", "the prompt is empty"),
        ({"prompt": "a" * 300}, "prompt", "shorten the prompt or lower max_tokens"), ({"prompt": "\ud800"}, None, "half"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0, got -1"), ({"max_tokens": "6"}, "max_tokens", "must be a whole number"),
        ({"temperature": -1}, "temperature", "-1"), ({"temperature": float("nan")}, None, "NaN is no number"), ({"top_p": 2}, "top_p", "(0, 1]"),
        ({"n": 2}, "n", "n=2 greedy answers would all be the same"), ({"max_new_tokens": 7}, "max_tokens", "by another name, 7"),
        ({"tempratur": 1}, "tempratur", "did you mean temperature?"), ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "without stream"), ({"stream_options": [1]}, "stream_options", "an object"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options", "usage is unknown"), ({"cache_salt": 5}, "cache_salt", "must be a text"),
        ({"messages": []}, "messages", "give prompt"), ({"tools": [1]}, "tools", "leave it out"), ({"logprobs": -1}, "logprobs", "-1"),
        ({"stop": 5}, "stop", "5"), ({"stop": {"a": 1}}, "stop", "a text or a list of texts"), ({"assistant_model": "x"}, "assistant_model", "unknown"),
        ({"logit_bias": {"x": "y"}}, "logit_bias", "x"), ({"seed": "one"}, "seed", "one"), ({"suffix": "x"}, "suffix", "x"),
        ({"response_format": 5}, "response_format", "5"), ({"max_tokens": None, "max_new_tokens": -1}, "max_new_tokens", "max_new_tokens must be"),
        ({"strategy": "none"}, "strategy", "strategy 'none' is unknown"), ({"allowed_token_ids": [999]}, "allowed_token_ids", "allowed_token_ids allowed the id 999"),
        ({"guided_regex": 5}, "guided_regex", "guided_regex must be"), ({"structured_outputs": {"choice": 5}}, "structured_outputs", "structured_outputs.choice must be"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, "response_format", "response_format cannot be used"),
        ({"prompt": ["a", "b"], "choice": ["c"], "bad_words": ["c"]}, "choice", "at step 0 of prompt[0]"), ({"use_beam_search": True, "length_penalty": 51}, "length_penalty", "[-50, 50]"),
        ({"guidance_scale": 1 << 64}, "guidance_scale", "a number above 0, got 18446744073709551616"),
        ({"response_format": {"type": "json_schema", "json_schema": 5}}, "response_format", "json_schema"),
        ({"use_beam_search": True, "temperature": 1}, "use_beam_search", "draws no tokens"), ({"guided_regex": "a", "regex": "b"}, "regex", "'b' and, by another name, 'a'"),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_a_clients_mistake_is_a_400_that_names_it(steady, changes, param, message):
    body = json.dumps({**GREEDY, **changes})
    assert message in error_of(steady.post("/v1/completions", content=body, headers=JSON), 400, param)


def test_bodies_that_are_no_requests(client, monkeypatch):
    send = lambda content: client.post("/v1/completions", content=content, headers=JSON)
    assert "the body is not JSON" in error_of(send(b"{"), 400)
    assert "the body is not JSON" in error_of(send(b"\xff"), 400)
    assert "the body is not JSON" in error_of(send(b"[" * 100_000), 400)
    assert "must be a JSON object, got a list" in error_of(send(b"[]"), 400)
    assert "1e999 is no number" in error_of(send(b'{"metadata": 1e999}'), 400)
    assert error_of(post(client, model="other"), 404, "model", "model_not_found") == 'the model "other" does not exist: this server has tiny'
    assert error_of(client.get("/v1/completions"), 405) and error_of(client.get("/v2"), 404)
    monkeypatch.setattr(limits, "MAX_BODY", 100)
    assert "positions of the model" in error_of(post(client, prompt="a" * 7_000), 400, "prompt")  # 32 bytes for each of 256 positions may come
    assert "more than the 8192 that are read" in error_of(post(client, prompt="a" * 8_200), 413)
    assert client.get("/health").json()["status"] == "ok"


def test_health_tells_what_is_in_hand_and_503_once_the_loop_has_died(client, engine, monkeypatch, caplog):
    idle = {"status": "ok", "reason": None, "running": 0, "waiting": 0, "bytes_reserved": 0, "bytes_limit": engine.budget.limit}
    assert client.get("/health").json() == idle
    monkeypatch.setattr(Engine, "_admit", lambda *given, **how: (_ for _ in ()).throw(SystemError("no more")))
    why = "the engine's loop died of SystemError: the log says more"
    assert error_of(post(client), 503, code="engine_closed") == why
    assert error_of(post(client, stream=True), 503, code="engine_closed") == why  # refused where it comes too late
    response = client.get("/health")
    assert response.status_code == 503 and (response.json()["status"], response.json()["reason"]) == ("error", why)
    assert {record.levelno for record in caplog.records if record.name.startswith("seodang")} == {logging.CRITICAL}


def test_a_loop_that_dies_within_a_stream_is_an_event(client, monkeypatch):
    steps = []
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: step(self) if len(steps) < 2 and not steps.append(1) else 1 / 0)
    *parts, last = streamed(client)
    assert joined(parts) and last["error"]["message"].startswith("the engine's loop died of ZeroDivisionError") and last["error"]["type"] == "server_error"


def test_a_request_that_fails_on_its_way_is_an_error_of_the_client_whole_and_streamed(client, monkeypatch):
    monkeypatch.setattr("seodang.infer.requests.stop.SEARCH_SECONDS", 0.001)
    slow = {"stop_regex": r"(?s)(?:.|.)+[.;](?<=x.)", "max_tokens": 40}
    assert "takes more than" in error_of(post(client, **slow), 400, "stop_regex")
    *parts, last = streamed(client, **slow)
    assert "takes more than" in last["error"]["message"] and last["error"]["type"] == "invalid_request_error"


def test_a_full_queue_is_a_429_that_says_when_to_come_again(client, engine, monkeypatch):
    go, step = threading.Event(), Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: go.wait(TIMEOUT) and step(self))
    tickets = [engine.submit([5], SamplingParams(max_new_tokens=2)) for _ in range(3)]
    response = post(client, prompt=["a", "b"])  # of which one could come in: neither does
    assert "4 requests wait already" in error_of(response, 429, code="queue_full") and response.headers["Retry-After"] == "1"
    go.set()
    assert [len(ticket.results(TIMEOUT)) for ticket in tickets] == [1] * 3
    assert post(client, prompt=["a", "b"]).status_code == 200


def test_a_defect_of_ours_is_a_500_in_the_same_form(client, monkeypatch):
    monkeypatch.setattr(answering, "usage", lambda call: 1 / 0)
    assert error_of(post(client), 500) == "internal error: the server's log says more"
    *_, last = streamed(client, stream_options={"include_usage": True})
    assert last["error"]["message"] == "internal error: the server's log says more"


def test_the_event_loop_answers_while_a_pass_lasts(client, engine, monkeypatch):
    go, step = threading.Event(), Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: go.wait(TIMEOUT) and step(self))
    found = []
    asking = threading.Thread(target=lambda: found.append(post(client)))
    asking.start()
    while client.get("/health").json()["waiting"] == 0:
        time.sleep(0.001)
    go.set()
    asking.join(TIMEOUT)
    assert found[0].status_code == 200


def test_log_probabilities_of_completions_are_those_of_generate_whole_and_streamed(client, said):
    [result] = said("abc", logprobs=2)
    [choice] = post(client, logprobs=2).json()["choices"]
    known, tokens = choice["logprobs"], result.top_logprobs
    assert known["token_logprobs"] == pytest.approx([each.logprob for each in tokens], abs=1e-5)
    for told, token in zip(known["top_logprobs"], tokens):
        assert sorted(told.values()) == pytest.approx(sorted({each.id: each.logprob for each in (*token.top, token)}.values()), abs=1e-5)
    assert known["tokens"][:2] == ["&", "bytes:\\xa2"] and known["text_offset"][:2] == [0, 1]
    parts = [event["choices"][0] for event in streamed(client, logprobs=2)]
    assert [part["logprobs"] and len(part["logprobs"]["token_logprobs"]) for part in parts] == [1] * 6 + [None]
    assert [part["logprobs"]["token_logprobs"][0] for part in parts[:-1]] == pytest.approx(known["token_logprobs"], abs=1e-5)
    assert "".join(part["text"] for part in parts) == result.text


def test_an_echoed_prompt_is_judged_as_score_judges_it_and_nothing_need_be_added(client, tiny_llama, tiny_tokenizer, said):
    prompt = "hellothere"
    ids = tiny_tokenizer(prompt)["input_ids"]
    wanted = score(tiny_llama, tiny_tokenizer, [ids[:1]], [ids[1:]])[0].tolist()
    [choice] = post(client, prompt=prompt, echo=True, logprobs=1, max_tokens=0).json()["choices"]
    assert choice["text"] == prompt == "".join(choice["logprobs"]["tokens"]) and choice["finish_reason"] == "length"
    usage = post(client, prompt=prompt, max_tokens=0).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (len(prompt), 0, len(prompt))
    assert choice["logprobs"]["token_logprobs"][0] is choice["logprobs"]["top_logprobs"][0] is None
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(wanted, abs=1e-5)
    assert choice["logprobs"]["text_offset"] == list(range(len(prompt)))
    [echoed] = post(client, prompt=ids, echo=True).json()["choices"]
    assert echoed["text"] == prompt + said(ids)[0].text and echoed["logprobs"] is None
    assert joined(streamed(client, prompt=ids, echo=True)) == echoed["text"]
    [judged] = post(client, prompt=ids, prompt_logprobs=2).json()["choices"]
    assert judged["text"] == said(ids)[0].text and judged["prompt_logprobs"][0] is None
    for id, logprob, each in zip(ids[1:], wanted, judged["prompt_logprobs"][1:]):
        assert each[str(id)]["logprob"] == pytest.approx(logprob, abs=1e-5) and {1, 2} <= {other["rank"] for other in each.values()}


def test_what_the_model_thinks_of_a_prompt_does_not_hang_on_what_was_read_before(fresh_tiny, tiny_tokenizer):
    """float64: cold, behind a prompt of the same beginning, behind itself, in any order."""
    prompts = ["a long beginning that is shared, one", "a long beginning that is shared, two"]
    ask = {"max_tokens": 2, "echo": True, "logprobs": 2}

    def told(order: list[int]) -> list[dict]:
        engine = LiveEngine(fresh_tiny("llama").double(), tiny_tokenizer)
        with engine, TestClient(build_app(Served(engine, "tiny"))) as client:
            return [post(client, prompt=prompts[n], **(ask if asks else {})).json()["choices"][0]["logprobs"] for n, asks in order]

    cold = [told([(n, True)])[0] for n in (0, 1)]
    assert cold[0] != cold[1]
    for order in ([0, 1, 0], [1, 0, 0, 1]):
        assert told([(n, True) for n in order]) == [cold[n] for n in order]
    with_reading = told([(0, False), (0, True), (1, False), (1, True)])
    assert [each for each in with_reading if each] == cold


def test_the_checkpoints_settings_are_the_defaults_and_a_temperature_of_1_where_it_is_silent(fresh_tiny, tiny_tokenizer, said):
    def drawn(model, **changes) -> str:
        with LiveEngine(model, tiny_tokenizer) as engine, TestClient(build_app(Served(engine, "tiny"))) as client:
            body = {"model": "tiny", "prompt": "abc", "max_tokens": 6, "seed": 3, **changes}
            return client.post("/v1/completions", json=body).json()["choices"][0]["text"], client.get("/v1/models").json()["data"][0]

    silent, listed = drawn(fresh_tiny("llama"))
    assert silent == said("abc", do_sample=True, seed=3)[0].text != said("abc")[0].text
    assert listed["id"] == "tiny" and listed["max_model_len"] == 256 and listed["defaults"] == {"temperature": 1.0, "max_new_tokens": 1024, "max_length": 256}
    model = fresh_tiny("llama")
    model.generation_config.update(do_sample=True, temperature=0.5, top_k=3, max_new_tokens=4)
    text, listed = drawn(model, max_tokens=None)
    assert text == generate(model, tiny_tokenizer, ["abc"], SamplingParams(temperature=0.5, top_k=3, max_new_tokens=4, seed=3))[0].text
    assert listed["defaults"] == {"temperature": 0.5, "top_k": 3, "max_new_tokens": 4}
    assert drawn(model, temperature=0)[0] == said("abc")[0].text
    for searched in ({"num_beams": 2}, {"use_beam_search": True, "n": 2}, {"use_beam_search": True}):
        beams = searched.get("n", searched.get("num_beams", 1))
        assert {drawn(model, seed=seed, **searched)[0] for seed in (0, 1)} == {said("abc", num_beams=beams)[0].text}
    assert drawn(model, num_beams=2, temperature=0.5, seed=0)[0] != said("abc", num_beams=2)[0].text


def test_a_lenient_server_ignores_what_has_no_effect_and_says_so(engine):
    with TestClient(build_app(Served(engine, "tiny", lenient=True))) as client:
        response = post(client, tempratur=1, suffix="x", messages=[], top_k=None, length_penalty=2)
        assert response.status_code == 200 and response.headers["x-ignored-fields"] == "messages, tempratur, suffix, length_penalty"
        assert post(client).headers.get("x-ignored-fields") is None
        odd = post(client, **{"온도": 1, "a\r\nb: c": 1})
        assert odd.status_code == 200 and odd.headers["x-ignored-fields"] == "%EC%98%A8%EB%8F%84, a%0D%0Ab%3A%20c" and "b" not in odd.headers
        assert client.post("/tokenize", json={"prompt": "abc", "tools": [], "colour": 1}).json()["count"] == 3


def test_it_says_what_computes(fresh_tiny, tiny_tokenizer, monkeypatch):
    told = []
    for off in ("0", "1"):
        monkeypatch.setenv("SEODANG_NATIVE", off)
        with LiveEngine(fresh_tiny("llama"), tiny_tokenizer) as engine, TestClient(build_app(Served(engine, "tiny"))) as client:
            told.append(client.get("/v1/models").json()["data"][0]["runtime"])
    torchs, native = torch.backends.cpu.get_cpu_capability(), built_for()
    assert told == [
        {"runner": "direct", "kernel": f"torch {torchs}", "weights": "float32", "threads": torch.get_num_threads(), "not_native": "SEODANG_NATIVE=0", "kv_cache_dtype": "auto"},
        {"runner": "native", "kernel": native, "weights": "float32", "threads": torch.get_num_threads(), "not_native": None, "kv_cache_dtype": "auto"},
    ]
    failed = Runtime("direct", "torch", "float32", 1, "CC is '/usr/local/kim/cc', but there is no program '/usr/local/kim/cc': name a C compiler")
    assert operations.told(failed) == {**asdict(failed), "not_native": "it could not be built: the server's own output says why"}


def test_models_tokens_version_and_readiness(client, engine, tiny_tokenizer):
    assert client.get("/v1/models/tiny").json() == client.get("/v1/models").json()["data"][0]
    assert error_of(client.get("/v1/models/other"), 404, "model", "model_not_found")
    assert client.get("/version").json() == {"version": __version__}
    found = client.post("/tokenize", json={"prompt": "abc", "return_token_strs": True}).json()
    assert found["tokens"] == tiny_tokenizer("abc")["input_ids"] and found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert client.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "abc"}
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    assert "tokens has the id 999" in error_of(client.post("/detokenize", json={"tokens": [999]}), 400, "tokens")
    assert "tools has no effect beside prompt" in error_of(client.post("/tokenize", json={"prompt": "abc", "tools": []}), 400, "tools")
    assert error_of(client.post("/tokenize", json={"prompt": 5}), 400, "prompt") == "prompt must be a text, got 5"
    assert client.get("/ready").json() == {"status": "ready", "reason": None}
    engine.close()
    assert client.get("/ready").status_code == 503 and "closed" in client.get("/ready").json()["reason"]


def test_a_trace_tells_what_every_filter_made_of_each_token_whole_and_streamed(client, said):
    ask = {"trace": True, "temperature": 2.0, "top_k": 2, "seed": 1, "max_tokens": 2}
    whole = post(client, cache_salt="one", **ask).json()["trace"]
    events = streamed(client, cache_salt="another", **ask)
    parted = sum((event.get("trace", []) for event in events), [])
    timeless = lambda trace: [{**event, "seconds": 0} for event in trace]
    assert timeless(whole) == timeless(parted)
    [first, second] = [event for event in whole if event["type"] == "choice"]
    assert [name for name, _ in first["stages"]] == ["model", "temperature", "top_k"] and (first["position"], second["position"]) == (0, 1)
    model, warm, kept = (dict(candidates) for _, candidates in first["stages"])
    two = sorted(model, key=model.get)[-2:]
    roots = {id: model[id] ** 0.5 for id in two}  # a temperature of 2 takes the root of each
    assert {id: roots[id] / sum(roots.values()) for id in two} == pytest.approx(kept)
    assert warm[two[0]] / warm[two[1]] == pytest.approx(roots[two[0]] / roots[two[1]]) and len(warm) == 10
    assert set(first["texts"]) == {str(id) for id in {*model, *warm, *kept, first["id"]}}
    assert "".join(event["text"] for event in whole if event["type"] == "committed") == said("abc", temperature=2.0, top_k=2, seed=1)[0].text[:2]
