"""The parts of an answer: what each text is taken apart into, the same however it is cut."""

import json
import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seodang.infer.parsing.call_form import CallForm, ParameterForm
from seodang.infer.parsing.form import AnswerForm
from seodang.infer.parsing.parser import AnswerParser, CallArguments, CallBegun, Content, Thinking, joined, parsed

THINK = ("<think>", "</think>")
HERMES = CallForm("<tool_call>\n", '{"name": "', '", "arguments": ', "}", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", ("name", "arguments"))
LLAMA = CallForm("", '{"name": "', '", "parameters": ', "}", None, "", ("name", "parameters"))
LIST = CallForm("[TOOL_CALLS] [", '{"name": "', '", "arguments": ', ', "id": "call00001"}', ", ", "]", ("name", "arguments"))
MISTRAL = CallForm("[TOOL_CALLS]", "", "[ARGS]", "", "[TOOL_CALLS]", "")
CODER = CallForm(
    "<tool_call>\n<function=", "", ">\n", "", "</function>\n</tool_call>\n<tool_call>\n<function=", "</function>\n</tool_call>",
    parameters=ParameterForm("<parameter=", ">\n", "\n</parameter>\n", True),
)  # fmt: skip
CHANNELS = AnswerForm(
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"), "<|channel|>final<|message|>",
    CallForm(" to=functions.", "", "<|channel|>commentary json<|message|>", "", None, ""),
)  # fmt: skip
FORMS = {name: AnswerForm(THINK, calls=calls) for name, calls in (("hermes", HERMES), ("list", LIST), ("mistral", MISTRAL), ("coder", CODER))}
FORMS |= {"llama": AnswerForm(calls=LLAMA), "channels": CHANNELS}
PROPERTIES = {"a": {"type": "string"}, "b": {"type": "integer"}, "c": {"type": ["string", "null"]}, "d": {}, "e": {"anyOf": [{"type": "boolean"}]}}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": PROPERTIES}}} for name in ("add", "add_two")]


def of(answer):
    return answer.thinking, answer.content, [(call.name, call.arguments) for call in answer.calls]


def streamed(form, pieces, **how):
    """The joined answer of pieces, once it is checked what the parts promise."""
    parser = AnswerParser(form, **how)
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.finish()
    begun = [part for part in parts if isinstance(part, CallBegun)]
    assert [part.index for part in begun] == list(range(len(begun))) and len({part.id for part in begun}) == len(begun)
    assert all(re.fullmatch("call_[0-9a-f]{24}", part.id) for part in begun)
    open_call = -1
    for part in parts:
        open_call = part.index if isinstance(part, CallBegun) else open_call
        assert part.text if not isinstance(part, CallBegun) else part.name
        assert not isinstance(part, CallArguments) or part.index == open_call
    return of(joined(parts))


ADD = '<tool_call>\n{"name": "add", "arguments": {"a": "x"}}\n</tool_call>'
CASES = [
    ("hermes", "Hi.", "", "Hi.", []),
    ("hermes", " Hi.\n", "", " Hi.\n", []),
    ("hermes", "<think>\nhm \n</think>\n\nHi.\n", "hm", "Hi.\n", []),
    ("hermes", "\n<think>hm", "hm", "", []),
    ("hermes", "<think></think>Hi", "", "Hi", []),
    ("hermes", "Hi <think>x</think>", "", "Hi <think>x</think>", []),
    ("hermes", "<thin", "", "<thin", []),
    ("hermes", f"<think>a</think>\n{ADD}", "a", "", [("add", '{"a": "x"}')]),
    ("hermes", f"<think>a</think>\n\nHi.\n{ADD}\n", "a", "Hi.", [("add", '{"a": "x"}')]),
    ("hermes", f"{ADD}\n{ADD.replace('add', 'add_two')}", "", "", [("add", '{"a": "x"}'), ("add_two", '{"a": "x"}')]),
    ("hermes", f"{ADD} bye", "", "bye", [("add", '{"a": "x"}')]),
    ("hermes", f"{ADD} and\n{ADD}", "", "and", [("add", '{"a": "x"}')] * 2),
    ("hermes", ADD.replace("add", "sub"), "", ADD.replace("add", "sub"), []),  # no tool of that name
    ("hermes", f"{ADD}\n{ADD.replace('add', 'sub')}", "", ADD.replace("add", "sub"), [("add", '{"a": "x"}')]),
    ("hermes", "a <tool_call> b", "", "a <tool_call> b", []),
    ("hermes", f"<tool_call>{ADD}", "", "<tool_call>", [("add", '{"a": "x"}')]),
    ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>', []),
    ("hermes", '<tool_call>{"name": "add"}</tool_call>', "", "", [("add", "{}")]),
    ("hermes", '<tool_call>{"arguments": {"a": "}\\""}, "name": "add"}</tool_call>', "", "", [("add", '{"a": "}\\""}')]),
    ("hermes", '<tool_call>{"id": 1, "name":"add","arguments":{"a":[{}]},"type":"x"}</tool_call>', "", "", [("add", '{"a":[{}]}')]),
    ("hermes", ADD[:-16], "", "", [("add", '{"a": "x')]),  # cut off
    ("hermes", ADD[:-5], "", "", [("add", '{"a": "x"}')]),
    ("hermes", '<tool_call>\n{"name": "ad', "", '<tool_call>\n{"name": "ad', []),
    ("llama", '{"name": "add", "parameters": {"b": 1}}', "", "", [("add", '{"b": 1}')]),
    ("llama", '\n{"name": "add", "parameters": {"b": 1}} ok', "", "ok", [("add", '{"b": 1}')]),
    ("llama", 'So {"name": "add", "parameters": {}}', "", 'So {"name": "add", "parameters": {}}', []),
    ("llama", '{"name": "Kim", "parameters": {}}', "", '{"name": "Kim", "parameters": {}}', []),
    ("llama", '{"a": 1}', "", '{"a": 1}', []),
    ("list", '[TOOL_CALLS] [{"name": "add", "arguments": {}, "id": "123456789"}, {"name": "add_two", "arguments": {"a": "]"}, "id": "abc"}]', "", "",
     [("add", "{}"), ("add_two", '{"a": "]"}')]),
    ("mistral", 'Hm[TOOL_CALLS]add_two[ARGS]{"a": 1}[TOOL_CALLS]add[ARGS]{}', "", "Hm", [("add_two", '{"a": 1}'), ("add", "{}")]),
    ("mistral", "[TOOL_CALLS]add[ARGS]so", "", "[TOOL_CALLS]add[ARGS]so", []),
    ("coder", "Hi\n\n<tool_call>\n<function=add>\n<parameter=a>\n 1\n\n</parameter>\n<parameter=b>\n2\n</parameter>\n</function>\n</tool_call>", "", "Hi",
     [("add", '{"a": " 1\\n", "b": 2}')]),
    ("coder", "<tool_call>\n<function=add>\n</function>\n</tool_call>\n<tool_call><function=add_two>\n</function></tool_call>.", "", ".",
     [("add", "{}"), ("add_two", "{}")]),
    ("coder", "<tool_call>\n<function=add>\n<parameter=a>\n</parameter> </para\n</parameter>\n<parameter=e>\nTrue\n</parameter>\n</function>\n</tool_call>", "", "",
     [("add", '{"a": "</parameter> </para", "e": true}')]),
    ("coder", "<tool_call>\n<function=add>\n<parameter=c>\nNone\n</parameter>\n<parameter=d>\n[1]\n</parameter>\n<parameter=z>\nwie\n</parameter>\n</function>\n"
     "</tool_call>", "", "", [("add", '{"c": null, "d": [1], "z": "wie"}')]),
    ("coder", "<tool_call>\n<function=add>\n<parameter=b>\n1\n</parameter>\n<parameter=a>\n수", "", "", [("add", '{"b": 1, "a": "수')]),
    ("coder", "<tool_call>\n<function=add>\n<parameter=a>\nx\n</parameter>", "", "", [("add", '{"a": "x"}')]),
    ("channels", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hi.", "hm", "Hi.", []),
    ("channels", "<|channel|>final<|message|>Hi.", "", "Hi.", []),
    ("channels", '<|channel|>analysis<|message|>hm<|end|><|start|>assistant to=functions.add<|channel|>commentary json<|message|>{"a": 1}', "hm", "",
     [("add", '{"a": 1}')]),
]  # fmt: skip


@pytest.mark.parametrize("name, text, thinking, content, calls", CASES)
def test_an_answer_is_taken_apart_the_same_whole_and_letter_by_letter(name, text, thinking, content, calls):
    expected = thinking, content, calls
    assert of(parsed(FORMS[name], text, tools=TOOLS)) == expected
    assert streamed(FORMS[name], text, tools=TOOLS) == expected
    for at in range(1, len(text)):
        assert streamed(FORMS[name], [text[:at], text[at:]], tools=TOOLS) == expected


PIECES = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "\n", " ", '{"name": "add', '_two', '", "arguments": ', '", "parameters": ', '{"a": "x"}', "{}", "}", "]",
    ", ", "[TOOL_CALLS]", " [", "[ARGS]", "add", "<function=add>", "</function>", "<parameter=a>", "<parameter=b>", "</parameter>", "Hi", "<", "가", '"', "\\",
    "<|channel|>", "final", "<|message|>", ' to=functions.add<|channel|>commentary json', '"name": "add"}', '{"arguments": ', ', "id": "x"}',
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from(sorted(FORMS)), pieces=st.lists(st.sampled_from(PIECES), max_size=14), data=st.data(), in_thinking=st.booleans())
def test_cuts_change_nothing(name, pieces, data, in_thinking):
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    how = {"in_thinking": in_thinking, "tools": TOOLS}
    whole = of(parsed(FORMS[name], text, **how))
    assert streamed(FORMS[name], [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)], **how) == whole
    assert streamed(FORMS[name], text, **how) == whole
    if not in_thinking and not any(tag in text for tag in (*THINK, "<|channel|>")):  # without thinking, nothing but white space and calls is lost
        without = of(parsed(FORMS[name], text))
        assert without == ("", text, [])


