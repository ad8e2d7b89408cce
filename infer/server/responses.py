"""/v1/responses, stateless: the chat's answers in items and events, as OpenAI's newer clients ask for them."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import Field, ValidationError

from .answering import answered, sent
from .calls import Call
from .chat import Chat, ChatBody
from .docs import takes
from .guard.errors import ApiError
from .protocol import AskingBody, Words, refusal, shown
from .served import Served

STATELESS = "nothing is kept here: send the whole dialogue as input"
ELSEWHERE = "it is not told here: leave it out, or ask /v1/chat/completions"
BEGUN = "an answer is begun here: leave it out, or ask /v1/chat/completions"
KINDS = {  # an item's kind of content, its part, and the events of its text
    "reasoning": ("rs", "reasoning_text", "response.reasoning_text"), "message": ("msg", "output_text", "response.output_text"),
    "function_call": ("fc", None, "response.function_call_arguments"),
}  # fmt: skip
DONE = {  # what can be asked by fields that other servers do more about; thinking is told as it is, so that nothing need be encrypted
    "background": (False,), "truncation": ("disabled",), "include": ([], ["reasoning.encrypted_content"]),
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
        "stream_options": "the last event has the usage: leave it out",
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
    background: bool = Field(False, description="Not done here: answers are given at once.")
    include: list[str] = Field([], description='Nothing, or "reasoning.encrypted_content": thinking is told as it is.')
    truncation: str = Field("disabled", description='"disabled": a prompt that is too long is refused.')
    metadata: dict[str, Any] | None = Field(None, description="Of the client's own bookkeeping; it is sent back.")


def response_routes(served: Served) -> APIRouter:
    """The path that answers input by items."""
    routes = APIRouter()

    @routes.post("/v1/responses", openapi_extra=takes(ResponseBody, served, input="Name three colours.", max_output_tokens=16))
    async def responses(request: Request) -> Response:
        """Answer a text or a dialogue; whole, or with `stream` as events. Nothing of it is kept."""
        return await answered(request, served, ResponseBody, Answered)

    return routes


class Answered(Chat):
    """A body of /v1/responses, and how the answer to it is written."""

    def __init__(self, body: ResponseBody, served: Served):
        """Raises ApiError for what is no dialogue or cannot be had here, UserError for settings that cannot be honoured."""
        odd = [name for name, done in DONE.items() if getattr(body, name) not in done]
        if odd and not served.lenient:
            raise ApiError(400, f"{odd[0]}={shown(getattr(body, odd[0]))} is not done here: leave it out", odd[0])
        try:
            super().__init__(chat_body(body), served)
        except ApiError as error:
            raise as_asked(error, body) from None
        self.words, self._outline = Words(body), Outline()
        self.ignored = [*body._dropped, *odd, *self.ignored]
        samples = self.params.samples
        self.head = {
            "id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time()), "model": body.model or served.name, "error": None,
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
        known = self.told_usage(call)
        more = {name: known[name] for name in ("forward_passes", "tokens_per_forward") if name in known}
        return {
            "input_tokens": known["prompt_tokens"], "input_tokens_details": {**known["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": known["completion_tokens"], "output_tokens_details": known["completion_tokens_details"], "total_tokens": known["total_tokens"],
            **more,
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


def chat_body(body: ResponseBody) -> ChatBody:
    """Return the chat that a response's body is; raises ApiError for items that are none."""
    asked = body.text.get("format") if body.text else None
    if body.text and {key for key, value in body.text.items() if value is not None} - {"format"}:
        raise ApiError(400, f"text must be {{\"format\": ...}}, got {shown(body.text)}", "text")
    if isinstance(asked, Mapping) and asked.get("type") == "json_schema":
        asked = {"type": "json_schema", "json_schema": {key: value for key, value in asked.items() if key != "type"}}
    if body.reasoning and set(body.reasoning) - {"effort", "summary", "generate_summary"}:
        raise ApiError(400, f"reasoning must be {{\"effort\": ...}}, got {shown(body.reasoning)}", "reasoning")
    choice = body.tool_choice
    if isinstance(choice, Mapping) and choice.get("type") == "function" and isinstance(choice.get("name"), str):
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    fields = {
        **(body.model_extra or {}), "messages": [message for _, message in messages_of(body)], "max_completion_tokens": body.max_output_tokens, "response_format": asked,
        "tools": [chat_tool(tool) for tool in body.tools] if body.tools else None, "tool_choice": choice, "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": (body.reasoning or {}).get("effort"), "chat_template_kwargs": body.chat_template_kwargs, "stream": body.stream,
    }  # fmt: skip
    try:
        return ChatBody.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise refusal(error) from None


