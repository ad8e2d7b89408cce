"""Responses: whole and as events, read by OpenAI's own types, and stateless."""

import json
from typing import get_type_hints

import pytest
from fastapi.testclient import TestClient
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from pydantic import TypeAdapter

from seodang.data.chat import prompt_ids
from seodang.infer import SamplingParams, generate
from seodang.infer.engine.compat import OPENAI_PASSED_OVER, REQUEST
from seodang.infer.engine.live import LiveEngine
from seodang.infer.server.app import build_app
from seodang.infer.server.responses import ResponseBody
from seodang.infer.server.served import Served

EVENT = TypeAdapter(ResponseStreamEvent)
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {"도시": {"enum": ["수원"]}}, "required": ["도시"]}, "strict": False}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"도시": "수원"}}\n</tool_call>'
CALLED = {"type": "function_call", "name": "a", "arguments": "{}", "call_id": "a"}
TURN = [CALLED, CALLED, {"type": "function_call_output", "output": "x", "call_id": "a"}]  # of two messages
KINDS = {"reasoning": "response.reasoning_text", "message": "response.output_text", "function_call": "response.function_call_arguments"}


@pytest.fixture(scope="module")
def client(talker):
    with LiveEngine(*talker) as engine, TestClient(build_app(Served(engine, "tiny", template_kwargs=("enable_thinking",)))) as client:
        yield client


def post(client, **body):
    return client.post("/v1/responses", json={"model": "tiny", "input": "날씨?", "temperature": 0, "max_output_tokens": 200, **body})


def events_of(client, **body) -> list[dict]:
    """A stream's events, each named and numbered as it says itself, and read by OpenAI's types."""
    response = post(client, stream=True, **body)
    assert response.status_code == 200 and response.text.endswith("\n\n"), response.text
    events = []
    for frame in response.text.rstrip("\n").split("\n\n"):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert (name, event["sequence_number"]) == (f"event: {event['type']}", len(events))
        assert type(EVENT.validate_python(event)).model_validate(event, strict=True).type == event["type"]
        events.append(event)
    return events


def answered(client, **body) -> dict:
    """The whole answer; the stream comes to the same, item by item."""
    response = post(client, **body)
    assert response.status_code == 200, response.text
    whole, events = response.json(), events_of(client, **body)
    Response.model_validate(whole, strict=True)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]
    assert last["type"] == f"response.{whole['status']}" and len({event["response"]["id"] for event in (*events[:2], last)}) == 1
    alike = lambda found: {**found, "id": 0, "created_at": 0, "output": [{**item, "id": 0, "call_id": 0} for item in found["output"]], "usage": 0}
    assert alike(last["response"]) == alike(whole)
    for place, item in enumerate(last["response"]["output"]):
        name, own = KINDS[item["type"]], [event for event in events if event.get("output_index") == place]
        parts = [] if item["type"] == "function_call" else ["response.content_part.done"]
        begin = ["response.output_item.added", *(["response.content_part.added"] if parts else [])]
        middle = [event["delta"] for event in own if event["type"] == f"{name}.delta"]
        assert [event["type"] for event in own] == [*begin, *[f"{name}.delta"] * len(middle), f"{name}.done", *parts, "response.output_item.done"]
        assert {event.get("item_id") or event["item"]["id"] for event in own} == {item["id"]} and own[-1]["item"] == item
        text = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert "".join(middle) == text == own[-2 - len(parts)][{"function_call": "arguments"}.get(item["type"], "text")]
    return whole


def test_a_text_is_answered_as_generate_answers_it(client, talker):
    [result] = generate(*talker, [[{"role": "system", "content": "짧게."}, {"role": "user", "content": "날씨?"}]], SamplingParams(max_new_tokens=8))
    whole = answered(client, instructions="짧게.", max_output_tokens=8)
    [item] = whole["output"]
    assert item["content"][0]["text"] == result.text and (item["role"], item["status"]) == ("assistant", "incomplete")
    assert (whole["status"], whole["incomplete_details"], whole["temperature"]) == ("incomplete", {"reason": "max_output_tokens"}, 0.0)
    assert (whole["usage"]["input_tokens"], whole["usage"]["output_tokens"]) == (result.prompt_length, 8)
    assert whole["instructions"] == "짧게." and whole["store"] is False


