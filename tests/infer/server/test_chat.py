"""Chat completions: content, thinking and tool calls, whole and streamed alike; each mistake named."""

import copy
import json
from typing import get_type_hints

import pytest
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from seodang.data.chat import prompt_ids
from seodang.infer import SamplingParams, generate
from seodang.infer.engine.compat import OPENAI_NEUTRAL, OPENAI_PASSED_OVER, REQUEST
from seodang.infer.engine.live import LiveEngine
from seodang.infer.server.app import build_app
from seodang.infer.server.chat import ChatBody
from seodang.infer.server.served import Served

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "?",
        "parameters": {
            "type": "object",
            "properties": {"도시": {"enum": ["수원", "서울"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["도시"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}


def tool(**parameters) -> dict:
    return {"type": "function", "function": {"name": "time", "parameters": {"type": "object", **parameters}}}


ARGUMENTS = Draft202012Validator({**WEATHER["function"]["parameters"], "additionalProperties": False})
ASK = [{"role": "user", "content": "날씨?"}]


@pytest.fixture(scope="module")
def client(talker):
    with LiveEngine(*talker, max_rows=8) as engine, TestClient(build_app(Served(engine, "tiny", template_kwargs=("enable_thinking",)))) as client:
        yield client


def post(client, **body):
    return client.post("/v1/chat/completions", json={"model": "tiny", "messages": ASK, "temperature": 0, "max_tokens": 300, **body})


def chunks_of(client, **body) -> list[dict]:
    """The chunks of a stream: of one id, a role first, each choice's finish_reason in its own last chunk, and [DONE]."""
    response = post(client, stream=True, **body)
    assert response.status_code == 200, response.text
    *frames, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    for index in {choice["index"] for chunk in chunks for choice in chunk["choices"]}:
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""} and all("role" not in choice["delta"] for choice in own[1:])
        assert [choice["finish_reason"] is None for choice in own] == [True] * (len(own) - 1) + [False]
    return chunks


def joined(chunks: list[dict], index: int = 0) -> dict:
    """A choice's message and finish reason out of its chunks, put together as a client does."""
    content, thinking, calls, reason = "", "", {}, None
    for choice in (choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index):
        delta = choice["delta"]
        content += delta.get("content", "")
        thinking += delta.get("reasoning_content", "")
        for piece in delta.get("tool_calls", []):
            call = calls.setdefault(piece["index"], {"name": "", "arguments": "", "ids": 0})
            call["ids"] += "id" in piece
            call["name"] += piece["function"].get("name", "")
            call["arguments"] += piece["function"]["arguments"]
        reason = choice["finish_reason"] or reason
    assert all(call["ids"] == 1 for call in calls.values())
    return {"content": content, "thinking": thinking, "calls": [(call["name"], call["arguments"]) for call in calls.values()], "reason": reason}


def answered(client, **body) -> dict:
    """The same of the whole answer; the stream says it too."""
    response = post(client, **body)
    assert response.status_code == 200, response.text
    whole = ChatCompletion.model_validate(response.json(), strict=True)
    [choice] = whole.choices
    message = choice.message
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
    assert message.content is not None or calls
    found = {"content": message.content or "", "thinking": getattr(message, "reasoning_content", ""), "calls": calls, "reason": choice.finish_reason}
    assert joined(chunks_of(client, **body)) == found
    return found


def error_of(response, param: str | None, status: int = 400) -> str:
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), error
    return error["message"]


def test_an_answer_is_what_generate_says_to_the_same_messages(client, talker):
    for content in ("날씨?", [{"type": "text", "text": "날"}, {"type": "text", "text": "씨?"}]):
        [result] = generate(*talker, [ASK], SamplingParams(max_new_tokens=9))
        found = answered(client, messages=[{"role": "user", "content": content}], max_tokens=9, tool_choice="none")
        assert found == {"content": result.text, "thinking": "", "calls": [], "reason": "length"}
    usage = post(client, max_tokens=9).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (result.prompt_length, 9)
    torn = [{"type": "text", "text": "<|im_"}, {"type": "text", "text": "end|>"}]  # is text like any other, not the end of a turn
    wanted = prompt_ids(talker[1], [{"role": "user", "content": "<|im_end|>"}])
    assert client.post("/tokenize", json={"messages": [{"role": "user", "content": torn}]}).json()["tokens"] == wanted
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}
    assert chunks_of(client, max_tokens=9, stream_options={"include_usage": True})[-1]["usage"]["total_tokens"] == result.prompt_length + 9


CALLS = '<tool_call>\n{"name": "weather", "arguments": {"도시": "수원"}}\n</tool_call>\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
MADE = [("weather", '{"도시": "수원"}'), ("time", "{}")]


@pytest.mark.parametrize(
    "says, content, thinking, calls",
    [
        ("안녕", "안녕", "", []), ("<think>\n음\n</think>\n\n안녕", "안녕", "음", []), (CALLS, "", "", MADE),
        ("<think>\n음\n</think>\n\n" + CALLS, "", "음", MADE), ("그래.\n" + CALLS, "그래.", "", MADE),
        ('<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>', '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>', "", []),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_thinking_content_and_calls_are_told_apart_whole_and_streamed(client, says, content, thinking, calls):
    found = answered(client, choice=[says], tools=[WEATHER, TIME])
    assert found == {"content": content, "thinking": thinking, "calls": calls, "reason": "tool_calls" if calls else "stop"}
    message = post(client, choice=[says], tools=[WEATHER, TIME]).json()["choices"][0]["message"]
    assert message["content"] == (content or None) and len({call["id"] for call in message.get("tool_calls", [])}) == len(calls)
    if says == CALLS:
        assert answered(client, choice=[says]) == {"content": says, "thinking": "", "calls": [], "reason": "stop"}  # without tools


def test_arguments_come_in_pieces_and_a_call_that_is_cut_off_ends_by_its_length(client):
    pieces = [
        piece for chunk in chunks_of(client, choice=[CALLS], tools=[WEATHER, TIME]) for choice in chunk["choices"]
        for piece in choice["delta"].get("tool_calls", []) if piece["index"] == 0
    ]  # fmt: skip
    assert len(pieces) > 6 and json.loads("".join(piece["function"]["arguments"] for piece in pieces)) == {"도시": "수원"}
    found = answered(client, choice=[CALLS], tools=[WEATHER, TIME], max_tokens=60)
    assert found["reason"] == "length" and '{"도시": "수원"}'.startswith(found["calls"][0][1])


def test_control_tokens_split_the_answer_whatever_a_stop_text_holds_back(talker):
    """Where the marks of thinking and calls are control tokens, which no text has: they stay in their places, the stop texts as well."""
    model, tokenizer = talker
    tokenizer, marks = copy.deepcopy(tokenizer), ["<think>", "</think>", "<tool_call>", "</tool_call>"]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *marks]})
    model = copy.deepcopy(model)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    written = ["<think>", "\n음", "</think>", "\n\n그래", "<tool_call>", '\n{"name": "time", "arguments": {}}\n', "</tool_call>"]
    ids = dict(zip(marks, tokenizer.convert_tokens_to_ids(marks), strict=True))
    grammar = "start: " + " ".join(f"<[{ids[each]}]>" if each in ids else json.dumps(each, ensure_ascii=False) for each in written)
    whole = {"content": "그래", "thinking": "음", "calls": [("time", "{}")], "reason": "tool_calls"}
    with LiveEngine(model, tokenizer) as engine, TestClient(build_app(Served(engine, "tiny"))) as other:
        for stop in ([], ["래!"], ["음!", "}\n?"], ["\n\n그늘", '{"x']):
            assert answered(other, guided_grammar=grammar, tools=[TIME], stop=stop) == whole, stop
        cut = answered(other, guided_grammar=grammar, tools=[TIME], stop="그")
        assert cut == {"content": "", "thinking": "음", "calls": [], "reason": "stop"}


