"""Bodies as clients send them: read within bounds, checked, and their settings translated; mistakes are told in the client's own words."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from ...data.errors import UserError
from ...data.json_text import parsed
from ...data.surrogates import refuse_surrogates
from ..engine.compat import REQUEST, STRUCTURES, from_request
from ..engine.params import SamplingParams
from ..strategies.registry import OWNED, choose, spoken
from .guard import limits
from .guard.errors import ApiError
from .served import Served

THEIRS = {"max_new_tokens": "max_tokens", "num_return_sequences": "n"}  # what clients call settings that they have not given

NEUTRAL = {  # values of fields that a path refuses which ask for nothing
    "n": (1,), "num_return_sequences": (1,), "top_logprobs": (0,), "logprobs": (False,), "trace": (False,), "echo": (False,), "tools": ([],), "functions": ([],),
}  # fmt: skip
MISTAKES = {  # pydantic's kinds of them, in our words
    "missing": "is missing: give it", "extra_forbidden": "is unknown: leave it out", "bool_type": "must be true or false", "string_type": "must be a text",
    "int_type": "must be a whole number", "list_type": "must be a list", "model_type": "must be an object", "dict_type": "must be an object",
}  # fmt: skip

B = TypeVar("B", bound="Body")


class StreamOptions(BaseModel):
    """How a stream is told; nothing in it is converted, and nothing else stands in it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = Field(False, description="End the stream by a chunk with the usage.")
    include_steps: bool = Field(False, description="Tell each step of a diffusion answer in a chunk of its own, beside the text that is certain.")


class Body(BaseModel):
    """What a body has besides the settings of an answer (and may have with them: the rest of its fields)."""

    model_config = ConfigDict(extra="allow", strict=True)
    refused: ClassVar[Mapping[str, str]] = {}  # fields that other paths have, and what to do about them

    model: str | None = Field(None, description="What this server calls its model.")
    _dropped: list[str] = PrivateAttr(default_factory=list)  # fields that a lenient server has passed over


class AskingBody(Body):
    """What every body that asks for an answer has."""

    words: ClassVar[Mapping[str, str]] = {}  # what this path calls settings, where it has names of its own

    stream: bool = Field(False, description="Send the answer as it grows, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="What a stream tells besides the answer.")
    cache_salt: str | None = Field(None, min_length=1, description="What is read is reused for requests of the same salt alone.")
    trace: bool = Field(False, description="Tell what happened at each token, before and after every filter.")


async def body_of(request: Request, served: Served, kind: type[B]) -> B:
    """Return what a client sends; raises ApiError for a body that is too large, does not come, is no JSON or not of its kind."""
    raw = await bytes_of(request, max(limits.MAX_BODY, limits.POSITION_BODY * (served.engine.positions or 0)))
    return await asyncio.to_thread(lambda: checked(read(raw), served, kind))  # a large one takes a while


async def bytes_of(request: Request, most: int) -> bytes:
    """Return the body that a client sends; raises ApiError for one that has more than so many bytes, or does not come."""
    raw, size = bytearray(), 0
    try:
        async with asyncio.timeout(limits.BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                raw += part if size <= most else b""  # read to its end all the same: who still sends hears no answer
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {limits.BODY_SECONDS:g} s: send it again") from None
    if size > most:
        raise ApiError(413, f"the body has {size} bytes, more than the {most} that are read: send less at a time")
    return bytes(raw)


def read(raw: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is; raises ApiError for anything else."""
    try:
        body = parsed(raw.decode(), partial(json.loads, parse_float=finite, parse_constant=finite))
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, got a {type(body).__name__}")
    limits.hold_depth("the body", body, limits.BODY_DEPTH)
    refuse_surrogates(body, "the body")
    return body


def finite(number: str) -> float:
    """Return a number that JSON has and a float holds; raises ValueError for NaN, Infinity and 1e999, which no answer could repeat."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number:.20} is no number that can be read")
    return value


def checked(body: Mapping[str, Any], served: Served, kind: type[B]) -> B:
    """Return a body as one of its kind, without its nulls; raises ApiError for fields of another type, and for another model."""
    given = {name: value for name, value in body.items() if value is not None}
    check_model(given.get("model", served.name), served)
    refused = [name for name in kind.refused if name in given and given[name] not in NEUTRAL.get(name, ())]
    if refused and not served.lenient:
        raise ApiError(400, f"{refused[0]} given: {kind.refused[refused[0]]}", refused[0])
    given = {name: value for name, value in given.items() if name not in kind.refused}
    limits.hold(given, served.engine)
    if served.lenient and kind.model_config.get("extra") == "forbid":
        given = {name: value for name, value in given.items() if name in kind.model_fields}
    try:
        read = kind.model_validate(given)
        read._dropped = refused
        return read
    except ValidationError as error:
        raise refusal(error) from None


def check_model(name: Any, served: Served) -> None:
    """Raise ApiError for a model that is not served."""
    if name not in served.models:
        raise ApiError(404, f"the model {shown(name)} does not exist: this server has {', '.join(served.models)}", "model", "model_not_found")


def refuse_too_many(given: Sequence[Any], served: Served, field: str, most: int = limits.PROMPTS) -> None:
    """Raise ApiError for more prompts in one body than it may have, or than may wait."""
    if len(given) > (most := min(most, served.engine.max_waiting)):
        raise ApiError(400, f"{len(given)} {field}s are more than the {most} that may come in one request here: send fewer at a time", field)


def refusal(error: ValidationError) -> ApiError:
    """The first of a body's mistakes, by its field."""
    first = error.errors(include_url=False)[0]
    place = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in first["loc"]).lstrip(".")
    wrong = MISTAKES.get(first["type"]) or first["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
    got = "" if first["type"] in ("missing", "extra_forbidden") else f", got {shown(first['input'])}"
    return ApiError(400, f"{place} {wrong}{got}", str(first["loc"][0]))


def shown(value: Any) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:80]}..."