def test_what_no_marker_begins_with_is_shown_at_once():
    parser = AnswerParser(FORMS["hermes"], tools=TOOLS)
    assert parser.push("Hi") == [Content("Hi")]
    assert parser.push(" you ") == [Content(" you")]
    assert parser.push("< 3 <tool") == [Content(" < 3")]
    assert parser.push(" ") == [Content(" <tool")]
    assert parser.push('\n<tool_call>\n{"name": "add", "arguments": ') == []
    [begun, arguments] = parser.push('{"a": "f')
    assert (begun.index, begun.name, arguments) == (0, "add", CallArguments(0, '{"a": "f'))
    assert parser.push("<oo") == [CallArguments(0, "<oo")]
    assert parser.push('"}}') == [CallArguments(0, '"}')]
    assert parser.push("</tool_call>") == parser.finish() == []


def test_a_thought_that_the_prompt_opened():
    for text in ("hm\n</think>\n\nHi.", "\n hm</think>Hi.", "<think>\nhm</think>Hi."):
        assert of(parsed(FORMS["hermes"], text, in_thinking=True)) == ("hm", "Hi.", [])
    parser = AnswerParser(FORMS["hermes"], in_thinking=True)
    assert [*parser.push("a b\n"), *parser.push("c </th"), *parser.push("e </think> d")] == [Thinking("a b"), Thinking("\nc"), Thinking(" </the"), Content("d")]