def chat_tool(tool: Any) -> Any:
    """A function of a response's in a chat's form; anything else as it is."""
    if isinstance(tool, Mapping) and tool.get("type") == "function" and "function" not in tool:
        return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
    return tool


def messages_of(body: ResponseBody) -> Iterator[tuple[str, Any]]:
    """Yield the messages that instructions and input are, each with the place of what it begins with; raises ApiError for items of other kinds."""
    if body.instructions is not None:
        yield "instructions", {"role": "system", "content": body.instructions}
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    if not isinstance(items, list) or not items:
        raise ApiError(400, f"input must be a text or a list of items, got {shown(items)}", "input")
    own: dict[str, Any] = {}  # the assistant's message that thinking and calls belong to
    begun = ""
    for place, item in ((f"input[{n}]", item) for n, item in enumerate(items)):
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        ends = kind == "function_call_output" or kind == "message" and (item.get("role") != "assistant" or "content" in own)
        if own and (ends or kind == "reasoning" and len(own) > 1):
            yield begun, own
            own = {}
        begun = begun if own else place
        if kind == "function_call_output":
            yield place, {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
        elif kind == "message" and item.get("role") != "assistant":
            yield place, {key: value for key, value in item.items() if key != "type"}
        elif kind == "message":
            own |= {"role": "assistant", "content": item.get("content")}
        elif kind == "reasoning":
            own |= {"role": "assistant", "reasoning_content": text} if (text := thought_of(item, place)) else {}
        elif kind == "function_call":
            call = {"id": item.get("call_id"), "type": "function", "function": {"name": item.get("name"), "arguments": item.get("arguments")}}
            own["role"] = "assistant"
            own.setdefault("tool_calls", []).append(call)
        else:
            raise ApiError(400, f"{place} must be a message, a function_call, its output or reasoning, got {shown(kind or item)}", "input")
    if own:
        yield begun, own


def thought_of(item: Mapping[str, Any], place: str) -> str:
    """Return the text of a reasoning item, nothing of one that has a summary alone; raises ApiError for parts that are none."""
    parts = item.get("content") or []
    if not (isinstance(parts, list) and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts)):
        raise ApiError(400, f"{place}.content must be a list of parts with a text, got {shown(parts)}", "input")
    return "".join(part["text"] for part in parts)


THEIRS = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text", "reasoning_effort": "reasoning"}  # the chat's fields here
SAID = {"reasoning_effort": "reasoning.effort", '"function": {"name": ...}': '"name": ...', ".function.name": ".name", ".function.parameters": ".parameters"}


def as_asked(error: ApiError, body: ResponseBody) -> ApiError:
    """A chat's error as one of the response's own fields."""
    message = str(error)
    if error.param == "messages":
        places = [place for place, _ in messages_of(body)]
        message = re.sub(r"\bmessages\[(\d+)\]", lambda found: places[int(found[1])], message)
        message = re.sub(r"^messages\b", "input", message)  # of items that say nothing
    for theirs, ours in SAID.items():
        message = message.replace(theirs, ours)
    return ApiError(error.status, message, THEIRS.get(error.param, error.param))
