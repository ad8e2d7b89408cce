"""What a template takes, found out by rendering: the form of contents, of the system message and of tool calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.utils import logging

from .calls import as_json, lost
from .errors import UserError

logger = logging.get_logger(__name__)

SENTINEL = "Seodang7sentinel"  # letters and a digit: no template trims, splits or escapes them
Render = Callable[[list[dict]], str]  # messages of their final form -> text; raises UserError

_PARTS = [{"type": "text", "text": SENTINEL}]
SAMPLE_TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "?",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "?"}}, "required": ["a"]},
    },
}
_ARGUMENTS = {SENTINEL: {"inner": [SENTINEL + "2", True]}, "number": 1.5}
_EMPTY = ({"content": ""}, {"content": None}, {})  # what may stand for no text beside calls


@dataclass(frozen=True)
class CallForm:
    """How a template takes tool calls."""

    mapping: bool = True  # their arguments as a mapping, else as JSON text
    any_text: bool = False  # whether arguments that are no JSON object can be handed over, as the text that they are
    empty: Mapping[str, Any] = field(default_factory=lambda: _EMPTY[0])  # what of a message says that no text stands beside its calls

    def shaped(self, message: dict) -> dict:
        """A message whose calls are those of `with_calls`, in this form. Raises UserError for arguments that it does not take."""
        calls = [{**call, "function": self._function(call["function"])} for call in message["tool_calls"]]
        if message.get("content"):
            return {**message, "tool_calls": calls}
        return {**{key: value for key, value in message.items() if key != "content"}, **self.empty, "tool_calls": calls}

    def _function(self, function: dict) -> dict:
        arguments = function["arguments"]
        if isinstance(arguments, str) and not self.any_text:
            what = "must be a JSON object, which the chat template takes apart"
            raise UserError(f"the arguments of {function['name']!r} {what}, got {arguments!r:.80}")
        return function if self.mapping else {**function, "arguments": as_json(arguments)}


@dataclass(frozen=True)
class Form:
    """What a template takes: contents as strings, as parts, or both; a system message or none."""

    strings: bool
    parts: bool
    refuses_system: bool = False

    def shaped(self, message: dict, calls: Callable[[], CallForm]) -> dict:
        """The message without our own keys and those that are None, its content and calls in a form that the template reads."""
        message = {key: value for key, value in message.items() if key != "train" and value is not None}
        if message.get("tool_calls"):
            message = calls().shaped(message)
        content = message.get("content")
        if isinstance(content, str) and not self.strings:
            message["content"] = [{"type": "text", "text": content}]
        elif isinstance(content, list) and self.strings and (not self.parts or message.get("role") == "tool"):
            if all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
                message["content"] = "".join(part["text"] for part in content)
            elif not self.parts:
                raise UserError("the chat template takes text alone, and the message holds something else")
        return message


def probe(renders: Sequence[Render]) -> Form:
    """Find out by rendering a sentinel, by the first of the renderers that writes it.

    A template that raises on the plainest question raises here, as it does with the first.
    """
    for render in renders:
        takes_strings, takes_parts = (SENTINEL in (_attempt(render, [_user(content)]) or "") for content in (SENTINEL, _PARTS))
        if takes_strings or takes_parts:
            break
    else:
        renders[0]([_user(SENTINEL)])
        raise UserError("the chat template leaves out what the user says: is it one?")
    question = _user(SENTINEL if takes_strings else _PARTS)
    refuses_system = _attempt(render, [{**question, "role": "system"}, question]) is None
    if refuses_system:
        logger.warning("The chat template refuses a system message: it will stand before the first user's text.")
    return Form(takes_strings, takes_parts, refuses_system)


def _user(content: Any) -> dict:
    return {"role": "user", "content": content}


def probe_calls(form: Form, renders: Sequence[Render]) -> CallForm:
    """Find out by rendering a call with sentinels for arguments in each of six forms, by the first of the renderers that writes it in one.

    A mapping is taken rightly where all its keys and values are written, but not as Python writes a whole mapping; JSON text where it stands
    as it is, not encoded once more. A mapping is preferred: it is what transformers documents, and what can be taken apart. For no text
    beside calls, that of "", null and no content at all is taken whose rendering is the shortest, the first of equal ones: what others
    write besides is an empty answer, or the word None. A template that takes calls in no form gets a mapping beside "", and what it leaves out
    is found in the answer.
    """
    for render in renders:
        fits: dict[bool, dict[int, int]] = {}  # whether as a mapping -> which of _EMPTY -> how long the rendering is
        for mapping in (True, False):
            texts = {at: _attempt(render, _calling(form, CallForm(mapping, True, empty))) for at, empty in enumerate(_EMPTY)}
            fits[mapping] = {at: len(text) for at, text in texts.items() if text is not None and _holds(text, mapping)}
        if chosen := fits[True] or fits[False]:
            shortest = min(chosen, key=lambda at: chosen[at])
            return CallForm(bool(fits[True]), shortest in fits[False], _EMPTY[shortest])
    return CallForm()


def sample_call(arguments: Mapping[str, Any]) -> dict:
    """A call of a function named as the sentinel, with an id such as every template takes."""
    return {"type": "function", "id": "call00001", "function": {"name": SENTINEL, "arguments": arguments}}


def _calling(form: Form, calls: CallForm) -> list[dict]:
    messages = [_user("?"), {"role": "assistant", "tool_calls": [sample_call(_ARGUMENTS)]}]
    return [form.shaped(message, lambda: calls) for message in messages]


def _holds(text: str, mapping: bool) -> bool:
    if not mapping:
        return as_json(_ARGUMENTS) in text
    return not lost([{"function": {"name": "", "arguments": _ARGUMENTS}}], text) and str(_ARGUMENTS) not in text


def _attempt(render: Render, messages: list[dict]) -> str | None:
    try:
        return render(messages)
    except UserError:  # what a template refuses cannot be learned from it
        return None
