"""From what a client asks to what it is sent: the same way for every path that answers, whole or streamed."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response

from ...data.errors import UserError
from ..engine.params import SamplingParams
from ..engine.prompts import Prompt
from ..explain.trace_events import step_told, traced
from ..requests.events import Event, Observed, PromptRead
from ..requests.trace import DiffusionStep
from ..strategies.registry import check_steps, choose
from .calls import Call, EventStream, heard_out, while_there
from .guard.admission import in_time
from .guard.errors import ApiError
from .protocol import AskingBody, StreamOptions, Words, body_of, refuse_too_many
from .served import Served
from .written import COMPACT, written

log = logging.getLogger(__name__)

STEPS = "stream_options.include_steps"
FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length", "time": "length"}

B = TypeVar("B", bound=AskingBody)


async def answered(request: Request, served: Served, kind: type[B], make: Callable[[B, Served], Chunks]) -> Response:
    """Read a body of a kind, hand in what it asks, and answer it; a client that goes away cancels it."""
    body = await body_of(request, served, kind)
    with Words(body).told():
        async with in_time():
            asked = await asyncio.to_thread(make, body, served)  # rendering takes a while
            refuse_too_many(asked.prompts, served, "prompt")
            await while_there(request, served.trials.hold(asked.params))
            asked.settle_steps(served)
        how = {"cache_salt": body.cache_salt, "trace": body.trace, "include_steps": asked.include_steps, "adapter": served.adapter(body.model)}
        submit = partial(served.engine.submit, params=asked.params, **how)
        call = await Call.begin(asked.prompts, submit)
    ignored = (quote(name, safe="[]", errors="replace") for name in asked.ignored)  # a header has ASCII alone, and no ends of lines
    headers = {"x-ignored-fields": ", ".join(ignored)} if asked.ignored else {}
    if body.stream:
        return EventStream(call, streamed(call, asked), headers)
    with asked.words.told():
        content = await written(await heard_out(request, call, asked.whole(call)))
        return Response(content, media_type="application/json", headers=headers)


async def streamed(call: Call, asked: Chunks) -> AsyncIterator[str]:
    """Yield the frames of a stream; what goes wrong by now is an event too."""
    told = None
    try:
        async for frame in asked.frames(call):
            yield frame
    except Exception as error:
        if not isinstance(error, UserError | ApiError):
            log.exception("a stream broke off")
        told = asked.words.of(error)
    yield asked.last_frame(told)


class Chunks:
    """Answers as OpenAI's completions and chat completions have them: choices that grow by parts, each part a chunk of a stream.

    A subclass is made of a body, checked, and has `head`, what all chunks have in common, and `parts`, what an event adds to the choices. The whole answer
    is all parts joined, so that it and the stream are the same.
    """

    prompts: Sequence[Prompt]
    params: SamplingParams
    ignored: list[str]  # fields that have no effect
    include_steps: bool
    head: Mapping[str, Any]
    whole_kind: ClassVar[str | None] = None  # the `object` of a whole answer, where a chunk is another
    _call: Call

    def __init__(self, body: AskingBody):
        if body.stream_options is not None and not body.stream:
            raise ApiError(400, "stream_options given without stream: leave it out, or give stream=true", "stream_options")
        self.words, self._traced = Words(body), body.trace
        options = body.stream_options or StreamOptions()
        self._include_usage, self.include_steps = options.include_usage, options.include_steps

    def settle_steps(self, served: Served) -> None:
        """Raise UserError where steps are asked of an answer that has none; a lenient server then ignores that they are."""
        if not self.include_steps:
            return
        strategy = choose(self.params, served.diffusion)
        if served.lenient and strategy.left_to_right:
            self.include_steps = False
            self.ignored.append(STEPS)
        else:
            check_steps(strategy, STEPS)

    def parts(self, prompt: int, event: Event) -> list[dict[str, Any]]:
        """Return what an event of a prompt's answers adds to the choices: a choice's index, what has come of it, and its finish_reason."""
        raise NotImplementedError

    def usage(self, call: Call) -> dict[str, Any]:
        """How many tokens there were."""
        return usage(call)

    def told_usage(self, call: Call) -> dict[str, Any]:
        """The usage as it is sent: with the passes of the answers, where these are by diffusion."""
        known = self.usage(call)
        return {**known, **passes(call, known["completion_tokens"])}

    def ids_of(self, prompt: int) -> list[int]:
        """The ids of a prompt."""
        request = self._call.tickets[prompt].generation.request
        return request.source_ids or request.prompt_ids

    def place_of(self, prompt: int, choice: int) -> int:
        """Where an answer stands among the choices: those to a prompt together."""
        return prompt * self.params.num_return_sequences + choice

    async def whole(self, call: Call) -> dict[str, Any]:
        """Wait for all answers and return them as one object."""
        choices: dict[int, dict[str, Any]] = {}
        trace: list[dict[str, Any]] = []
        async for parts, seen in self._grown(call):
            trace += seen.get("trace", ())
            for part in parts:
                known = choices.get(part["index"])
                choices[part["index"]] = part if known is None else joined(known, part)
        more = {**({"object": self.whole_kind} if self.whole_kind else {}), **({"trace": trace} if self._traced else {})}
        return {**self.head, **more, "choices": [self.as_whole(choices[index]) for index in sorted(choices)], "usage": self.told_usage(call)}

    def as_whole(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A choice whose parts are joined, as the whole answer has it."""
        return choice

    async def frames(self, call: Call) -> AsyncIterator[str]:
        """Yield the chunks, and at the end the usage where it is asked for."""
        head = {**self.head, **({"usage": None} if self._include_usage else {})}
        async for parts, seen in self._grown(call):
            if seen:
                yield sent({**head, "choices": [], **seen})
            for part in parts:
                yield sent({**head, "choices": [part]})
        if self._include_usage:
            yield sent({**head, "choices": [], "usage": self.told_usage(call)})

    def last_frame(self, error: ApiError | None) -> str:
        """The error, where there was one, and the end."""
        return f"{'' if error is None else sent(error.body)}data: [DONE]\n\n"

    async def _grown(self, call: Call) -> AsyncIterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """Yield what each event adds to the choices, and what is told beside them."""
        self._call, begun = call, set()
        async for prompt, event in call.events():
            seen = self._seen(prompt, event)
            if self.params.prompt_logprobs is None or isinstance(event, PromptRead) or (place := (prompt, event.choice)) in begun:
                yield self.parts(prompt, event), seen
            else:  # an answer begins by what the model thinks of its prompt, which may be long
                begun.add(place)
                yield await asyncio.to_thread(self.parts, prompt, event), seen

    def _seen(self, prompt: int, event: Event) -> dict[str, Any]:
        """What is told of an event beside the choices: in a trace, and as a step of diffusion; each where it is asked for."""
        tokenizer, seen = self._call.tickets[prompt].generation.request.tokenizer, {}
        if self._traced and (told := traced(tokenizer, prompt, event)):
            seen["trace"] = [told]
        if self.include_steps and isinstance(event, Observed) and isinstance(event.what, DiffusionStep):
            seen["step"] = {"index": self.place_of(prompt, event.choice), **step_told(tokenizer, event.what)}
        return seen