def test_what_is_thought_is_counted(client):
    usage = post(client, choice=["<think>\n음\n</think>\n\n안녕"]).json()["usage"]
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"] - 5


def test_a_call_is_forced_of_any_tool_or_of_one_by_name(client):
    names = set()
    for seed in range(2):
        how = {"tools": [WEATHER, TIME], "temperature": 1, "seed": seed, "parallel_tool_calls": False, "chat_template_kwargs": {"enable_thinking": False}}
        found = answered(client, tool_choice="required", **how)
        names |= {name for name, _ in found["calls"]}
        assert found["reason"] == "tool_calls" and found["content"] == ""
        assert all(name == "time" or ARGUMENTS.is_valid(json.loads(arguments)) for name, arguments in found["calls"])
        named = answered(client, tool_choice={"type": "function", "function": {"name": "weather"}}, **how)
        [(name, arguments)] = named["calls"]
        assert name == "weather" and ARGUMENTS.is_valid(json.loads(arguments)) and named["reason"] == "tool_calls"
    assert names <= {"weather", "time"}


def test_several_answers_have_their_own_deltas_and_log_probabilities(client, talker):
    how = {"n": 2, "temperature": 1.0, "seed": 5, "max_tokens": 8, "logprobs": True, "top_logprobs": 2}
    results = generate(*talker, [ASK], SamplingParams(num_return_sequences=2, temperature=1.0, seed=5, max_new_tokens=8, logprobs=2))
    whole = post(client, **how).json()["choices"]
    chunks = chunks_of(client, **how)
    for index, result in enumerate(results):
        assert joined(chunks, index)["content"] == whole[index]["message"]["content"] == result.text
        wanted = [each for each in result.top_logprobs if each.bytes]
        known = whole[index]["logprobs"]["content"]
        assert [bytes(each["bytes"]) for each in known] == [each.bytes for each in wanted]
        assert [each["logprob"] for each in known] == pytest.approx([each.logprob for each in wanted], abs=1e-5)
        assert [len(each["top_logprobs"]) for each in known] == [2] * len(known)
        parts = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index and choice["logprobs"]]
        assert [each["token"] for part in parts for each in part["content"]] == [each["token"] for each in known]


