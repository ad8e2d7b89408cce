"""/v1/chat/completions: messages answered, with thinking and tool calls told apart from the content."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import Field

from ...data.chat import prompt_text
from ...data.literal import refuse_more
from ...data.long_text import TooManyTokens
from ..constraints.build import LANGUAGES
from ..parsing.control_text import ControlText
from ..parsing.forced_calls import call_grammar, strict_grammar
from ..parsing.form import answer_form
from ..parsing.parser import AnswerParser, CallArguments, CallBegun, Content, Part, Thinking
from ..requests.events import Committed, Event, Finished, PromptRead
from .answering import FINISH_REASONS, Chunks, answered
from .calls import Call
from .docs import takes
from .given import Skipping, tokens_before, written_of
from .guard.errors import ApiError
from .logprobs import chat_logprobs, prompt_logprobs
from .messages import ECHOED, dialogue_of, texts_of, tools_of
from .protocol import AskingBody, settings_of, shown
from .served import Served

FORMATS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", *LANGUAGES)
FREE = (None, {}, {"type": "text"})  # what these are where they ask for nothing


class ChatBody(AskingBody):
    """What a client asks of /v1/chat/completions, besides the settings of the answer."""

    refused: ClassVar[Mapping[str, str]] = {
        "prompt": "this path answers messages: give messages", "functions": "write them as tools", "function_call": "write it as tool_choice",
        "chat_template": "the model's own is used: leave it out", "documents": "write them into a message", "echo": "leave it out",
    }  # fmt: skip

    words: ClassVar[Mapping[str, str]] = {"prefix": "messages", "grammar": "tools"}  # what they come to here

    messages: list[Any] = Field(description="The dialogue, role and content each.")
    tools: list[Any] | None = Field(None, description="Functions that the model may call.")
    tool_choice: Any = Field(None, description='"auto", "none" (they are not shown), "required", or {"type": "function", "function": {"name": ...}}.')
    parallel_tool_calls: bool = Field(True, description="Whether several calls may be made where one is required.")
    logprobs: bool = Field(False, description="Tell each token's log-probability.")
    top_logprobs: int | None = Field(None, ge=0, description="And of so many likeliest tokens in its place.")
    max_tokens: int | None = Field(None, ge=1, description="The answer ends after so many tokens.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The same by its newer name.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables of the chat template that the operator allows.")
    reasoning_effort: str | None = Field(None, description="For templates that know it.")
    continue_final_message: bool = Field(False, description="The last message is the beginning of the answer; with add_generation_prompt=false.")
    add_generation_prompt: bool = Field(True, description="An answer is begun.")


def chat_routes(served: Served) -> APIRouter:
    """The path that answers messages."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions", openapi_extra=takes(ChatBody, served, messages=[{"role": "user", "content": "Name three colours."}]))
    async def chat_completions(request: Request) -> Response:
        """Answer a dialogue; whole, or with `stream` as it grows."""
        return await answered(request, served, ChatBody, Chat)

    return routes


