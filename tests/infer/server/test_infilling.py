"""Infilling over HTTP: a template and forced tokens in any body, and OpenAI's suffix, which a completion fits into and leaves out."""

import json

import pytest
from fastapi.testclient import TestClient

from seodang.infer import SamplingParams, generate
from seodang.infer.engine.live import LiveEngine
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.infer.server.app import build_app
from seodang.infer.server.served import Served

SAY = [{"role": "user", "content": "Where?"}]
TEXT = {"model": "tiny", "prompt": "abc", "temperature": 0}


@pytest.fixture
def model(fresh_tiny):
    model = fresh_tiny("llama")
    declare(model.config, Diffusion(127, 1, "bidirectional"))
    return model


@pytest.fixture
def client(model, tiny_tokenizer):
    with LiveEngine(model, tiny_tokenizer, max_rows=8) as engine, TestClient(build_app(Served(engine, "tiny"))) as client:
        yield client


def streamed(client, path: str, body: dict) -> str:
    *frames, done, _ = client.post(path, json={**body, "stream": True}).text.split("\n\n")
    choices = [json.loads(frame.removeprefix("data: "))["choices"][0] for frame in frames]
    assert done == "data: [DONE]"
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("template", ["ab{3}cd{2}.", ["ab", 3, "cd", 2, "."]])
def test_a_template_is_filled_in_as_by_a_call(client, model, tiny_tokenizer, template):
    params = SamplingParams(template=template, forced_text={3: "x"})
    [chat, text] = generate(model, tiny_tokenizer, [SAY, "abc"], params)
    assert chat.text.startswith("ab") and chat.text.endswith(".") and "cd" in chat.text
    asked = {"template": template, "forced_text": {"3": "x"}, "temperature": 0}
    found = client.post("/v1/chat/completions", json={"model": "tiny", "messages": SAY, **asked}).json()["choices"][0]
    assert (found["message"]["content"], found["finish_reason"]) == (chat.text, "stop")
    assert streamed(client, "/v1/chat/completions", {"model": "tiny", "messages": SAY, **asked}) == chat.text
    assert client.post("/v1/completions", json={**TEXT, **asked}).json()["choices"][0]["text"] == text.text
    body = {"model": "tiny", "input": "Where?", **asked}
    assert client.post("/v1/responses", json=body).json()["output"][0]["content"][0]["text"] == chat.text


@pytest.mark.parametrize("more", [{}, {"min_tokens": 9}, {"n": 2, "temperature": 1, "seed": 3}, {"logprobs": 2}, {"echo": True}])
def test_a_completion_with_a_suffix_is_what_stands_before_it(client, model, tiny_tokenizer, more):
    settings = {"max_new_tokens": 9, "suffix": "xyz"} | ({"temperature": 1.0, "seed": 3, "num_return_sequences": 2} if "n" in more else {})
    results = generate(model, tiny_tokenizer, ["abc"], SamplingParams(**settings))
    assert all(result.text.endswith("xyz") for result in results)
    body = {**TEXT, "suffix": "xyz", "max_tokens": 6, **more}
    answer = client.post("/v1/completions", json=body).json()
    begin = "abc" if more.get("echo") else ""
    assert [choice["text"] for choice in answer["choices"]] == [begin + result.text[:-3] for result in results]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}
    told = {"prompt_tokens": 6, "completion_tokens": 6 * len(results), "total_tokens": 6 + 6 * len(results)}
    assert {key: answer["usage"][key] for key in told} == told
    if "logprobs" in more:
        assert len(answer["choices"][0]["logprobs"]["tokens"]) == 6
    if "n" not in more:
        assert streamed(client, "/v1/completions", body) == begin + results[0].text[:-3]


def test_what_a_stop_cuts_off_has_nothing_of_the_suffix(client, model, tiny_tokenizer):
    [whole] = generate(model, tiny_tokenizer, ["abc"], SamplingParams(max_new_tokens=9, suffix="xyz"))
    stop = whole.text[5] + "xy"
    body = {**TEXT, "suffix": "xyz", "max_tokens": 6}
    for own, left in ((stop, whole.text[:5]), (whole.text[3:5], whole.text[: whole.text.index(whole.text[3:5])])):
        found = client.post("/v1/completions", json={**body, "stop": own}).json()["choices"][0]
        assert (found["text"], found["finish_reason"]) == (left, "stop") and streamed(client, "/v1/completions", {**body, "stop": own}) == left


