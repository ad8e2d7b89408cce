"""The record shapes that people have, each turned into messages (or plain text)."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .refusal import UserError

Message = dict[str, Any]  # role and content; also reasoning_content, tool_calls, name, train ...
ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant", "model": "assistant",
    "assistant": "assistant", "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool", "function_call": "assistant",
}  # fmt: skip


@dataclass
class Dialogue:
    """Messages, the tools that they may call, and where the record stands (`"file.jsonl line 12"`)."""

    messages: list[Message]
    tools: list | None = None
    where: str = ""


@dataclass
class Text:
    """Plain text, all of it to be learned."""

    text: str
    where: str = field(default="")


def recognise(record: Mapping[str, Any]) -> str:
    """The shape of a record, from its keys; keys whose value is None do not count.

    Where several would do, the first of `SHAPES` wins. Raises UserError naming the keys found.
    """
    keys = {key for key, value in record.items() if value is not None}
    for shape, (mark, _) in SHAPES.items():
        if mark in keys:
            return shape
    found = ", ".join(map(str, record)) or "none"
    raise UserError(f"no known shape has the keys {found}: use instruction/output, prompt/completion, messages, conversations or text")


def to_example(record: Mapping[str, Any], shape: str | None = None, where: str = "") -> Dialogue | Text:
    """Turn a record of a named or recognised shape into a Dialogue or a Text.

    Raises UserError beginning with `where` for a missing or mistyped key.
    """
    if shape is not None and shape not in SHAPES:
        raise UserError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    try:
        if not isinstance(record, Mapping):
            raise UserError(f"a record must be an object of keys and values, got {type(record).__name__}")
        example = SHAPES[shape or recognise(record)][1](record)
    except UserError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from None
    example.where = where
    return example


def triplet(record: Mapping[str, Any]) -> Dialogue:
    """{instruction, input, output} to a user's and an assistant's turn; `system` and `history` (pairs) come before.

    >>> triplet({"instruction": "Translate.", "input": "나무", "output": "tree"}).messages
    [{'role': 'user', 'content': 'Translate.\\n\\n나무'}, {'role': 'assistant', 'content': 'tree'}]
    """
    messages = _system(record)
    for pair in _decoded(record, "history") or []:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UserError(f"history must be a list of [question, answer] pairs, got {pair!r}")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question = _text(record, "instruction")
    if record.get("input"):
        question = f"{question}\n\n{_text(record, 'input')}"
    return Dialogue([*messages, {"role": "user", "content": question}, {"role": "assistant", "content": _text(record, "output")}])


def prompt_completion(record: Mapping[str, Any]) -> Dialogue:
    """{prompt, completion}: strings become a user's and an assistant's turn, message lists are joined; only the completion is trained."""
    prompt, completion = _decoded(record, "prompt"), _decoded(record, "completion")
    if prompt is None or completion is None:
        raise _missing("prompt" if prompt is None else "completion", record)
    asked = _messages(prompt, "prompt") if isinstance(prompt, list) else [{"role": "user", "content": _text(record, "prompt")}]
    if isinstance(completion, list):
        said = _messages(completion, "completion")
    else:
        said = [{"role": "assistant", "content": _text(record, "completion")}]
    asked = [{**message, "train": False} if message["role"] == "assistant" else message for message in asked]
    return Dialogue([*_system(record), *asked, *said], _tools(record))


def messages(record: Mapping[str, Any]) -> Dialogue:
    """{messages, tools} as they are; OpenAI's `weight: 0` opts a turn out of training as `train: false` does."""
    return Dialogue(_messages(_decoded(record, "messages"), "messages"), _tools(record))


