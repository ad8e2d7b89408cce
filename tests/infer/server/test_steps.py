"""The steps of a served diffusion answer: they and the text agree at every moment, in any company, and who goes away leaves nothing."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from openai.types.chat import ChatCompletionChunk

from seodang.infer import Observed, SamplingParams, generate
from seodang.infer.engine.core import Engine
from seodang.infer.engine.live import LiveEngine
from seodang.infer.requests.trace import DiffusionStep
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.infer.runners.ragged import RaggedRunner
from seodang.infer.server.app import build_app
from seodang.infer.server.served import Served

MASK, NEW = 127, 12
UNWRITTEN = [*range(4), *range(98, 128)]  # special tokens, and bytes that are no characters alone
SETTINGS = {"ignore_eos": True, "suppress_tokens": UNWRITTEN, "steps": 6}
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Where?"}], "max_tokens": NEW, "temperature": 0, **SETTINGS}


@pytest.fixture(params=["bidirectional", "prompt_causal"])
def model(request, fresh_tiny):
    """Random weights that speak both ways, in float64, where company makes no difference."""
    model = fresh_tiny("llama").double()
    declare(model.config, Diffusion(MASK, 1, request.param, autoregressive=True))
    return model


@pytest.fixture
def engine(model, tiny_tokenizer):
    with LiveEngine(model, tiny_tokenizer, max_rows=8) as engine:
        yield engine


@pytest.fixture
def client(engine):
    with TestClient(build_app(Served(engine, "tiny"))) as client:
        yield client


def chunks_of(client, path="/v1/chat/completions", include_steps=True, **body) -> list[dict]:
    response = client.post(path, json={**ASK, "stream": True, "stream_options": {"include_usage": True, "include_steps": include_steps}, **body})
    *frames, done, _ = response.text.split("\n\n")
    assert done == "data: [DONE]", response.text
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


class Told:
    """An answer as a client puts it together: its text, and its canvas by the steps, in which nothing may contradict the text."""

    def __init__(self):
        self.text, self.tokens, self.guesses, self.steps, self.logprobs = "", {}, {}, [], {}

    def step(self, step: dict) -> None:
        assert self.text == self.certain_text  # what the step before made certain has been sent, and no more
        assert step["step"] == len(self.steps) + 1 and step["remasked"] == []
        for each in step["certain"]:
            assert each["position"] not in self.tokens
            self.tokens[each["position"]], self.logprobs[each["position"]] = each["token"], each["logprob"]
            self.guesses.pop(each["position"], None)
        for each in step["guesses"]:
            assert each["position"] not in self.tokens and self.guesses.get(each["position"]) != each["token"]
            self.guesses[each["position"]] = each["token"]
        assert len(self.tokens) + len(self.guesses) == step["length"] == NEW  # of each position something is known
        self.steps.append(step)

    @property
    def certain_text(self) -> str:
        length = next(at for at in range(NEW + 1) if at not in self.tokens)
        return "".join(self.tokens[at] for at in range(length))


@pytest.mark.parametrize("path, asked", [("/v1/chat/completions", {"messages": ASK["messages"]}), ("/v1/completions", {"prompt": ["abc", "de"]})])
def test_steps_and_text_agree_at_every_moment_and_are_those_of_a_trace(client, model, tiny_tokenizer, path, asked):
    prompts = asked.get("prompt") or [asked["messages"]]
    body = {**asked, "temperature": 0.8, "n": 2, "seed": 3}
    if "prompt" in asked:
        body["messages"] = None
    found: dict[int, Told] = {}
    chunks = chunks_of(client, path, **body)
    for chunk in chunks:
        if step := chunk.get("step"):
            assert chunk["choices"] == []
            found.setdefault(step["index"], Told()).step(step)
        for choice in chunk["choices"]:
            told = found.setdefault(choice["index"], Told())
            told.text += choice.get("text") or choice.get("delta", {}).get("content") or ""
    params = SamplingParams(max_new_tokens=NEW, temperature=0.8, num_return_sequences=2, seed=3, **SETTINGS)
    wanted = generate(model, tiny_tokenizer, prompts, params, trace=True)
    for told, want in zip([found[index] for index in sorted(found)], wanted, strict=True):
        assert told.text == told.certain_text == want.text and len(told.tokens) == NEW
        assert [told.logprobs[at] for at in range(NEW)] == pytest.approx(want.logprobs)
        steps = [each.what for each in want.trace if isinstance(each, Observed) and isinstance(each.what, DiffusionStep) and each.choice == want.choice]
        assert [[(each["position"], each["id"]) for each in step["certain"]] for step in told.steps] == [[each[:2] for each in step.committed] for step in steps]
        assert [[(each["position"], each["id"]) for each in step["guesses"]] for step in told.steps] == [[each[:2] for each in step.guesses] for step in steps]
        assert [step["forwards"] for step in told.steps] == [1, 2, 3, 4, 5, 6]
    count = 2 * len(prompts)
    assert chunks[-1]["usage"] | {"forward_passes": 6 * count, "tokens_per_forward": NEW / 6, "completion_tokens": NEW * count} == chunks[-1]["usage"]


def test_who_does_not_ask_is_told_no_steps_and_a_plain_client_reads_those_that_are_told(client):
    plain, with_steps = chunks_of(client, include_steps=False), chunks_of(client)
    assert all("step" not in chunk for chunk in plain)
    without = [chunk["choices"] for chunk in with_steps if "step" not in chunk]
    assert without == [chunk["choices"] for chunk in plain] and len(without) + 6 == len(with_steps)
    parsed = [ChatCompletionChunk.model_validate(chunk) for chunk in with_steps]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in parsed if chunk.choices) == "".join(each[0]["delta"].get("content", "") for each in without if each)
    both = chunks_of(client, trace=True)
    assert [chunk["step"]["step"] for chunk in both if "step" in chunk] == [1, 2, 3, 4, 5, 6]
    traced = [event for chunk in both for event in chunk.get("trace", ()) if event["type"] == "diffusion"]
    assert [event["certain"] for event in traced] == [chunk["step"]["certain"] for chunk in both if "step" in chunk]


def test_steps_of_an_answer_from_left_to_right_are_the_clients_mistake(client, engine):
    asked = {**{name: value for name, value in ASK.items() if name != "steps"}, "strategy": "sampling", "stream": True, "stream_options": {"include_steps": True}}
    response = client.post("/v1/chat/completions", json=asked)
    told = "stream_options.include_steps asks for the steps of diffusion, but the strategy 'sampling' writes from left to right: leave it out"
    assert response.status_code == 400 and (response.json()["error"]["message"], response.json()["error"]["param"]) == (told, "stream_options")
    assert client.post("/v1/chat/completions", json={**ASK, "stream_options": {"include_steps": True}}).json()["error"]["param"] == "stream_options"
    lenient = TestClient(build_app(Served(engine, "tiny", lenient=True)))
    response = lenient.post("/v1/chat/completions", json=asked)
    assert response.status_code == 200 and response.headers["x-ignored-fields"] == "stream_options.include_steps" and '"step"' not in response.text
    with pytest.raises(ValueError, match="include_steps asks for the steps of diffusion"):
        engine.submit("abc", SamplingParams(max_new_tokens=3, strategy="sampling"), include_steps=True)


def test_usage_tells_the_passes_of_diffusion_alone(client):
    usage = client.post("/v1/chat/completions", json=ASK).json()["usage"]
    assert (usage["forward_passes"], usage["tokens_per_forward"]) == (6, 2.0)
    usage = client.post("/v1/responses", json={"model": "tiny", "input": "Where?", "max_output_tokens": NEW, "temperature": 0, **SETTINGS}).json()["usage"]
    assert (usage["output_tokens"], usage["forward_passes"], usage["tokens_per_forward"]) == (NEW, 6, 2.0)
    usage = client.post("/v1/completions", json={"model": "tiny", "prompt": "abc", "max_tokens": 4, "temperature": 0, "strategy": "sampling"}).json()["usage"]
    assert "forward_passes" not in usage and "tokens_per_forward" not in usage


def test_requests_of_both_kinds_share_passes_and_are_answered_as_alone(client, engine, model, tiny_tokenizer, monkeypatch):
    asked = [
        {"prompt": prompt, **how}
        for prompt in ("abc", "a longer prompt")
        for how in ({"strategy": "sampling"}, {"steps": 6}, {"strategy": "sampling", "temperature": 0.9, "seed": 4}, {"alg": "origin", "temperature": 0.9, "seed": 5})
    ]
    common = {"ignore_eos": True, "suppress_tokens": UNWRITTEN}
    widths, step, observe = [], Engine.step, RaggedRunner.observe

    def gated(self) -> bool:  # nothing runs before all are there
        if not widths and len(engine._loop.tickets()) < len(asked):
            time.sleep(0.002)
            return True
        return step(self)

    monkeypatch.setattr(Engine, "step", gated)
    monkeypatch.setattr(RaggedRunner, "observe", lambda self, slots, *rest: widths.append(len(slots)) or observe(self, slots, *rest))
    with ThreadPoolExecutor(len(asked)) as pool:
        bodies = [{"model": "tiny", "max_tokens": NEW, "temperature": 0, **common, **each} for each in asked]
        answers = list(pool.map(lambda body: client.post("/v1/completions", json=body).json(), bodies))
    monkeypatch.undo()
    assert max(widths) == len(asked)
    for each, answer in zip(asked, answers):
        [want] = generate(model, tiny_tokenizer, [each.pop("prompt")], SamplingParams(max_new_tokens=NEW, **common, **each))
        assert answer["choices"][0]["text"] == want.text


def test_a_client_that_goes_in_the_midst_of_its_steps_leaves_no_row_and_disturbs_nobody(engine, model, tiny_tokenizer, monkeypatch):
    step, go, seen = Engine.step, threading.Event(), []

    def gated(self) -> bool:
        assert not any('"step"' in each for each in seen) or go.wait(20)
        return step(self)

    monkeypatch.setattr(Engine, "step", gated)
    long = SamplingParams(max_new_tokens=16, **SETTINGS | {"steps": 12})
    other = engine.submit("abc", long)
    body = {**ASK, "n": 3, "temperature": 1, "seed": 1, "max_tokens": 24, "steps": 24, "stream": True, "stream_options": {"include_steps": True}}
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [(b"content-type", b"application/json")], "query_string": b"", "http_version": "1.1", "scheme": "http"}

    async def receive() -> dict:
        while not messages and not any('"step"' in each for each in seen):
            await asyncio.sleep(0.002)
        if messages:
            return messages.pop()
        asyncio.get_running_loop().call_later(0.05, go.set)
        return {"type": "http.disconnect"}

    async def send(message) -> None:
        seen.append(message.get("body", b"").decode())

    asyncio.run(build_app(Served(engine, "tiny"))(scope, receive, send))
    go.set()
    [result] = other.results(20)
    [want] = generate(model, tiny_tokenizer, ["abc"], long)
    assert result.ids == want.ids
    until = time.monotonic() + 20
    while (engine.rows_in_use or engine.health().running) and time.monotonic() < until:
        time.sleep(0.005)
    assert engine.rows_in_use == engine.health().running == engine.health().bytes_reserved == 0
    assert not any('"finish_reason":"length"' in each for each in seen)
