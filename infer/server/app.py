"""OpenAI's protocol over a live engine: what a client may ask, and what it is answered."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from ...data.errors import UserError
from ...data.json_text import parsed
from ...data.surrogates import refuse_surrogates
from ..engine.compat import from_openai
from ..engine.live import LiveEngine
from ..engine.params import SamplingParams
from ..requests.events import Committed, Finished
from .calls import Call, EventStream, heard_out
from .errors import ApiError, add_errors
from .log import add_log_and_metrics

log = logging.getLogger(__name__)

MAX_BODY = 1 << 20  # bytes, or where the model has many positions, so many for each: beyond what it can read, and read in a second
POSITION_BODY = 32
BODY_SECONDS = 20.0  # that a body may take to come
MAX_STOPS = 64  # texts that end an answer: each is looked for behind every token, while the others wait
FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length", "time": "length"}
NOT_HERE = {  # fields that the translation of settings passes over or takes, and that this path does not answer
    "messages": "this path continues texts: give prompt",
    "tools": "this path continues texts: leave it out",
    "logprobs": "they are not told over HTTP: leave it out",
}


def build_app(engine: LiveEngine, name: str) -> FastAPI:
    """Return the app that serves the engine's model under a name; the engine is closed when the app ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)

    app = FastAPI(title="Seodang", lifespan=lifespan, openapi_url=None)  # its page of documentation would come from elsewhere
    add_errors(app)
    add_log_and_metrics(app, engine)

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 while the engine answers, else 503 and why not."""
        found = asdict(engine.health())
        ok = found.pop("ok")
        return JSONResponse({"status": "ok" if ok else "error", **found}, 200 if ok else 503)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        """Continue texts or ids; whole, or with `stream` as it grows."""
        raw = await body_of(request, max(MAX_BODY, POSITION_BODY * (engine.positions or 0)))
        asked = await run_in_threadpool(lambda: Completion.of(read(raw), name))  # a large one takes a while
        if len(asked.prompts) > engine.max_waiting:
            most = f"more than the {engine.max_waiting} that may wait here: send fewer at a time"
            raise ApiError(400, f"{len(asked.prompts)} prompts are {most}", "prompt")
        call = await Call.begin(engine, asked.prompts, asked.params, asked.cache_salt)
        if asked.stream:
            return EventStream(call, chunks(call, asked))
        return JSONResponse(await heard_out(request, call, completion(call, asked)))

    return app


async def body_of(request: Request, most: int) -> bytes:
    """Return the body that a client sends; raises ApiError for one that has more than so many bytes, or does not come."""
    raw, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                raw += part if size <= most else b""  # read to its end all the same: who still sends hears no answer
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} s: send it again") from None
    if size > most:
        raise ApiError(413, f"the body has {size} bytes, more than the {most} that are read: send less at a time")
    return bytes(raw)


def read(raw: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is; raises ApiError for anything else."""
    try:
        body = parsed(raw.decode())
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, got a {type(body).__name__}")
    refuse_surrogates(body, "the body")
    return body


@dataclass(frozen=True)
class Completion:
    """What a client asks of /v1/completions, and what all parts of the answer to it have in common."""

    prompts: list[str | list[int]]
    params: SamplingParams
    stream: bool
    include_usage: bool
    cache_salt: str | None
    head: Mapping[str, Any]

    @classmethod
    def of(cls, body: Mapping[str, Any], name: str) -> Completion:
        """Check a body; raises ApiError, and UserError for settings that are unknown or cannot be honoured."""
        body = {field: value for field, value in body.items() if value is not None}
        if (model := body.get("model", name)) != name:
            raise ApiError(404, f"the model {model!r} does not exist: this server has {name!r}", "model", "model_not_found")
        for field, remedy in NOT_HERE.items():
            if field in body:
                raise ApiError(400, f"{field} given: {remedy}", field)
        stream, include_usage = flag(body.pop("stream", False), "stream"), usage_asked(body.pop("stream_options", {}))
        if include_usage and not stream:
            raise ApiError(400, "stream_options given without stream: leave it out, or give stream=true", "stream_options")
        salt = body.pop("cache_salt", None)
        if salt is not None and not (isinstance(salt, str) and salt):
            raise ApiError(400, f"cache_salt must be a text, got {salt!r}", "cache_salt")
        if isinstance(body.get("stop"), list) and len(body["stop"]) > MAX_STOPS:
            raise ApiError(400, f"stop has {len(body['stop'])} texts, more than the {MAX_STOPS} that may end an answer: leave some out", "stop")
        prompts = prompts_of(body.get("prompt"))
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": name}
        return cls(prompts, from_openai(body), stream, include_usage, salt, head)

    def place_of(self, prompt: int, choice: int) -> int:
        """Where an answer stands among the choices: those to a prompt together."""
        return prompt * self.params.num_return_sequences + choice


