"""From what a client asks to what it is sent: the same way for every path that answers, whole or streamed."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

from fastapi import Request
from fastapi.responses import Response

from ...data.errors import UserError
from ..engine.params import SamplingParams
from ..engine.prompts import Prompt
from ..explain.trace_events import traced
from ..requests.events import Event, PromptRead
from .calls import Call, EventStream, heard_out, while_there
from .guard.admission import in_time
from .guard.errors import ApiError
from .protocol import AskingBody, Words, body_of, refuse_too_many
from .served import Served
from .written import COMPACT, written

log = logging.getLogger(__name__)

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
        submit = partial(served.engine.submit, params=asked.params, cache_salt=body.cache_salt, trace=body.trace, adapter=served.adapter(body.model))
        call = await Call.begin(asked.prompts, submit)
    headers = {"x-ignored-fields": ", ".join(asked.ignored)} if asked.ignored else {}
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
    ignored: Sequence[str]  # fields that have no effect
    head: Mapping[str, Any]
    whole_kind: ClassVar[str | None] = None  # the `object` of a whole answer, where a chunk is another
    _call: Call

    def __init__(self, body: AskingBody):
        if body.stream_options is not None and not body.stream:
            raise ApiError(400, "stream_options given without stream: leave it out, or give stream=true", "stream_options")
        self.words, self._traced = Words(body), body.trace
        self._include_usage = body.stream_options is not None and body.stream_options.include_usage

    def parts(self, prompt: int, event: Event) -> list[dict[str, Any]]:
        """Return what an event of a prompt's answers adds to the choices: a choice's index, what has come of it, and its finish_reason."""
        raise NotImplementedError

    def usage(self, call: Call) -> dict[str, Any]:
        """How many tokens there were."""
        return usage(call)

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
            trace += seen
            for part in parts:
                known = choices.get(part["index"])
                choices[part["index"]] = part if known is None else joined(known, part)
        more = {**({"object": self.whole_kind} if self.whole_kind else {}), **({"trace": trace} if self._traced else {})}
        return {**self.head, **more, "choices": [self.as_whole(choices[index]) for index in sorted(choices)], "usage": self.usage(call)}

    def as_whole(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A choice whose parts are joined, as the whole answer has it."""
        return choice

    async def frames(self, call: Call) -> AsyncIterator[str]:
        """Yield the chunks, and at the end the usage where it is asked for."""
        head = {**self.head, **({"usage": None} if self._include_usage else {})}
        async for parts, seen in self._grown(call):
            if seen:
                yield sent({**head, "choices": [], "trace": seen})
            for part in parts:
                yield sent({**head, "choices": [part]})
        if self._include_usage:
            yield sent({**head, "choices": [], "usage": self.usage(call)})

    def last_frame(self, error: ApiError | None) -> str:
        """The error, where there was one, and the end."""
        return f"{'' if error is None else sent(error.body)}data: [DONE]\n\n"

    async def _grown(self, call: Call) -> AsyncIterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
        """Yield what each event adds to the choices, and what of it a trace tells."""
        self._call, begun = call, set()
        async for prompt, event in call.events():
            told = traced(call.tickets[prompt].generation.request.tokenizer, prompt, event) if self._traced else None
            if self.params.prompt_logprobs is None or isinstance(event, PromptRead) or (place := (prompt, event.choice)) in begun:
                yield self.parts(prompt, event), [told] if told else []
            else:  # an answer begins by what the model thinks of its prompt, which may be long
                begun.add(place)
                yield await asyncio.to_thread(self.parts, prompt, event), [told] if told else []


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