def test_what_is_thought_of_the_prompt_is_what_completions_tell_of_its_ids(client, talker):
    """By ids, whole and in the first chunk of each answer."""
    ids = prompt_ids(talker[1], ASK)
    how = {"prompt_logprobs": 2, "max_tokens": 1, "temperature": 1, "seed": 3, "n": 2}
    told = client.post("/v1/completions", json={"prompt": ids, **how}).json()["choices"][0]["prompt_logprobs"]
    assert told[0] is None and [str(id) in each for id, each in zip(ids[1:], told[1:], strict=True)] == [True] * (len(ids) - 1)
    whole = [choice["prompt_logprobs"] for choice in post(client, **how).json()["choices"]]
    streamed = [choice["prompt_logprobs"] for chunk in chunks_of(client, **how) for choice in chunk["choices"] if "prompt_logprobs" in choice]
    assert len(whole) == len(streamed) == 2
    for known in (*whole, *streamed):
        assert [each and each.keys() for each in known] == [each and each.keys() for each in told]
        for one, other in zip(known[1:], told[1:], strict=True):
            assert [each["logprob"] for each in one.values()] == pytest.approx([each["logprob"] for each in other.values()], abs=1e-5)


def test_the_last_message_can_be_the_answers_beginning(client, talker):
    begun = [*ASK, {"role": "assistant", "content": [{"type": "text", "text": "그래."}, {"type": "text", "text": " "}], "audio": {"id": 1}}]
    found = answered(client, messages=begun, continue_final_message=True, add_generation_prompt=False, max_tokens=7)
    [result] = generate(*talker, [ASK], SamplingParams(prefix="그래. ", max_new_tokens=7 + len(talker[1]("그래. ")["input_ids"])))
    assert "그래. " + found["content"] == result.text
    usage = post(client, messages=begun, continue_final_message=True, add_generation_prompt=False, max_tokens=7).json()["usage"]
    assert (usage["completion_tokens"], usage["prompt_tokens"]) == (7, result.prompt_length + len(result.ids) - 7)
    thought = [*ASK, {**begun[1], "reasoning_content": "음"}]
    told = error_of(post(client, messages=thought, continue_final_message=True, add_generation_prompt=False), "messages")
    assert "messages[1] has reasoning_content, which cannot be continued" in told


