import json
import pickle

import pytest

from seodang.data.errors import UserError
from seodang.data.formats import Dialogue, Text, recognise, to_example

ASKED, SAID = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}


@pytest.mark.parametrize(
    "shape, record, messages",
    [
        ("triplet", {"instruction": "Q", "output": "A"}, [ASKED, SAID]),
        ("triplet", {"instruction": "Q", "input": "", "output": "A", "text": "Below is"}, [ASKED, SAID]),
        ("triplet", {"instruction": "Q", "input": "X", "output": "A"}, [{"role": "user", "content": "Q\n\nX"}, SAID]),
        (
            "triplet",
            {"instruction": "Q2", "output": "A2", "system": "S", "history": [["Q", "A"]]},
            [SYSTEM, ASKED, SAID, {"role": "user", "content": "Q2"}, {"role": "assistant", "content": "A2"}],
        ),
        ("prompt_completion", {"prompt": "Q", "completion": "A"}, [ASKED, SAID]),
        ("prompt_completion", {"prompt": "Q", "completion": '[{"a": 1}]'}, [ASKED, {"role": "assistant", "content": '[{"a": 1}]'}]),
        ("prompt_completion", {"prompt": [SYSTEM, ASKED], "completion": [SAID]}, [SYSTEM, ASKED, SAID]),
        ("prompt_completion", {"prompt": [ASKED, SAID, ASKED], "completion": "A"}, [ASKED, {**SAID, "train": False}, ASKED, SAID]),
        ("messages", {"messages": [SYSTEM, ASKED, SAID], "prompt": "ignored"}, [SYSTEM, ASKED, SAID]),
        ("messages", {"messages": [ASKED, {**SAID, "weight": 0, "name": None}]}, [ASKED, {**SAID, "train": False}]),
        ("messages", {"messages": '[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]'}, [ASKED, SAID]),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"}, [SYSTEM, ASKED, SAID]),
        ("sharegpt", {"conversations": [ASKED, SAID]}, [ASKED, SAID]),
    ],
)
def test_each_shape_is_recognised_and_becomes_messages(shape, record, messages):
    assert recognise(record) == shape
    example = to_example(record, where="a.jsonl line 1")
    assert isinstance(example, Dialogue) and example.messages == messages and example.where == "a.jsonl line 1"


def test_plain_text_stays_text():
    assert to_example({"text": "나무", "label": 3}) == Text("나무")


def test_keys_that_are_none_do_not_decide_the_shape():
    assert recognise({"messages": None, "instruction": None, "prompt": "Q", "completion": "A"}) == "prompt_completion"


def test_tools_and_calls_pass_through():
    tools = [{"type": "function", "function": {"name": "add"}}]
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}
    messages = [ASKED, call, {"role": "tool", "content": "2"}, {**SAID, "reasoning_content": "R"}]
    example = to_example({"messages": messages, "tools": tools})
    assert example.tools == tools and example.messages == messages


def test_sharegpt_function_calls_become_tool_calls():
    turns = [{"from": "human", "value": "Q"}, {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}, {"from": "observation", "value": "2"}]
    example = to_example({"conversations": turns, "tools": '[{"type": "function", "function": {"name": "add"}}]'})
    assert example.messages[1]["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    assert example.messages[2] == {"role": "tool", "content": "2"}
    assert example.tools[0]["function"]["name"] == "add"


@pytest.mark.parametrize("written", ["User", "human", " Human ", "prompter"])
@pytest.mark.parametrize("answering", ["gpt", "bot", "Assistant", "model", "AI"])
def test_roles_as_other_tools_write_them_are_read_and_remembered(written, answering):
    [asked, answer] = to_example({"messages": [{"role": written, "content": "Q"}, {"role": answering, "content": "A"}]}).messages
    assert (asked, answer) == (ASKED, SAID) and json.dumps([asked, answer]) == json.dumps([ASKED, SAID])
    assert (asked["role"].written, answer["role"].written) == (written, answering)
    assert pickle.loads(pickle.dumps(asked))["role"].written == written


def test_openais_older_functions_become_tools_and_calls():
    add = {"name": "add", "parameters": {"type": "object", "properties": {}}}
    record = {
        "messages": [
            ASKED, {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}},
            {"role": "function", "name": "add", "content": "2"}, SAID,
        ],
        "functions": [add],
    }  # fmt: skip
    example = to_example(record)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert example.tools == [{"type": "function", "function": add}]
    assert example.messages == [ASKED, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "name": "add", "content": "2"}, SAID]
    assert to_example({"messages": [ASKED, SAID], "functions": ["sin", "cos"]}).tools is None  # a column of another meaning


@pytest.mark.parametrize("role", ["function_call", "tool_call"])
def test_a_turn_whose_role_says_that_it_is_a_call_becomes_one(role):
    told = [{"role": role, "content": '{"name": "add", "arguments": "{\\"a\\": 1}"}'}, {"role": "tool_response", "content": "2"}]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    made = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "2"}]
    assert to_example({"messages": [ASKED, *told]}).messages == [ASKED, *made]
    turns = [{"from": turn["role"], "value": turn["content"]} for turn in told]
    assert to_example({"conversations": [{"from": "Human", "value": "Q"}, *turns]}).messages == [ASKED, *made]


@pytest.mark.parametrize(
    "record, shape, named",
    [
        ({"instruction": "Q"}, None, "'output' is missing"),
        ({"prompt": "Q"}, None, "'completion' is missing"),
        ({"question": "Q", "answer": "A"}, None, "question, answer"),
        ({}, None, "keys none"),
        ({"instruction": "Q", "output": 3}, None, "output must be a text, got 3"),
        ({"instruction": "Q", "output": "A", "history": ["Q"]}, None, "history must be a list"),
        ({"messages": "Q"}, None, "messages must be a list"),
        ({"messages": ["Q"]}, None, "messages[0] must be an object"),
        ({"messages": [ASKED, {"role": "agent", "content": "A"}]}, None, "messages[1]: role must be one of"),
        ({"messages": [ASKED, {**SAID, "tool_calls": [{"name": "f", "parameters": {}}]}]}, None, "messages[1]: the call of 'f' has parameters"),
        ({"messages": [{"role": "user"}]}, None, "messages[0]: content must be"),
        ({"messages": [ASKED, {**SAID, "train": "no"}]}, None, "train must be true or false"),
        ({"conversations": [{"from": "human"}]}, None, "'value' is missing"),
        ({"conversations": [{"from": "alien", "value": "Q"}]}, None, "got 'alien'"),
        ({"conversations": [{"from": "function_call", "value": "add(1)"}]}, None, "function_call must be JSON"),
        ({"messages": [ASKED, SAID], "tools": "{"}, None, "tools is not JSON"),
        ({"text": "T"}, "triplet", "'instruction' is missing"),
        ({"text": "T"}, "alpaca", "shape must be one of"),
        (["Q", "A"], None, "must be an object"),
    ],
)
def test_a_bad_record_is_one_line_that_names_its_place(record, shape, named):
    with pytest.raises(UserError) as refused:
        to_example(record, shape, where="a.jsonl line 7")
    assert named in str(refused.value) and "a.jsonl line 7" in str(refused.value) or named.startswith("shape")
    assert "\n" not in str(refused.value)