def test_without_tools_nothing_is_a_call():
    for name, text in (("hermes", ADD), ("llama", '{"name": "add", "parameters": {}}')):
        assert of(parsed(FORMS[name], text)) == ("", text, [])


def test_short_ids():
    form = AnswerForm(calls=MISTRAL, short_ids=True)
    [call] = parsed(form, "[TOOL_CALLS]add[ARGS]{}", tools=TOOLS).calls
    assert re.fullmatch("[0-9a-f]{9}", call.id)


@given(value=st.text(alphabet="{}[]\"\\,: a가\n"), other=st.text(alphabet="{}[]\"\\,: a1"))
@example("\\", '{"')
@settings(max_examples=100, deadline=None)
def test_any_text_stands_in_arguments(value, other):
    arguments = json.dumps({"a": value, other: [other, {"x": value}]})
    text = f'[TOOL_CALLS]add[ARGS]{arguments}'
    assert streamed(FORMS["mistral"], text, tools=TOOLS) == ("", "", [("add", arguments)])


def test_a_long_run_of_blanks_costs_no_more_a_piece_than_it_is_long():
    parser = AnswerParser(FORMS["hermes"], tools=TOOLS)
    began = time.process_time()
    parts = [part for _ in range(3000) for part in parser.push("\n   ")]
    assert time.process_time() - began < 2  # looking for a marker behind each blank took minutes
    assert parts == [] and parser.push("x") == [Content("\n   " * 3000 + "x")]