def prompts_of(value: Any) -> list[str | list[int]]:
    """Return the prompts of a text, a list of texts, ids, or a list of ids; raises ApiError for anything else."""
    given = [value] if isinstance(value, str) or is_ids(value) else value
    if isinstance(given, list) and given and all(isinstance(each, str) or is_ids(each) for each in given):
        return given
    raise ApiError(400, "prompt must be a text, token ids, or a list of texts or of token ids" + (", got none" if not value else ""), "prompt")


def is_ids(value: Any) -> bool:
    """Whether a value is a list of whole numbers."""
    return isinstance(value, list) and len(value) > 0 and all(type(each) is int for each in value)  # True is an int, and no id


def usage_asked(options: Any) -> bool:
    """Whether a stream is to end by the usage; raises ApiError for other options of a stream."""
    if not isinstance(options, dict) or set(options) - {"include_usage"}:
        raise ApiError(400, f'stream_options must be {{"include_usage": true}}, got {options!r}', "stream_options")
    return flag(options.get("include_usage", False), "stream_options.include_usage")


def flag(value: Any, field: str) -> bool:
    """Return true or false; raises ApiError for anything else."""
    if not isinstance(value, bool):
        raise ApiError(400, f"{field} must be true or false, got {value!r}", field)
    return value


async def completion(call: Call, asked: Completion) -> dict[str, Any]:
    """Wait for all answers and return them as one object."""
    async for _ in call.events():
        pass
    choices = [
        part(asked.place_of(prompt, result.choice), result.text, FINISH_REASONS[result.finish_reason])
        for prompt, ticket in enumerate(call.tickets)
        for result in ticket.results(0)
    ]
    return {**asked.head, "choices": choices, "usage": usage(call)}


async def chunks(call: Call, asked: Completion) -> AsyncIterator[str]:
    """Yield the answers as server-sent events, as they grow; what goes wrong by now is an event too."""
    head = {**asked.head, **({"usage": None} if asked.include_usage else {})}
    try:
        async for prompt, event in call.events():
            if isinstance(event, Committed) and event.text:
                yield sent({**head, "choices": [part(asked.place_of(prompt, event.choice), event.text)]})
            elif isinstance(event, Finished):
                yield sent({**head, "choices": [part(asked.place_of(prompt, event.choice), "", FINISH_REASONS[event.reason])]})
        if asked.include_usage:
            yield sent({**head, "choices": [], "usage": usage(call)})
    except Exception as error:
        if not isinstance(error, UserError):
            log.exception("a stream broke off")
        yield sent(ApiError.of(error).body)
    yield "data: [DONE]\n\n"


def part(index: int, text: str, finish_reason: str | None = None) -> dict[str, Any]:
    """An answer, or what has come of it since the last part."""
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def sent(value: Any) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def usage(call: Call) -> dict[str, Any]:
    """How many tokens were read, how many of them out of the cache, and how many were written."""
    prompt = sum(ticket.generation.request.prompt_length for ticket in call.tickets)
    written = sum(len(result.ids) for ticket in call.tickets for result in ticket.results(0))
    cached = sum(ticket.generation.cached_tokens for ticket in call.tickets)
    return {
        "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written, "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip
