"""Messages and tools as clients write them, to the prompt that the model answers: the chat template's, as in training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...data.calls import with_calls
from ...data.errors import UserError
from ...data.formats import ROLES, Dialogue
from ..parsing.form import AnswerForm
from ..parsing.tool_schema import check_schema
from .guard.errors import ApiError
from .guard.limits import CALLS
from .protocol import shown
from .served import Served

TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # parts that are text, and where they have it
KEYS = ("role", "content", "name", "tool_calls", "function_call", "tool_call_id", "reasoning_content", "reasoning", "thinking", "refusal")
TEXT_KEYS = ("name", "tool_call_id", "reasoning_content", "reasoning", "thinking", "refusal")
ECHOED = ("annotations", "audio", "id", "status", "type", "phase")  # of an answer that a client sends back as it came: nothing that a template reads
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def dialogue_of(
    served: Served, messages: Any, tools: Sequence[Mapping] = (), template_kwargs: Mapping[str, Any] | None = None, effort: str | None = None
) -> Dialogue:
    """Return the prompt that messages are, `effort` the reasoning effort that the template reads.

    Raises ApiError for what is no message, and for variables of the template that clients may not set.
    """
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, f"messages must be a list of messages, got {shown(messages)}", "messages")
    for name in template_kwargs or {}:
        if name not in served.template_kwargs:
            allowed = f"this server allows {', '.join(served.template_kwargs) or 'none'} (--template_kwargs)"
            raise ApiError(400, f"chat_template_kwargs has {name!r}: {allowed}", "chat_template_kwargs")
    checked = [message_of(served, message, f"messages[{place}]") for place, message in enumerate(messages)]
    shown_tools = [{**tool, "function": {key: value for key, value in tool["function"].items() if key != "strict"}} for tool in tools]  # that is for us
    return Dialogue(checked, shown_tools or None, template_kwargs={**(template_kwargs or {}), **({} if effort is None else {"reasoning_effort": effort})})


def message_of(served: Served, message: Any, place: str) -> dict[str, Any]:
    """Return a message with its content as one text and its calls in one form; raises ApiError for what is none."""

    def refuse(why: str) -> None:
        raise ApiError(400, f"{place}{why}", "messages")

    if not isinstance(message, Mapping):
        refuse(f" must be an object of role and content, got {shown(message)}")
    known = {key: value for key, value in message.items() if value is not None and key not in ECHOED}
    role = {"function": "tool"}.get(known.get("role"), known.get("role")) if isinstance(known.get("role"), str) else None
    if role not in ROLES:
        refuse(f".role must be one of {', '.join(ROLES)}, got {shown(message.get('role'))}")
    for key in list(known):
        if key not in KEYS:
            if not served.lenient:
                refuse(f" has {key!r}, which is unknown: leave it out")
            del known[key]
    for key in TEXT_KEYS:
        if not isinstance(known.get(key, ""), str):
            refuse(f".{key} must be a text, got {shown(known[key])}")
    said = known.pop("refusal", None)
    content = said if said is not None and known.get("content") is None else known.get("content")
    calls = known.get("tool_calls") or known.get("function_call")
    if isinstance(calls, list) and len(calls) > CALLS:
        refuse(f".tool_calls has {len(calls)} calls, more than the {CALLS} that a message may have: leave some out")
    if content is None and not (role == "assistant" and (calls or any(key in known for key in ("reasoning_content", "reasoning", "thinking")))):
        refuse(".content is missing: give a text")
    known["role"] = "system" if role == "developer" and "developer" not in str(served.tokenizer.chat_template) else role
    known["content"] = "" if content is None else texts_of(content, f"{place}.content")
    try:
        return with_calls(known)
    except UserError as error:
        raise ApiError(400, f"{place}: {error}", "messages") from None


def texts_of(content: Any, place: str) -> str:
    """Return a content as one text, in which parts of it cannot make a control token together; raises ApiError for other kinds of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{place} must be a text or a list of parts, got {shown(content)}", "messages")
    parts = []
    for n, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not (isinstance(kind, str) and kind in TEXTS):
            raise ApiError(400, f"{place}[{n}] must be a part of type text: this model reads text alone, got {shown(kind or part)}", "messages")
        if not isinstance(text := part.get(TEXTS[kind]), str):
            raise ApiError(400, f"{place}[{n}].{TEXTS[kind]} must be a text, got {shown(text)}", "messages")
        parts.append(text)
    return "".join(parts)


def tools_of(tools: Any, form: AnswerForm, asked: bool = True) -> list[dict[str, Any]]:
    """Return tools as templates and parsers take them; raises ApiError for what is none, and where they are `asked` of a model that is shown none."""
    if not isinstance(tools, list):
        raise ApiError(400, f"tools must be a list of functions, got {shown(tools)}", "tools")
    names = set()
    for n, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
        if not isinstance(function, Mapping):
            raise ApiError(400, f'tools[{n}] must be {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}, got {shown(tool)}', "tools")
        if not (isinstance(name := function.get("name"), str) and TOOL_NAME.fullmatch(name)):
            raise ApiError(400, f"tools[{n}].function.name must be 1 to 64 letters, digits, _ or -, got {shown(name)}", "tools")
        if name in names:
            raise ApiError(400, f"tools[{n}].function.name is {name!r}, as that of another tool: give each its own", "tools")
        parameters = function.get("parameters")
        if not (parameters is None or isinstance(parameters, Mapping) and parameters.get("type", "object") == "object"):
            raise ApiError(400, f"tools[{n}].function.parameters must be the JSON schema of an object, got {shown(parameters)}", "tools")
        try:
            check_schema(parameters or {}, f"tools[{n}].function.parameters")
        except UserError as error:
            raise ApiError(400, str(error), "tools") from None
        names.add(name)
    if tools and asked and not (form.supports_tools and form.calls):
        raise ApiError(400, "tools given, but the model's chat template shows it none, or writes no calls that are known: leave them out", "tools")
    return [{"type": "function", "function": {key: value for key, value in tool["function"].items() if value is not None}} for tool in tools]
