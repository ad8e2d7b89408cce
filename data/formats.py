"""The record shapes that people have, each turned into messages (or plain text)."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from .calls import with_calls
from .columns import columns_hint
from .errors import UserError
from .json_text import parsed
from .surrogates import refuse_surrogates

Message = dict[str, Any]  # role and content; also reasoning_content, tool_calls, name, train ...
ROLES = ("system", "developer", "user", "assistant", "tool")
_NAMES = {  # what a role is called elsewhere, in small letters, where there is but one that it can mean
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant", "model": "assistant",
    "bot": "assistant", "chatbot": "assistant", "ai": "assistant", "function_call": "assistant", "tool_call": "assistant", "function": "tool",
    "function_response": "tool", "tool_response": "tool", "tool_result": "tool", "observation": "tool", "ipython": "tool",
    **{role: role for role in ROLES},
}  # fmt: skip
_CALLING = ("function_call", "tool_call")  # the text of such a turn is a call


class Role(str):
    """A role that the record writes otherwise; equal to the role, and it remembers how it was `written`."""

    written = ""


@dataclass
class Dialogue:
    """Messages, the tools that they may call, and where the record stands (`"file.jsonl line 12"`).

    `template_kwargs` are further variables of the chat template (Qwen3's enable_thinking), for a prompt that is to be answered.
    """

    messages: list[Message]
    tools: list | None = None
    where: str = ""
    taken: str = field(default="", repr=False, compare=False)  # which columns of the file were taken as what, in words
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass
class Text:
    """Plain text, all of it to be learned."""

    text: str
    where: str = field(default="")
    taken: str = field(default="", repr=False, compare=False)


Shapes = Mapping[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Any]]]  # by name: the keys that mark it, and what reads it


class Family(dict):
    """Shapes, and the keys that a record of any of them may have `beside` its own."""

    def __init__(self, shapes: Shapes, beside: tuple[str, ...] = ()) -> None:
        super().__init__(shapes)
        self.beside = beside


def recognise(record: Mapping[str, Any], shapes: Shapes | None = None) -> str:
    """The shape of a record, from its keys; keys whose value is None do not count.

    Where several would do, the first of `shapes` (by default `SHAPES`) wins. Raises UserError naming the keys found.
    """
    shapes = SHAPES if shapes is None else shapes
    keys = {key for key, value in record.items() if value is not None}
    for shape, (marks, _) in shapes.items():
        if keys.issuperset(marks):
            return shape
    found = ", ".join(map(str, record)) or "none"
    if "tasks" in keys:
        remedy = "several tasks of one input are for `seodang sft`, `preview` and `generate`, told their layout: --tasks together, sequence, cumulative or apart"
        raise UserError(f"no shape wanted here has the keys {found}: {remedy}")
    if shapes is not SHAPES:
        wanted = " or ".join(dict.fromkeys("/".join(marks) for marks, _ in shapes.values()))
        raise UserError(f"no shape wanted here has the keys {found}: use {wanted}{columns_hint(record, shapes)}")
    known = "instruction/output, prompt/completion, messages, conversations or text"
    raise UserError(f"no known shape has the keys {found}: use {known}{_hint(record, shapes) or columns_hint(record, shapes)}")


def _hint(record: Mapping[str, Any], shapes: Shapes) -> str:
    """Where records of preferences belong that are no records for teaching."""
    if shapes is SHAPES and {"chosen", "rejected", "responses", "completions", "message_tree_id"}.intersection(record):
        return " (answers preferred to others are for `seodang reward` and `seodang dpo`)"
    return ""


def to_examples(record: Mapping[str, Any], shape: str | None = None, where: str = "", shapes: Shapes | None = None) -> list[Any]:
    """Turn a record of a named or recognised shape into its examples: one, but for shapes that hold several (a tree of replies).

    Each knows its place (`where`), and by `record` which of them are of one record.
    Raises UserError beginning with `where` for a missing or mistyped key, and for a text with half a character.
    """
    shapes = SHAPES if shapes is None else shapes
    if shape is not None and shape not in shapes:
        raise UserError(f"shape must be one of {', '.join(shapes)}, got {shape!r}")
    place = f"{where}: " if where else ""
    if not isinstance(record, Mapping):
        raise UserError(f"{place}a record must be an object of keys and values, got {type(record).__name__}")
    refuse_surrogates(record, where)
    try:
        made = shapes[shape or recognise(record, shapes)][1](record)
    except UserError as error:
        hint = _hint(record, shapes)
        raise UserError(f"{place}{str(error).removesuffix(hint)}{hint}") from None
    examples = made if isinstance(made, list) else [made]
    whole = where, crc32(repr(record).encode("utf-8", "surrogatepass"))  # the place alone may be that of several: files in two folders can have one name
    for number, example in enumerate(examples, 1):
        example.record = whole
        example.where = f"{where}, example {number}" if where and len(examples) > 1 else where
    return examples


def to_example(record: Mapping[str, Any], shape: str | None = None, where: str = "") -> Dialogue | Text:
    """The one example of a record for teaching: a Dialogue or a Text."""
    [example] = to_examples(record, shape, where)
    return example


def triplet(record: Mapping[str, Any]) -> Dialogue:
    """{instruction, input, output} to a user's and an assistant's turn; `system` and `history` (pairs) come before.

    Raises UserError naming a missing or mistyped key.

    >>> triplet({"instruction": "Translate.", "input": "나무", "output": "tree"}).messages
    [{'role': 'user', 'content': 'Translate.\\n\\n나무'}, {'role': 'assistant', 'content': 'tree'}]
    """
    messages = as_system(record)
    for pair in decoded(record, "history") or []:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UserError(f"history must be a list of [question, answer] pairs, got {pair!r}")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question = as_text(record, "instruction")
    if record.get("input"):
        question = f"{question}\n\n{as_text(record, 'input')}"
    return Dialogue([*messages, {"role": "user", "content": question}, {"role": "assistant", "content": as_text(record, "output")}])


def prompt_completion(record: Mapping[str, Any]) -> Dialogue:
    """{prompt, completion}: strings become a user's and an assistant's turn, message lists are joined; only the completion is trained.

    Raises UserError naming a missing or mistyped key.
    """
    prompt, completion = text_or_messages(record, "prompt"), text_or_messages(record, "completion")
    if prompt is None or completion is None:
        raise missing("prompt" if prompt is None else "completion", record)
    question = as_messages(prompt, "prompt") if isinstance(prompt, list) else [{"role": "user", "content": as_text(record, "prompt")}]
    if isinstance(completion, list):
        answer = as_messages(completion, "completion")
    else:
        answer = [{"role": "assistant", "content": as_text(record, "completion")}]
    question = [{**message, "train": False} if message["role"] == "assistant" else message for message in question]
    return Dialogue([*as_system(record), *question, *answer], as_tools(record))


def messages(record: Mapping[str, Any]) -> Dialogue:
    """{messages, tools} as they are; OpenAI's `weight: 0` opts a turn out of training as `train: false` does."""
    return Dialogue(as_messages(decoded(record, "messages"), "messages"), as_tools(record))


def sharegpt(record: Mapping[str, Any]) -> Dialogue:
    """{conversations: [{from, value}]}, and `system` and `tools` beside them. Raises UserError for a turn without a known speaker."""
    turns = decoded(record, "conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise UserError("conversations must be a list of {from, value}")
    if turns and "role" in turns[0]:  # many call their messages so
        return Dialogue([*as_system(record), *as_messages(turns, "conversations")], as_tools(record))
    return Dialogue([*as_system(record), *(_sharegpt_turn(turn) for turn in turns)], as_tools(record))


def text(record: Mapping[str, Any]) -> Text:
    """{text}: everything is trained."""
    return Text(as_text(record, "text"))


# The first that fits a record wins (Alpaca's files carry a `text` too).
SHAPES: Shapes = {
    "messages": (("messages",), messages),
    "sharegpt": (("conversations",), sharegpt),
    "triplet": (("instruction",), triplet),
    "prompt_completion": (("prompt",), prompt_completion),
    "text": (("text",), text),
}


def missing(key: str, record: Mapping[str, Any]) -> UserError:
    """The error of a record that lacks a key; it names those that it has."""
    if key in record:
        return UserError(f"the key {key!r} holds nothing (null): fill it in, or leave the record out")
    return UserError(f"the key {key!r} is missing (keys found: {', '.join(map(str, record)) or 'none'})")


def as_text(record: Mapping[str, Any], key: str) -> str:
    """The text under a key. Raises UserError where it is missing or none."""
    value = record.get(key)
    if value is None:
        raise missing(key, record)
    if not isinstance(value, str):
        raise UserError(f"{key} must be a text, got {value!r:.80}{_in_quotes(value)}")
    return value


def _in_quotes(value: Any) -> str:
    """The remedy for what should be a text, where it is a number or yes or no."""
    return ": write it as a text, in quotes" if isinstance(value, (bool, int, float)) else ""


def decoded(record: Mapping[str, Any], key: str) -> Any:
    """The value; a list that a CSV or Parquet column holds as JSON text is read."""
    value = record.get(key)
    if isinstance(value, str) and value.lstrip()[:2] in ("[{", "[[", "[]"):
        try:
            return parsed(value)
        except json.JSONDecodeError:
            return value
    return value


def text_or_messages(record: Mapping[str, Any], key: str) -> Any:
    """The value; messages that a column holds as JSON text are read, and an answer that happens to be a JSON list stays a text."""
    value = decoded(record, key)
    talk = isinstance(value, list) and value and all(isinstance(turn, Mapping) and "role" in turn for turn in value)
    return record[key] if isinstance(record.get(key), str) and not talk else value


def as_system(record: Mapping[str, Any]) -> list[Message]:
    """The system message of a record that has one under `system`, else nothing."""
    return [{"role": "system", "content": as_text(record, "system")}] if record.get("system") else []


def as_tools(record: Mapping[str, Any]) -> list | None:
    """A record's tools, from JSON text too, or OpenAI's older `functions`. Raises UserError where they are no list."""
    tools = record.get("tools")
    if tools is None and isinstance(functions := decoded(record, "functions"), list) and all(_is_function(each) for each in functions):
        tools = [{"type": "function", "function": function} for function in functions]
    if isinstance(tools, str) and tools.strip():
        try:
            tools = parsed(tools)
        except json.JSONDecodeError as error:
            raise UserError(f"tools is not JSON: {error}") from None
    if tools and not isinstance(tools, list):
        raise UserError(f"tools must be a list, got {type(tools).__name__}")
    return tools or None


def _is_function(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("name"), str)


def as_messages(value: Any, key: str) -> list[Message]:
    """A list of messages, checked. Raises UserError naming the first that is none."""
    if not isinstance(value, list):
        raise missing(key, {}) if value is None else UserError(f"{key} must be a list of messages, got {value!r:.80}")
    return [_message(message, f"{key}[{index}]") for index, message in enumerate(value)]


def systems(messages: list[dict]) -> int:
    """How many system messages stand at the beginning."""
    return next((at for at, message in enumerate(messages) if message.get("role") not in ("system", "developer")), len(messages))


def _message(message: Any, name: str) -> Message:
    if not isinstance(message, Mapping):
        raise UserError(f"{name} must be an object with role and content, got {message!r:.80}")
    message = {key: value for key, value in message.items() if value is not None}  # columns of a table fill up with None
    if message.get("role") not in ROLES:
        message = _with_known_role(message, name)
    try:
        message = with_calls(message)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    content = message.get("content")
    if not isinstance(content, (str, list)) and ("content" in message or not message.get("tool_calls")):
        raise UserError(f"{name}: content must be a text or a list of parts, got {content!r:.80}{_in_quotes(content)}")
    if message.pop("weight", 1) == 0:
        message["train"] = False
    if not isinstance(message.get("train", True), bool):
        raise UserError(f"{name}: train must be true or false, got {message['train']!r}")
    return message


def _with_known_role(message: Message, name: str) -> Message:
    """The message with the role that its own name for it means."""
    written = message.get("role")
    spoken = written.strip().lower() if isinstance(written, str) else ""
    if spoken not in _NAMES:
        known = ", ".join([*ROLES, *(each for each in _NAMES if each not in ROLES)])
        raise UserError(f"{name}: role must be one of {known}, got {written!r}")
    role = Role(_NAMES[spoken])
    role.written = written
    if spoken in _CALLING:
        return {**message, "role": role, "content": "", "tool_calls": _calls(message.get("content"))}
    return {**message, "role": role}


def _sharegpt_turn(turn: Mapping[str, Any]) -> Message:
    for key in ("from", "value"):
        if turn.get(key) is None:
            raise missing(key, turn)
    spoken = turn["from"].strip().lower() if isinstance(turn["from"], str) else ""
    if spoken not in _NAMES:
        raise UserError(f"from must be one of {', '.join(_NAMES)}, got {turn['from']!r}")
    role = _NAMES[spoken]
    if spoken in _CALLING:
        return {"role": role, "content": "", "tool_calls": _calls(turn["value"])}
    extra = {"train": turn["train"]} if isinstance(turn.get("train"), bool) else {}
    return {"role": role, "content": as_text(turn, "value"), **extra}


def _calls(value: Any) -> list[dict]:
    """A function call, or a list of them, as JSON text {name, arguments}."""
    try:
        calls = parsed(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise UserError(f"a function_call must be JSON of name and arguments: {error}") from None
    return with_calls({"tool_calls": calls if isinstance(calls, list) else [calls]}).get("tool_calls", [])