class Chat(Chunks):
    """A body of /v1/chat/completions, and how the answers to it are written."""

    whole_kind = "chat.completion"

    def __init__(self, body: ChatBody, served: Served):
        """Raises ApiError for messages and tools that are none, UserError for settings that are unknown or cannot be honoured."""
        super().__init__(body)
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion.chunk", "created": int(time.time()), "model": body.model or served.name}
        self._form, tokenizer = answer_form(served.tokenizer), served.tokenizer
        messages, prefix = beginning(body)
        refuse_long(messages, prefix, served)
        choice, named = choice_of(body)
        tools = tools_of(body.tools or [], self._form, choice != "none")
        self._tools = [] if choice == "none" else tools  # not shown: so the model makes no calls
        if named is not None and named not in (names := [tool["function"]["name"] for tool in self._tools]):
            raise ApiError(400, f"tool_choice names {named!r}, and the tools are {', '.join(names)}: name one of them", "tool_choice")
        effort = effort_of(body, served)
        dialogue = dialogue_of(served, messages, self._tools, body.chat_template_kwargs, effort)
        text = ""
        if self._form.thinking:  # else it is rendered once, where it is encoded
            text = prompt_text(tokenizer, dialogue.messages, dialogue.tools, **dialogue.template_kwargs) + prefix
        self._in_thinking, self._may_think = self._form.begins_in_thinking(text), self._form.may_think(text)
        if prefix and self._in_thinking:
            told = "the model's prompt opens its thinking, and the message's text would be taken for a part of it: leave it out"
            raise ApiError(400, f"continue_final_message given: {told}", "continue_final_message")
        self.prompts, self._prefix = [dialogue], prefix
        ours: dict[str, Any] = {}
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, f"top_logprobs={body.top_logprobs} given without logprobs: give logprobs=true too", "top_logprobs")
        if body.logprobs:
            ours["logprobs"] = body.top_logprobs or 0
        if body.max_tokens and body.max_completion_tokens not in (None, body.max_tokens):
            raise ApiError(400, "max_tokens and max_completion_tokens differ: give one of them", "max_tokens")
        given = tokens_before(served, prefix) if prefix else 0
        if most := body.max_completion_tokens or body.max_tokens:
            ours["max_new_tokens"] = most + given
        if prefix:
            ours["prefix"] = prefix
        if (grammar := self._grammar(body, choice, named, tokenizer)) is not None:
            ours["grammar"] = grammar
        self.params, self.ignored = settings_of(body, served, **ours)
        if body.reasoning_effort != effort:
            self.ignored.append("reasoning_effort")
        if self._in_thinking and self.params.thinking_budget is None and any(getattr(self.params, name) for name in LANGUAGES if name != "grammar"):
            budget = self.params.max_new_tokens // 2  # what is asked follows it
            self.params = replace(self.params, thinking_budget=budget, thinking_end=self._form.thinking[1])
        self._judged = self.params.prompt_logprobs is not None
        self._read: list = []
        self._answers: dict[int, AnswerState] = {}

    def parts(self, prompt: int, event: Event) -> list[dict[str, Any]]:
        """What an event adds to the choices."""
        if isinstance(event, PromptRead):
            self._read = event.logprobs
            return []
        if not isinstance(event, Committed | Finished):
            return []
        begin, answer = [], self._answers.get(event.choice)
        if answer is None:
            answer = self._answers[event.choice] = self._new_answer()
            told = {"prompt_logprobs": prompt_logprobs(self._read)} if self._judged else {}
            begin = [{**part(event.choice, {"role": "assistant", "content": ""}), **told}]
        if isinstance(event, Finished):
            rest = [part(event.choice, delta_of(each)) for each in answer.parser.finish()]
            answer.called |= any("tool_calls" in each["delta"] for each in rest)
            reason = FINISH_REASONS[event.reason]
            return [*begin, *rest, part(event.choice, {}, finish_reason="tool_calls" if answer.called and reason == "stop" else reason)]
        deltas = list(map(delta_of, answer.heard(event)))
        known = event.top_logprobs
        if known is not None and answer.tokens > answer.given and known.bytes:
            deltas, told = deltas or [{}], {"content": chat_logprobs([known]), "refusal": None}
            return [*begin, part(event.choice, deltas[0], told), *(part(event.choice, delta) for delta in deltas[1:])]
        return [*begin, *(part(event.choice, delta) for delta in deltas)]

    def as_whole(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A choice with its message, tool calls each in one piece."""
        delta, calls = choice.pop("delta"), {}
        for piece in delta.pop("tool_calls", ()):
            known = calls.setdefault(piece["index"], {"id": piece.get("id"), "type": "function", "function": {"name": "", "arguments": ""}})
            for key, text in piece["function"].items():
                known["function"][key] += text
        content = delta.get("content") or (None if calls else "")
        message = {**delta, "content": content, "refusal": None, **({"tool_calls": list(calls.values())} if calls else {})}
        return {"index": choice.pop("index"), "message": message, **choice}

    def usage(self, call: Call) -> dict[str, Any]:
        """How many tokens there were; what of an answer was given counts as prompt, and what was thought is told apart."""
        known = super().usage(call)
        known["prompt_tokens"] += self._given
        known["completion_tokens"] -= self._given * len(self._answers)
        known["total_tokens"] = known["prompt_tokens"] + known["completion_tokens"]
        return {**known, "completion_tokens_details": {"reasoning_tokens": sum(answer.thought for answer in self._answers.values())}}

    @property
    def _given(self) -> int:
        """How many first tokens of each answer the client has given."""
        return len(self._call.tickets[0].generation.request.prefix_ids)

    def _new_answer(self) -> AnswerState:
        request = self._call.tickets[0].generation.request
        controls = {id: request.tokenizer.decode([id]) for id in self._form.control_ids - request.ends}
        parser = AnswerParser(self._form, in_thinking=self._in_thinking, tools=self._tools)
        text = ControlText(request.new_text().endless(), controls)
        return AnswerState(parser, text, Skipping(self._prefix, written_of(self._prefix, request)), self._given)

    def _grammar(self, body: ChatBody, choice: str, named: str | None, tokenizer: Any) -> str | None:
        """The grammar that forces a call, or the arguments of strict tools; None where nothing is forced."""
        strict = any(tool["function"].get("strict") for tool in self._tools)
        if choice != "required" and not (choice == "auto" and strict):
            return None
        if both := next((name for name in FORMATS if (body.model_extra or {}).get(name) not in FREE), None):
            raise ApiError(400, f"{both} and tools that are forced or strict both say what the whole answer is: leave one of them out", both)
        thinking = {"thinking": self._may_think, "in_thinking": self._in_thinking}
        if choice == "auto":
            return strict_grammar(tokenizer, self._tools, **thinking)
        return call_grammar(tokenizer, self._tools, name=named, parallel=body.parallel_tool_calls, **thinking)


class AnswerState:
    """How far an answer is: its parser, how many tokens it has and how many of them are thinking."""

    def __init__(self, parser: AnswerParser, text: ControlText, skipping: Skipping, given: int):
        """What is skipped, `given` tokens, is the client's own."""
        self.parser, self._text, self._skipping, self.given = parser, text, skipping, given
        self.tokens = self.thought = 0
        self.called = False

    def heard(self, event: Committed) -> list[Part]:
        """Return the parts that a token settles."""
        self.tokens += 1
        text = self._skipping.behind(self._text.push(event.id, event.text))
        found = self.parser.push(text)
        if any(isinstance(each, Thinking) for each in found):
            self.thought = self.tokens - self.given
        self.called |= any(isinstance(each, CallBegun) for each in found)
        return found


def delta_of(each: Part) -> dict[str, Any]:
    """A part of an answer as a delta."""
    match each:
        case Thinking(text):
            return {"reasoning_content": text}
        case Content(text):
            return {"content": text}
        case CallBegun(index, id, name):
            return {"tool_calls": [{"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def part(index: int, delta: dict[str, Any], logprobs: dict | None = None, finish_reason: str | None = None) -> dict[str, Any]:
    """What has come of a choice since the last part."""
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def beginning(body: ChatBody) -> tuple[Sequence[Any], str]:
    """Return the messages to answer, and the text that the answer begins with; raises ApiError for one that is none."""
    if body.continue_final_message is body.add_generation_prompt:
        asked = "continue_final_message=true goes with add_generation_prompt=false, and without it an answer is begun"
        raise ApiError(400, f"{asked}: give both, or neither", "continue_final_message")
    if not body.continue_final_message:
        return body.messages, ""
    last = body.messages[-1] if body.messages else None
    said = {key: value for key, value in last.items() if value and key not in ECHOED} if isinstance(last, Mapping) else {}
    place = f"messages[{len(body.messages) - 1}]"
    content = texts_of(said.pop("content", ""), f"{place}.content")
    if said.pop("role", None) != "assistant" or not content or not body.messages[:-1]:
        raise ApiError(400, "continue_final_message needs an assistant's message with a text at the end, behind others", "messages")
    if said:
        raise ApiError(400, f"{place} has {', '.join(said)}, which cannot be continued: leave it out, or write thinking into the content", "messages")
    return body.messages[:-1], content


def refuse_long(messages: Sequence[Any], prefix: str, served: Served) -> None:
    """Raise ApiError for more messages than the model has positions, and for an answer that begins by more tokens, before anything is rendered."""
    if (positions := served.engine.positions) is None:
        return
    told = f"more than the {positions} positions of the model"
    if len(messages) > positions:
        raise ApiError(400, f"messages has {len(messages)} messages of at least a token each, {told}: leave some out", "messages")
    try:
        refuse_more(served.tokenizer, prefix, positions, literal=True)
    except TooManyTokens as found:
        raise ApiError(400, f"messages[{len(messages)}].content has {found}, {told}: shorten it", "messages") from None


def choice_of(body: ChatBody) -> tuple[str, str | None]:
    """Return "none", "auto" or "required", and the name of the tool that is required; raises ApiError for another choice."""
    choice = body.tool_choice
    if choice is None:
        return "auto", None
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not (choice in ("none", "auto", "required") or isinstance(name, str)):
        wanted = '"auto", "none", "required" or {"type": "function", "function": {"name": ...}}'
        raise ApiError(400, f"tool_choice must be {wanted}, got {shown(choice)}", "tool_choice")
    if not body.tools and choice not in ("none", "auto"):
        raise ApiError(400, f"tool_choice={shown(choice)} needs tools: give them", "tool_choice")
    return ("required", name) if name is not None else (choice, None)


def effort_of(body: ChatBody, served: Served) -> str | None:
    """Return the reasoning effort that the template reads, or None; raises ApiError where it does not read the one that is given."""
    if body.reasoning_effort is None or "reasoning_effort" in str(served.tokenizer.chat_template):
        return body.reasoning_effort
    if served.lenient:
        return None
    why = f"reasoning_effort={body.reasoning_effort!r} has no effect: the model's chat template does not know it; leave it out"
    raise ApiError(400, why, "reasoning_effort")