def test_thinking_content_and_calls_are_items_of_their_own(client):
    whole = answered(client, choice=["<think>\n음\n</think>\n\n그래.\n" + CALL], tools=[TOOL])
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message", "function_call"] and whole["status"] == "completed"
    thinking, message, call = whole["output"]
    assert thinking["content"] == [{"type": "reasoning_text", "text": "음"}] and message["content"][0]["text"] == "그래."
    assert (call["name"], call["arguments"]) == ("weather", '{"도시": "수원"}')
    forced = answered(client, tools=[TOOL], tool_choice={"type": "function", "name": "weather"}, chat_template_kwargs={"enable_thinking": False})
    assert [(item["type"], item["arguments"]) for item in forced["output"]] == [("function_call", '{"도시": "수원"}')]


def test_a_format_is_obeyed_and_an_empty_answer_is_an_empty_message(client):
    whole = answered(client, text={"format": {"type": "json_schema", "name": "x", "schema": {"enum": ["서당"]}}})
    assert whole["output"][0]["content"][0]["text"] == '"서당"' and whole["status"] == "completed"
    [item] = answered(client, choice=["x"], stop="x")["output"]
    assert (item["type"], item["content"][0]["text"]) == ("message", "")


def test_a_text_format_goes_with_a_call_that_is_forced_and_reasoning_without_text_says_nothing(client, talker):
    how = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "chat_template_kwargs": {"enable_thinking": False}}
    whole = answered(client, text={"format": {"type": "text"}, "verbosity": None}, **how)
    assert [item["arguments"] for item in whole["output"]] == ['{"도시": "수원"}']
    asked = [{"role": "user", "content": "가"}, {"role": "user", "content": "나"}]
    usage = post(client, input=[asked[0], {"type": "reasoning", "summary": []}, asked[1]], max_output_tokens=1).json()["usage"]
    assert usage["input_tokens"] == len(prompt_ids(talker[1], asked))