def test_a_schema_is_obeyed_behind_thinking_that_the_prompt_has_opened(client, talker):
    """A template whose prompt opens the thinking: what is asked for is said after its end."""
    model, tokenizer = talker
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}", 1)
    opened = prompt_ids(tokenizer, ASK)
    assert tokenizer.decode(opened).endswith("<think>\n")
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["서당"]}}}
    with LiveEngine(model, tokenizer) as engine, TestClient(build_app(Served(engine, "tiny"))) as other:
        found = answered(other, response_format=schema, max_tokens=60)
        assert found["content"] == '"서당"' and found["thinking"] and found["reason"] == "stop"
        begun = {"messages": [*ASK, {"role": "assistant", "content": "그래"}], "continue_final_message": True, "add_generation_prompt": False}
        assert "opens its thinking" in error_of(post(other, **begun), "continue_final_message")


@pytest.mark.parametrize(
    "body, param, message",
    [
        ({"messages": []}, "messages", "must be a list of messages, got []"), ({"messages": None}, "messages", "is missing"),
        ({"messages": [5]}, "messages", "messages[0] must be an object"), ({"messages": [{"role": "boss", "content": "a"}]}, "messages", 'got "boss"'),
        ({"messages": [{"role": "user"}]}, "messages", "messages[0].content is missing"), ({"messages": [{"role": "user", "content": 5}]}, "messages", "got 5"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages", "messages[0].content[0] must be a part of type text"),
        ({"messages": [{"role": "user", "content": [{"type": []}]}]}, "messages", "messages[0].content[0] must be a part of type text"),
        ({"messages": [{"role": "user", "content": "a", "colour": 1}]}, "messages", "has 'colour', which is unknown"),
        ({"messages": [{"role": "assistant", "tool_calls": [5]}]}, "messages", "messages[0]: a tool call must be an object"),
        ({"tools": 5}, "tools", "must be a list"), ({"tools": [{"type": "custom"}]}, "tools", "tools[0] must be"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "tools[0].function.name"), ({"tools": [TIME, TIME]}, "tools", "another tool"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]}, "tools", "schema of an object"),
        ({"tools": [tool(properties=5)]}, "tools", "tools[0].function.parameters.properties must be an object, got 5"),
        ({"tools": [tool(properties={"a": {"anyOf": 5}})], "tool_choice": "none"}, "tools", "parameters.properties.a.anyOf must be a list, got 5"),
        ({"messages": [{"role": "user", "content": "a", "name": 5}]}, "messages", "messages[0].name must be a text, got 5"),
        ({"messages": [*ASK, {"role": "assistant", "content": "a", "reasoning_content": []}]}, "messages", "messages[1].reasoning_content must be a text"),
        ({"tools": [tool(properties={"a": {"pattern": 5}})]}, "tools", "parameters.properties.a.pattern must be a text, got 5"),
        (
            {"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "a", "parameters": {"properties": {"b": {"type": "x"}}}}}]},
            "tools", "tools cannot be used",
        ),
        (
            {"messages": [*ASK, {"role": "assistant", "content": "x"}], "continue_final_message": True, "add_generation_prompt": False, "regex": "y"},
            "messages", "messages='x' is no beginning that regex allows",
        ),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"), ({"tool_choice": "any", "tools": [TIME]}, "tool_choice", 'got "any"'),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": [TIME]}, "tool_choice", "names 'x', and the tools are time"),
        ({"tool_choice": "required", "tools": [TIME], "response_format": {"type": "json_object"}}, "response_format", "leave one of them out"),
        ({"functions": [5]}, "functions", "write them as tools"), ({"prompt": "a"}, "prompt", "give messages"), ({"chat_template": "x"}, "chat_template", "leave it out"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs=true"), ({"logprobs": 2}, "logprobs", "true or false"), ({"max_tokens": 0}, "max_tokens", "greater than"),
        ({"max_completion_tokens": 5}, "max_tokens", "differ"), ({"chat_template_kwargs": {"date": 1}}, "chat_template_kwargs", "allows enable_thinking"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "does not know it"), ({"continue_final_message": True}, "continue_final_message", "give both"),
        ({"add_generation_prompt": False}, "continue_final_message", "give both"), ({"verbosity": "low"}, "verbosity", "unknown"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "messages", "an assistant's message"), ({"audio": {}}, "audio", "unknown"),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_a_clients_mistake_is_a_400_that_names_it(client, body, param, message):
    assert message in error_of(post(client, **body), param)


def test_a_template_without_tools_refuses_them_and_one_that_is_none_says_so(tiny_llama, tiny_tokenizer):
    with LiveEngine(tiny_llama, tiny_tokenizer) as engine, TestClient(build_app(Served(engine, "tiny"))) as client:
        assert "chat template shows it none" in error_of(post(client, tools=[TIME], messages=[{"role": "user", "content": "a"}]), "tools")
    bare = copy.deepcopy(tiny_tokenizer)
    bare.chat_template = None
    with LiveEngine(tiny_llama, bare) as engine, TestClient(build_app(Served(engine, "tiny"))) as client:
        assert "the tokenizer has no chat template" in error_of(post(client), None)


def test_templates_get_what_the_operator_allows(client, talker):
    plain, short = (post(client, max_tokens=1, chat_template_kwargs=given).json()["usage"]["prompt_tokens"] for given in (None, {"enable_thinking": False}))
    assert plain == len(prompt_ids(talker[1], ASK)) and short == len(prompt_ids(talker[1], ASK, enable_thinking=False)) > plain
    found = client.post("/tokenize", json={"messages": ASK, "tools": [TIME], "chat_template_kwargs": {"enable_thinking": False}}).json()
    assert found["tokens"] == prompt_ids(talker[1], ASK, [TIME], enable_thinking=False)
    assert "one of them" in error_of(client.post("/tokenize", json={"messages": ASK, "prompt": "a"}), "prompt")


def test_a_reasoning_effort_reaches_the_template_that_knows_it(talker):
    model, tokenizer = talker
    tokenizer = copy.deepcopy(tokenizer)
    plain = prompt_ids(tokenizer, ASK)
    with LiveEngine(model, tokenizer) as engine, TestClient(build_app(Served(engine, "tiny", lenient=True))) as other:
        response = post(other, reasoning_effort="low", max_tokens=1)
        assert (response.json()["usage"]["prompt_tokens"], response.headers["x-ignored-fields"]) == (len(plain), "reasoning_effort")
    tokenizer.chat_template = "{{ reasoning_effort | default('') }}" + tokenizer.chat_template
    wanted = prompt_ids(tokenizer, ASK, reasoning_effort="low")
    with LiveEngine(model, tokenizer) as engine, TestClient(build_app(Served(engine, "tiny"))) as other:
        assert post(other, reasoning_effort="low", max_tokens=1).json()["usage"]["prompt_tokens"] == len(wanted) == len(plain) + 3


def test_a_format_that_asks_for_nothing_goes_with_a_call_that_is_forced(client):
    how = {"tools": [TIME], "tool_choice": "required", "parallel_tool_calls": False, "chat_template_kwargs": {"enable_thinking": False}}
    for nothing in ({"response_format": {"type": "text"}}, {"structured_outputs": {}}, {"response_format": None}):
        assert answered(client, **how, **nothing)["calls"] == [("time", "{}")]


def test_a_whole_round_of_a_call_and_its_result(client, talker):
    """An answer is sent back as it came, nulls and all, with what the tool said."""
    message = post(client, choice=[CALLS], tools=[WEATHER, TIME]).json()["choices"][0]["message"]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "맑음"} for call in message["tool_calls"]]
    again = {"messages": [*ASK, {**message, "annotations": [], "audio": None}, *results], "tools": [WEATHER, TIME], "max_tokens": 5}
    sent = [{**message, "content": ""}, *results]
    ids = prompt_ids(talker[1], [*ASK, *({key: value for key, value in each.items() if value is not None} for each in sent)], [WEATHER, TIME])
    assert post(client, **again).json()["usage"]["prompt_tokens"] == len(ids)


def test_every_field_that_openai_knows_is_decided_on():
    """Honoured, accepted as bookkeeping, or refused by name: a new one of a later version shows here."""
    known = {*ChatBody.model_fields, *ChatBody.refused, *REQUEST, *OPENAI_PASSED_OVER, *OPENAI_NEUTRAL, "response_format"}
    refused_as_unknown = {"audio", "moderation", "prediction", "verbosity", "web_search_options", "prompt_cache_options", "prompt_cache_retention"}
    assert set(get_type_hints(CompletionCreateParamsBase)) - known == refused_as_unknown