def test_a_suffix_stays_where_a_message_ends_with_it_and_an_empty_one_asks_for_nothing(client):
    body = {"model": "tiny", "messages": SAY, "temperature": 0, "max_tokens": 6}
    assert client.post("/v1/chat/completions", json={**body, "suffix": "xy"}).json()["choices"][0]["message"]["content"].endswith("xy")
    plain = client.post("/v1/completions", json={**TEXT, "max_tokens": 5}).json()["choices"]
    assert client.post("/v1/completions", json={**TEXT, "max_tokens": 5, "suffix": ""}).json()["choices"] == plain


def test_a_message_that_is_continued_begins_its_answer(client, model, tiny_tokenizer):
    [want] = generate(model, tiny_tokenizer, [SAY], SamplingParams(prefix="ab", suffix="yz", max_new_tokens=9))
    assert want.text.startswith("ab") and want.text.endswith("yz")
    begun = {"messages": [*SAY, {"role": "assistant", "content": "ab"}], "continue_final_message": True, "add_generation_prompt": False}
    body = {"model": "tiny", **begun, "temperature": 0, "max_tokens": 7, "suffix": "yz", "logprobs": True}
    answer = client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == want.text[2:] and answer["usage"]["completion_tokens"] == 7
    assert len(answer["choices"][0]["logprobs"]["content"]) == 7


def test_choices_and_formats_are_held_to_or_refused_with_the_remedy(client):
    body = {"model": "tiny", "messages": SAY, "temperature": 1, "max_tokens": 30}
    chosen = client.post("/v1/chat/completions", json={**body, "structured_outputs": {"choice": ["ab", "abc", "d"]}}).json()["choices"][0]
    assert chosen["message"]["content"] in ("ab", "abc", "d") and chosen["finish_reason"] == "stop"
    allowed = client.post("/v1/completions", json={**TEXT, "max_tokens": 6, "allowed_token_ids": [70, 71]}).json()["choices"][0]["text"]
    assert len(allowed) == 6 and set(allowed) <= {"c", "d"}
    response = client.post("/v1/chat/completions", json={**body, "response_format": {"type": "json_object"}})
    assert response.status_code == 400 and "response_format hangs on the tokens before one" in response.text and "give block_length=1" in response.text
    ordered = client.post("/v1/chat/completions", json={**body, "guided_regex": "[ab]{3}", "block_length": 1}).json()["choices"][0]
    assert len(ordered["message"]["content"]) == 3 and set(ordered["message"]["content"]) <= {"a", "b"}


def test_mistakes_are_told_by_the_clients_own_names(client):
    chat = {"model": "tiny", "messages": SAY, "temperature": 0}
    for body, field, told in (
        ({"template": "ab"}, "template", "has no gap"), ({"template": ["a", 0]}, "template", "a gap of 0 tokens"),
        ({"template": "a{3}", "max_tokens": 9}, "max_tokens", "max_tokens=9 disagrees with template, which has 4 tokens"),
        ({"template": ["a", 999]}, "template", "more than the 256 positions"), ({"template": 5}, "template", "must be a list"),
        ({"template": "a{3}", "suffix": "b"}, "suffix", "has no place beside template"),
        ({"template": "ab{3}", "forced_text": {"1": 40}}, "forced_text", "meets template"), ({"forced_text": {"1": 127}, "max_tokens": 6}, "forced_text", "it is the mask"),
        ({"forced_text": {"0": "a", "00": "b"}, "max_tokens": 6}, "forced_text", "gives token 0 twice"),
    ):  # fmt: skip
        response = client.post("/v1/chat/completions", json={**chat, **body})
        assert response.status_code == 400 and response.json()["error"]["param"] == field and told in response.text, response.text


def test_a_server_that_speaks_from_left_to_right_refuses_it_and_a_lenient_one_passes_it_over(tiny_llama, tiny_tokenizer):
    for lenient in (False, True):
        with LiveEngine(tiny_llama, tiny_tokenizer) as engine, TestClient(build_app(Served(engine, "tiny", lenient=lenient))) as client:
            fields = {"suffix": "x", **({"template": "a{2}"} if lenient else {})}
            response = client.post("/v1/completions", json={**TEXT, "max_tokens": 4, **fields})
            if lenient:
                assert response.status_code == 200 and response.headers["x-ignored-fields"] == "suffix, template"
            else:
                assert response.status_code == 400 and "asks for diffusion, but this llama speaks from left to right" in response.text