class Words:
    """The names that a client's body has for settings, to tell mistakes in."""

    def __init__(self, body: AskingBody):
        self._given = sorted(body.model_fields_set - {"model"})
        usual = {ours: name for ours, name in {**THEIRS, **body.words}.items() if ours not in self._given}
        self._theirs = usual | {REQUEST[name]: name for name in self._given if REQUEST.get(name, name) != name} | structures(self._given)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Let a UserError of settings or prompts that is raised within name the client's own fields."""
        try:
            yield
        except UserError as error:
            raise self.of(error) from None

    def of(self, error: Exception) -> ApiError:
        """The error as the client is told it, with the field that it is about where it names one."""
        told = ApiError.of(error)
        if told.status != 400 or told is error:
            return told
        message = str(told)
        for ours, name in self._theirs.items():
            message = re.sub(rf"(?<![\w\"']){ours}\b", name, message, count=ours in STRUCTURES.values())  # which are words, too
        message = re.sub(r"\b[Pp]rompt 1\b", "the prompt", message)
        found = {name: at.start() for name in self._given if name in message and (at := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message))}
        return ApiError(400, message, min(found, key=found.__getitem__, default=None))


def structures(given: Collection[str]) -> dict[str, str]:
    """What clients call, by our names, what says what the whole answer is."""
    theirs: dict[str, str] = {}
    for name in given:
        if name == "response_format":
            theirs["json_schema"] = name
        elif name == "allowed_token_ids":
            theirs["prefix_allowed_tokens_fn"] = name
        elif name in ("structured_outputs", "guided_decoding"):
            theirs |= {ours: f"{name}.{key}" for key, ours in STRUCTURES.items()}
        elif (key := name.removeprefix("guided_")) != name and key in STRUCTURES:
            theirs[STRUCTURES[key]] = name
    return {ours: name for ours, name in theirs.items() if ours not in given}


def settings_of(body: AskingBody, served: Served, **ours: Any) -> tuple[SamplingParams, list[str]]:
    """Return the settings that a body gives beside the checkpoint's, and the fields that were ignored; `ours` are added under our names.

    Raises UserError for what is unknown or cannot be honoured.
    """
    given = dict(body.model_extra or {})
    ignored = list(body._dropped)
    known = from_request(given, ignored if served.lenient else None)
    if served.lenient and (unspoken := {name: REQUEST[name] for name in given if REQUEST.get(name) in OWNED - spoken(served.diffusion)}):
        ignored += unspoken
        given, known = ({name: value for name, value in each.items() if name not in left} for each, left in ((given, unspoken), (known, unspoken.values())))
    for name in known.keys() & ours.keys():
        if known[name] != ours[name]:
            raise UserError(f"the request gives {name}={ours[name]!r} and, by another name, {known[name]!r}: drop one of them")
    params = served.params({**known, **ours})
    if served.lenient:
        honoured = choose(params, served.diffusion).honours
        if idle := {name: REQUEST[name] for name in given if REQUEST.get(name) in OWNED and REQUEST[name] not in honoured}:
            ignored += idle
            params = served.params({name: value for name, value in {**known, **ours}.items() if name not in idle.values()})
    return params, ignored