def sharegpt(record: Mapping[str, Any]) -> Dialogue:
    """{conversations: [{from, value}]}, and `system` and `tools` beside them."""
    turns = _decoded(record, "conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise UserError("conversations must be a list of {from, value}")
    if turns and "role" in turns[0]:  # many call their messages so
        return Dialogue([*_system(record), *_messages(turns, "conversations")], _tools(record))
    return Dialogue([*_system(record), *(_sharegpt_turn(turn) for turn in turns)], _tools(record))


def text(record: Mapping[str, Any]) -> Text:
    """{text}: everything is trained."""
    return Text(_text(record, "text"))


# The key that marks a shape, and the function that reads it; the first that fits a record wins (Alpaca's files carry a `text` too).
SHAPES: dict[str, tuple[str, Callable[[Mapping[str, Any]], Dialogue | Text]]] = {
    "messages": ("messages", messages),
    "sharegpt": ("conversations", sharegpt),
    "triplet": ("instruction", triplet),
    "prompt_completion": ("prompt", prompt_completion),
    "text": ("text", text),
}


def _missing(key: str, record: Mapping[str, Any]) -> UserError:
    return UserError(f"the key {key!r} is missing (keys found: {', '.join(map(str, record)) or 'none'})")


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if value is None:
        raise _missing(key, record)
    if not isinstance(value, str):
        raise UserError(f"{key} must be a text, got {value!r:.80}")
    return value


def _decoded(record: Mapping[str, Any], key: str) -> Any:
    """The value; a list that a CSV or Parquet column holds as JSON text is read."""
    value = record.get(key)
    if isinstance(value, str) and value.lstrip()[:2] in ("[{", "[[", "[]"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _system(record: Mapping[str, Any]) -> list[Message]:
    return [{"role": "system", "content": _text(record, "system")}] if record.get("system") else []


def _tools(record: Mapping[str, Any]) -> list | None:
    tools = record.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise UserError(f"tools is not JSON: {error}") from None
    if tools and not isinstance(tools, list):
        raise UserError(f"tools must be a list, got {type(tools).__name__}")
    return tools or None


def _messages(value: Any, key: str) -> list[Message]:
    if not isinstance(value, list):
        raise _missing(key, {}) if value is None else UserError(f"{key} must be a list of messages, got {value!r:.80}")
    return [_message(message, f"{key}[{index}]") for index, message in enumerate(value)]


def _message(message: Any, name: str) -> Message:
    if not isinstance(message, Mapping):
        raise UserError(f"{name} must be an object with role and content, got {message!r:.80}")
    message = {key: value for key, value in message.items() if value is not None}  # columns of a table fill up with None
    if message.get("role") not in ROLES:
        raise UserError(f"{name}: role must be one of {', '.join(ROLES)}, got {message.get('role')!r}")
    if not isinstance(message.get("content"), (str, list)):
        if "content" in message or not message.get("tool_calls"):
            raise UserError(f"{name}: content must be a text or a list of parts, got {message.get('content')!r:.80}")
    if message.pop("weight", 1) == 0:
        message["train"] = False
    if not isinstance(message.get("train", True), bool):
        raise UserError(f"{name}: train must be true or false, got {message['train']!r}")
    return message


def _sharegpt_turn(turn: Mapping[str, Any]) -> Message:
    for key in ("from", "value"):
        if turn.get(key) is None:
            raise _missing(key, turn)
    role = _SHAREGPT_ROLES.get(turn["from"])
    if role is None:
        raise UserError(f"from must be one of {', '.join(_SHAREGPT_ROLES)}, got {turn['from']!r}")
    if turn["from"] == "function_call":
        return {"role": role, "content": "", "tool_calls": _calls(turn["value"])}
    extra = {"train": turn["train"]} if isinstance(turn.get("train"), bool) else {}
    return {"role": role, "content": _text(turn, "value"), **extra}


def _calls(value: Any) -> list[dict]:
    """A function call, or a list of them, as JSON text {name, arguments}."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise UserError(f"a function_call must be JSON of name and arguments: {error}") from None
    return [{"type": "function", "function": call} for call in (calls if isinstance(calls, list) else [calls])]