def test_items_are_the_dialogue_that_they_were(client, talker):
    """What was answered is sent back item by item, with what the tool said."""
    first = post(client, choice=["<think>\n음\n</think>\n\n그래.\n" + CALL], tools=[TOOL]).json()["output"]
    items = [{"role": "user", "content": [{"type": "input_text", "text": "날씨?"}]}, *first]
    items.append({"type": "function_call_output", "call_id": first[2]["call_id"], "output": "맑음"})
    call = {"id": first[2]["call_id"], "type": "function", "function": {"name": "weather", "arguments": {"도시": "수원"}}}
    messages = [
        {"role": "user", "content": "날씨?"}, {"role": "assistant", "reasoning_content": "음", "content": "그래.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "맑음"},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {key: TOOL[key] for key in ("name", "parameters")}}]
    assert post(client, input=items, tools=[TOOL], max_output_tokens=1).json()["usage"]["input_tokens"] == len(prompt_ids(talker[1], messages, tools))


@pytest.mark.parametrize(
    "body, param, message",
    [
        ({"previous_response_id": "x"}, "previous_response_id", "nothing is kept"), ({"conversation": "x"}, "conversation", "nothing is kept"),
        ({"background": True}, "background", "leave it out"), ({"include": ["x"]}, "include", "leave it out"), ({"truncation": "auto"}, "truncation", "auto"),
        ({"input": []}, "input", "a text or a list of items"), ({"input": [{"type": "computer_call"}]}, "input", 'input[0] must be a message'),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input", "a part of type text"), ({"n": 2}, "n", "one answer"),
        ({"tools": [{"type": "web_search"}]}, "tools", "tools[0] must be"), ({"text": {"verbosity": "low"}}, "text", "verbosity"),
        ({"tools": [5], "tool_choice": "none"}, "tools", "tools[0] must be"), ({"reasoning": {"effort": 5}}, "reasoning", "reasoning.effort must be a text"),
        ({"input": [{"type": "reasoning", "content": 5}]}, "input", "input[0].content must be a list of parts"),
        ({"input": [{"type": "reasoning", "content": [5]}]}, "input", "input[0].content must be a list of parts"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "input must be a list of messages"),
        ({"input": [{"role": "user", "content": 5}], "instructions": "x"}, "input", "input[0].content must be a text"), ({"input": 5}, "input", "got 5"),
        ({"input": [*TURN, {"role": "user", "content": 5}]}, "input", "input[3].content must be a text"), ({"input": [{"type": "function_call"}]}, "input", "input[0]: a tool call must have a name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice", '{"type": "function", "name": ...}, got {"type": "function"}'),
        ({"max_output_tokens": 5000}, "max_output_tokens", "max_output_tokens=5000"), ({"top_logprobs": 3}, "top_logprobs", "/v1/chat/completions"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "does not know it"), ({"max_tokens": 3}, "max_tokens", "max_output_tokens"),
        ({"text": {"format": {"type": "json_schema", "schema": 5}}}, "text", "text.format"), ({"temperature": -1}, "temperature", "-1"),
        ({"reasoning": {"effort": 5}}, "reasoning", "reasoning.effort must be a text"), ({"max_completion_tokens": 3}, "max_completion_tokens", "max_output_tokens"),
        ({"continue_final_message": 5}, "continue_final_message", "leave it out"), ({"stream_options": {}}, "stream_options", "the last event has the usage"),
        ({"input": [{"type": "reasoning", "content": 5}]}, "input", "input[0].content must be"), ({"tools": [{"type": "x"}]}, "tools", '"name": ...'),
        ({"input": [{"role": "user"}], "instructions": "a"}, "input", "input[0].content is missing"),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_a_clients_mistake_is_a_400_that_names_it(client, body, param, message):
    error = (response := post(client, **body)).json()["error"]
    assert (response.status_code, error["param"]) == (400, param) and message in error["message"], error


def test_what_asks_for_nothing_is_taken_and_a_lenient_server_says_what_it_ignores(client, talker):
    neutral = {"n": 1, "trace": False, "top_logprobs": 0, "include": ["reasoning.encrypted_content"], "truncation": "disabled", "store": True, "user": "me"}
    assert post(client, max_output_tokens=2, **neutral).status_code == 200
    with LiveEngine(*talker) as engine, TestClient(build_app(Served(engine, "tiny", lenient=True))) as other:
        response = post(other, max_output_tokens=2, previous_response_id="x", truncation="auto", include=["x"], tempratur=1)
        assert response.status_code == 200 and response.headers["x-ignored-fields"] == "previous_response_id, truncation, include, tempratur"


def test_an_error_behind_the_headers_is_an_event(client, monkeypatch):
    monkeypatch.setattr("seodang.infer.requests.stop.SEARCH_SECONDS", 0.001)
    *_, last = events_of(client, stop_regex=r"(?s)(?:.|.)+[.;](?<=x.)", max_output_tokens=40)
    assert last["type"] == "error" and "takes more than" in last["message"] and last["param"] == "stop_regex"


def test_every_field_that_openai_knows_is_decided_on():
    """Honoured, accepted as bookkeeping, or refused by name: a new one of a later version shows here."""
    known = {*ResponseBody.model_fields, *ResponseBody.refused, *REQUEST, *OPENAI_PASSED_OVER}
    refused_as_unknown = {
        "access_programs", "background_options", "context_management", "image", "max_tool_calls", "moderation", "prompt_cache_options", "prompt_cache_retention",
    }  # fmt: skip
    assert set(get_type_hints(ResponseCreateParamsBase)) - known == refused_as_unknown
