"""What a template writes for an answer of thinking, content and calls parses back to the same."""

import json
from pathlib import Path

import pytest
import trl

from seodang.data.conversation import Conversation
from seodang.data.errors import UserError
from seodang.infer.parsing.form import answer_form
from seodang.infer.parsing.parser import parsed
from seodang.infer.text.detokenise import special_ids

PROPERTIES = {
    "text": {"type": "string"}, "number": {"type": "integer"}, "share": {"type": "number"}, "on": {"type": "boolean"},
    "nested": {"type": "object"}, "list": {"type": "array"}, "도시": {"type": "string"},
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "?", "parameters": {"type": "object", "properties": properties}}}
    for name, properties in {"get_weather": PROPERTIES, "get_weather_of": PROPERTIES, "now": {}}.items()
]
CALLS = [
    ("get_weather_of", {"text": 'He said "hi",\n\tand {left}; it\'s </b> 1', "number": 3, "share": 0.5, "on": True, "도시": "수원 "}),
    ("get_weather", {"nested": {"deep": [{"a": None, "b": [True, 'q"q']}]}, "list": [1, "둘\n", []], "text": "12"}),
    ("now", {}),
]
CONTENT, THOUGHT = "알겠습니다.\nI look it up: 1 < 2.", "First this,\n\nthen that."
USER = {"role": "user", "content": "날씨?"}
FILES = sorted(path.stem for path in Path(trl.__file__).parent.glob("chat_templates/*.jinja"))
KNOWN = [name for name in FILES if name.startswith(("deepseek", "glm", "gptoss", "llama3_", "muse", "nemotron", "qwen")) and name != "llama3_training"]
KNOWN = [name for name in KNOWN if not name.startswith("qwen2_5_vl")] + ["mistral_v3", "mistral_v11", "mistral_v13", "kimi", "arguments_first"]


def emitted(tokenizer, message):
    """The text that the model would emit for a message, up to its end of turn, and the prompt before it."""
    conversation = Conversation(tokenizer, [USER, message], TOOLS)
    turn = conversation.turn(conversation.messages[:1], conversation.messages[1])
    seen = answer_form(tokenizer).control_ids
    hidden = special_ids(tokenizer) - seen
    ids = [id for id in turn.answer_ids[:-1] if id not in hidden]
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False), tokenizer.decode(turn.prompt_ids), turn.notes


@pytest.mark.parametrize("name", KNOWN)
def test_calls_come_back(templated, name):
    tokenizer = templated(name)
    form = answer_form(tokenizer)
    calls = CALLS if form.calls.between else CALLS[:1]
    ids = [f"functions.{call}:{at}" if name == "kimi" else f"call0000{at}" for at, (call, _) in enumerate(calls)]
    given = [{"type": "function", "id": ids[at], "function": {"name": call, "arguments": arguments}} for at, (call, arguments) in enumerate(calls)]
    for content in ("", CONTENT):
        for thought in ("", THOUGHT):
            message = {"role": "assistant", "content": content, "tool_calls": given, **({"reasoning_content": thought} if thought else {})}
            try:
                text, prompt, notes = emitted(tokenizer, message)
            except UserError:  # R1's template leaves out calls beside a text, that of gpt-oss refuses a text and a thought beside calls
                assert name.startswith("deepseek_r1" if content and not thought else ("deepseek_r1", "gptoss")) and content
                continue
            answer = parsed(form, text, in_thinking=form.begins_in_thinking(prompt), tools=TOOLS)
            assert [(call.name, json.loads(call.arguments)) for call in answer.calls] == calls, text
            if name == "kimi":
                assert [call.id for call in answer.calls] == ids
            if name.startswith("gptoss"):  # its template has what is said beside a call thought
                continue
            assert answer.content == ("" if "text_dropped" in notes else content), text
            assert answer.thinking == ("" if "thinking_dropped" in notes else thought), text
