"""/v1/responses, stateless: the chat's answers in items and events, as OpenAI's newer clients ask for them."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import Field

from .answering import answered, sent
from .calls import Call
from .chat import Chat, ChatBody
from .docs import takes
from .errors import ApiError
from .protocol import AskingBody, Words, body_of, shown
from .served import Served

STATELESS = "nothing is kept here: send the whole dialogue as input"
ELSEWHERE = "it is not told here: leave it out, or ask /v1/chat/completions"
THEIRS = {"messages": "input", "response_format": "text.format", "reasoning_effort": "reasoning.effort"}  # what a chat calls otherwise
BEGUN = "an answer is begun here: leave it out, or ask /v1/chat/completions"
KINDS = {  # an item's kind of content, its part, and the events of its text
    "reasoning": ("rs", "reasoning_text", "response.reasoning_text"), "message": ("msg", "output_text", "response.output_text"),
    "function_call": ("fc", None, "response.function_call_arguments"),
}  # fmt: skip


class ResponseBody(AskingBody):
    """What a client asks of /v1/responses, besides the settings of the answer."""

    refused: ClassVar[Mapping[str, str]] = {
        "previous_response_id": STATELESS, "conversation": STATELESS, "prompt": "prompts are not kept here: write it as input",
        "messages": "this path takes input", "response_format": "write it as text.format", "max_tokens": "it is max_output_tokens here",
        "max_completion_tokens": "it is max_output_tokens here", "reasoning_effort": "write it as reasoning.effort",
        "continue_final_message": BEGUN, "add_generation_prompt": BEGUN,
        "n": "a response has one answer: leave it out", "num_return_sequences": "a response has one answer: leave it out",
        "top_logprobs": ELSEWHERE, "logprobs": ELSEWHERE, "prompt_logprobs": ELSEWHERE, "trace": ELSEWHERE,
    }  # fmt: skip

    words: ClassVar[Mapping[str, str]] = {
        "max_new_tokens": "max_output_tokens", "response_format": "text.format", "json_schema": "text.format", "grammar": "tools",
    }  # fmt: skip

    input: Any = Field(description="A text, or items: messages, function calls and their outputs.")
    instructions: str | None = Field(None, description="What stands before the dialogue as a system message.")
    max_output_tokens: int | None = Field(None, ge=1, description="The answer ends after so many tokens, thinking and all.")
    text: dict[str, Any] | None = Field(None, description='What the answer is: {"format": {"type": "text"}}, json_object or json_schema.')
    reasoning: dict[str, Any] | None = Field(None, description='{"effort": ...}, for templates that know it.')
    tools: list[Any] | None = Field(None, description="Functions that the model may call.")
    tool_choice: Any = Field(None, description='"auto", "none", "required", or {"type": "function", "name": ...}.')
    parallel_tool_calls: bool = Field(True, description="Whether several calls may be made where one is required.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables of the chat template that the operator allows.")
    background: bool = Field(False, description="Answers are given at once.")
    include: list[str] = Field([], description="Nothing can be included.")
    truncation: str = Field("disabled", description='"disabled": a prompt that is too long is refused.')
    metadata: dict[str, Any] | None = Field(None, description="Of the client's own bookkeeping; it is sent back.")


def response_routes(served: Served) -> APIRouter:
    """The path that answers input by items."""
    routes = APIRouter()

    @routes.post("/v1/responses", openapi_extra=takes(ResponseBody, served, input="Name three colours.", max_output_tokens=16))
    async def responses(request: Request) -> Response:
        """Answer a text or a dialogue; whole, or with `stream` as events. Nothing of it is kept."""
        body = await body_of(request, served, ResponseBody)
        return await answered(request, served, body, Answered)

    return routes


class Answered(Chat):
    """A body of /v1/responses, and how the answer to it is written."""

    def __init__(self, body: ResponseBody, served: Served):
        """Raises ApiError for what is no dialogue or cannot be had here, UserError for settings that cannot be honoured."""
        if body.background or body.include or body.truncation != "disabled":
            name = "background" if body.background else "include" if body.include else "truncation"
            raise ApiError(400, f"{name}={shown(getattr(body, name))} is not done here: leave it out", name)
        messages, places = messages_of(body)
        try:
            super().__init__(chat_body(body, messages), served)
        except ApiError as error:
            message = re.sub(r"messages\[(\d+)\]", lambda found: places[int(found[1])], str(error))
            for chats, own in THEIRS.items():
                message = message.replace(chats, own)
            raise ApiError(error.status, message, THEIRS.get(error.param, error.param or "").partition(".")[0] or None) from None
        self.words, self._outline = Words(body), Outline()
        samples = self.params.samples
        self.head = {
            "id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time()), "model": served.name, "error": None,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens, "metadata": body.metadata or {}, "store": False,
            "parallel_tool_calls": body.parallel_tool_calls, "previous_response_id": None, "reasoning": {"effort": None, "summary": None, **(body.reasoning or {})},
            "temperature": (1.0 if self.params.temperature is None else self.params.temperature) if samples else 0.0,
            "top_p": 1.0 if self.params.top_p is None else self.params.top_p, "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto", "tools": [{"strict": None, "parameters": None, **tool} for tool in body.tools or []],
            "truncation": "disabled",
        }  # fmt: skip

    async def whole(self, call: Call) -> dict[str, Any]:
        """Wait for the answer and return it."""
        async for _ in self._events(call):
            pass
        return self._ended

    async def frames(self, call: Call) -> AsyncIterator[str]:
        """Yield the answer's events."""
        async for event in self._events(call):
            yield f"event: {event['type']}\n{sent(event)}"

    def last_frame(self, error: ApiError | None) -> str:
        """The error, where there was one; the last event ends a stream."""
        if error is None:
            return ""
        told = self._outline.event("error", code=error.code, message=str(error), param=error.param)
        return f"event: error\n{sent(told)}"

    async def _events(self, call: Call) -> AsyncIterator[dict[str, Any]]:
        outline, reason = self._outline, None
        started = {**self.head, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
        yield outline.event("response.created", response=started)
        yield outline.event("response.in_progress", response=started)
        async for parts, _ in self._grown(call):
            for part in parts:
                for event in outline.grown(part["delta"]):
                    yield event
                reason = part["finish_reason"] or reason
        status, details = ("incomplete", {"reason": "max_output_tokens"}) if reason == "length" else ("completed", None)
        for event in outline.ended(status):
            yield event
        self._ended = {**self.head, "status": status, "incomplete_details": details, "output": outline.items, "usage": self._tokens(call)}
        yield outline.event(f"response.{status}", response=self._ended)

    def _tokens(self, call: Call) -> dict[str, Any]:
        known = self.usage(call)
        return {
            "input_tokens": known["prompt_tokens"], "input_tokens_details": {**known["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": known["completion_tokens"], "output_tokens_details": known["completion_tokens_details"], "total_tokens": known["total_tokens"],
        }  # fmt: skip


class Outline:
    """The items of an answer as they grow, and the events that tell of them."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._count, self._open, self._text = 0, False, ""

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next event."""
        self._count += 1
        return {"type": kind, "sequence_number": self._count - 1, **fields}

    def grown(self, delta: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the events of a chat's delta."""
        for kind, text in (("reasoning", delta.get("reasoning_content")), ("message", delta.get("content"))):
            if text:
                yield from self._grow(kind, text)
        for piece in delta.get("tool_calls", ()):
            if "id" in piece:
                yield from self.closed("completed")
                yield from self._begin("function_call", call_id=piece["id"], name=piece["function"]["name"], arguments="")
            if piece["function"].get("arguments"):
                yield from self._grow("function_call", piece["function"]["arguments"])

    def closed(self, status: str) -> Iterator[dict[str, Any]]:
        """Yield the end of the item that is open, if one is."""
        if not self._open:
            return
        item, place = self.items[-1], self._place
        _, part, name = KINDS[item["type"]]
        item["status"] = status
        if part is None:
            item["arguments"] = self._text
            yield self.event(f"{name}.done", **place, name=item["name"], arguments=self._text)
        else:
            content = {"type": part, "text": self._text, **({"annotations": [], "logprobs": []} if part == "output_text" else {})}
            item["content"] = [content]
            yield self.event(f"{name}.done", **place, content_index=0, text=self._text, **({"logprobs": []} if part == "output_text" else {}))
            yield self.event("response.content_part.done", **place, content_index=0, part=content)
        self._open = False
        yield self.event("response.output_item.done", output_index=place["output_index"], item=item)

    def ended(self, status: str) -> Iterator[dict[str, Any]]:
        """Yield the end of the answer's last item; an answer that says nothing has an empty message."""
        if not self.items:
            yield from self._begin("message")
        yield from self.closed(status)

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}

    def _begin(self, kind: str, **fields: Any) -> Iterator[dict[str, Any]]:
        prefix, part, _ = KINDS[kind]
        more = {"message": {"role": "assistant", "content": []}, "reasoning": {"summary": [], "content": []}}.get(kind, {})
        self.items.append({"id": f"{prefix}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress", **more, **fields})
        self._open, self._text = True, ""
        yield self.event("response.output_item.added", output_index=len(self.items) - 1, item=dict(self.items[-1]))
        if part is not None:
            empty = {"type": part, "text": "", **({"annotations": [], "logprobs": []} if part == "output_text" else {})}
            yield self.event("response.content_part.added", **self._place, content_index=0, part=empty)

    def _grow(self, kind: str, text: str) -> Iterator[dict[str, Any]]:
        if self._open and self.items[-1]["type"] != kind:
            yield from self.closed("completed")
        if not self._open:
            yield from self._begin(kind)
        self._text += text
        _, part, name = KINDS[kind]
        more = {} if part is None else {"content_index": 0, **({"logprobs": []} if part == "output_text" else {})}
        yield self.event(f"{name}.delta", **self._place, delta=text, **more)


def chat_body(body: ResponseBody, messages: list[Any]) -> ChatBody:
    """Return the chat that a response's body is; raises ApiError for items that are none."""
    asked = body.text.get("format") if body.text else None
    if body.text and set(body.text) - {"format"}:
        raise ApiError(400, f"text must be {{\"format\": ...}}, got {shown(body.text)}", "text")
    if isinstance(asked, Mapping) and asked.get("type") == "json_schema":
        if not isinstance(asked.get("schema"), Mapping | bool):
            raise ApiError(400, f'text.format of type "json_schema" needs a name and a schema, got {shown(asked)}', "text")
        asked = {"type": "json_schema", "json_schema": {key: value for key, value in asked.items() if key != "type"}}
    if body.reasoning and set(body.reasoning) - {"effort", "summary", "generate_summary"}:
        raise ApiError(400, f"reasoning must be {{\"effort\": ...}}, got {shown(body.reasoning)}", "reasoning")
    if not isinstance((effort := (body.reasoning or {}).get("effort")), str | None):
        raise ApiError(400, f"reasoning.effort must be a text, got {shown(effort)}", "reasoning")
    choice = body.tool_choice
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    fields = {
        **(body.model_extra or {}), "messages": messages, "max_completion_tokens": body.max_output_tokens, "response_format": asked,
        "tools": [chat_tool(tool, n) for n, tool in enumerate(body.tools)] if body.tools else None, "tool_choice": choice, "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": effort, "chat_template_kwargs": body.chat_template_kwargs, "stream": body.stream, "stream_options": body.stream_options,
    }  # fmt: skip
    return ChatBody.model_validate({name: value for name, value in fields.items() if value is not None})


def chat_tool(tool: Any, n: int) -> Any:
    """A function of a response's in a chat's form, which it may have already; raises ApiError for a tool of another kind."""
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        raise ApiError(400, f'tools[{n}] must be {{"type": "function", "name": ..., "parameters": ...}}, got {shown(tool)}', "tools")
    return tool if "function" in tool else {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def messages_of(body: ResponseBody) -> tuple[list[Any], list[str]]:
    """Return the messages that instructions and input are, and where each begins; raises ApiError for items of other kinds."""
    messages: list[Any] = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    places = ["instructions"] * len(messages)
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}], [*places, "input"]
    if not isinstance(body.input, list) or not body.input:
        raise ApiError(400, f"input must be a text or a list of items, got {shown(body.input)}", "input")
    own: dict[str, Any] | None = None  # the assistant's message that thinking and calls belong to
    for n, item in enumerate(body.input):
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        if kind == "message" and item.get("role") != "assistant" or kind == "function_call_output":
            own = None
            if kind == "message":
                messages.append({key: value for key, value in item.items() if key != "type"})
            else:
                messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        elif kind in ("message", "function_call", "reasoning"):
            if own is None or kind == "message" and "content" in own or kind == "reasoning" and len(own) > 1:
                own = {"role": "assistant"}
                messages.append(own)
            if kind == "message":
                own["content"] = item.get("content")
            elif kind == "reasoning":
                parts = item.get("content") or []
                if not isinstance(parts, list) or not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
                    raise ApiError(400, f"input[{n}].content must be a list of parts with a text, got {shown(parts)}", "input")
                own["reasoning_content"] = "".join(part["text"] for part in parts)
            else:
                call = {"id": item.get("call_id"), "type": "function", "function": {"name": item.get("name"), "arguments": item.get("arguments")}}
                own.setdefault("tool_calls", []).append(call)
        else:
            raise ApiError(400, f"input[{n}] must be a message, a function_call, its output or reasoning, got {shown(kind or item)}", "input")
        places += [f"input[{n}]"] * (len(messages) - len(places))
    return messages, places