def joined(known: Any, more: Any) -> Any:
    """What two parts of a choice come to: texts and lists behind one another, objects field by field, anything else the later that is not null.

    The lists of the first grow in place: to copy them at every token would take longer each time.
    """
    if known is None or more is None:
        return more if known is None else known
    if isinstance(known, dict):
        return {key: joined(known.get(key), more.get(key)) for key in {**known, **more}}
    if isinstance(known, list):
        known.extend(more)
        return known
    return known + more if isinstance(known, str) else more


def sent(value: Any) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=COMPACT)}\n\n"


def usage(call: Call) -> dict[str, Any]:
    """How many tokens were read, how many of them out of the cache, and how many were written."""
    prompt = sum(ticket.generation.request.prompt_length for ticket in call.tickets)
    written = sum(len(result.ids) for ticket in call.tickets for result in ticket.results(0))
    cached = sum(ticket.generation.cached_tokens for ticket in call.tickets)
    return {
        "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written, "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip


def passes(call: Call, tokens: int) -> dict[str, Any]:
    """How many passes over their canvases the answers took, and how many tokens came of each; nothing of answers from left to right."""
    forwards = [result.forwards for ticket in call.tickets for result in ticket.results(0)]
    if None in forwards:
        return {}
    return {"forward_passes": sum(forwards), "tokens_per_forward": tokens / sum(forwards)}
