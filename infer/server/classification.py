"""/v1/classify: texts and pairs of texts to classes with their probabilities, in the passes that all requests share; the protocol is vLLM's."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ConfigDict, Field, field_validator

from ...data.classification.labels import MULTI, REGRESSION
from ...data.errors import UserError
from ..encoders.classify import Classified, Input
from .calls import Call, heard_out
from .completions import is_ids
from .docs import takes
from .embeddings import of_input, prompt_length
from .guard.limits import INPUTS
from .protocol import Body, body_of, refuse_too_many
from .served import Served
from .written import written

TEXT = {"type": "string"}
PAIR = {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2, "description": "A text and its pair."}
IDS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
ASKED = {"anyOf": [TEXT, {"type": "array", "items": {"anyOf": [TEXT, PAIR, IDS]}, "minItems": 1}]}


class ClassificationBody(Body):
    """What a client asks of /v1/classify."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: Any = Field(description=f"A text, or a list of texts, pairs of texts, or token ids; {INPUTS} of them at most.", json_schema_extra=ASKED)
    truncate: bool = Field(False, description="Read of a text that is longer than the classifier its beginning, where it is refused elsewhere.")
    user: str | None = Field(None, description="Of the client's own bookkeeping; nothing is made of it.")

    @field_validator("input")
    @classmethod
    def _inputs(cls, value: Any) -> list[Input | list[int]]:
        return texts_of(value)


def texts_of(value: Any) -> list[Input | list[int]]:
    """Return the texts, pairs and ids of an input; raises ValueError for anything else."""
    given = [value] if isinstance(value, str) or is_ids(value) else value
    if not isinstance(given, list) or not given:
        raise ValueError("must be a text, or a list of texts, pairs of texts, or token ids")
    found: list[Input | list[int]] = []
    for place, each in enumerate(given):
        pair = isinstance(each, list) and len(each) == 2 and all(isinstance(text, str) for text in each)
        if not pair and not isinstance(each, str) and not is_ids(each):
            raise ValueError(f"item {place} must be a text, a pair of texts, or token ids")
        found.append((each[0], each[1]) if pair else each)
    return found


def classification_routes(served: Served) -> APIRouter:
    """The paths that say which class texts are of: ours, and vLLM's own."""
    routes = APIRouter()

    @routes.post("/v1/classify", openapi_extra=takes(ClassificationBody, served, input=["a fine film", ["a question", "its answer"]]))
    @routes.post("/classify", include_in_schema=False)
    async def classify(request: Request) -> Response:
        """Of each text its class and the probability of every class, in the order of the model's labels.

        Of several labels `labels` has those at least as likely as a half; of a regression `value` is the number, and there are no probabilities.
        """
        body, engine = await body_of(request, served, ClassificationBody), served.engine
        refuse_too_many(body.input, served, "input", INPUTS)
        try:
            call = await Call.begin(body.input, partial(engine.classify, truncate=body.truncate))
            said = await heard_out(request, call, all_said(call, engine))
        except UserError as error:
            raise of_input(error) from None
        tokens = sum(map(prompt_length, call.tickets))
        cut = [place for place, each in enumerate(said) if each.truncated]
        content = await written({
            "id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": body.model or served.name,
            "data": told(said, engine.encoder.problem), "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
            **({"truncated": cut} if cut else {}),
        })  # fmt: skip
        return Response(content, media_type="application/json")

    return routes


async def all_said(call: Call, engine: Any) -> list[Classified]:
    """Wait for what is said of all texts of a call."""
    async for _ in call.events():
        pass
    return [engine.said(ticket, 0) for ticket in call.tickets]


def told(said: Sequence[Classified], problem: str) -> list[dict[str, Any]]:
    """What is said of texts, in their order, as it is sent."""
    found = []
    for index, each in enumerate(said):
        probs = list(each.probs.values())
        label = None if problem == REGRESSION else max(each.probs, key=each.probs.get)
        further = {"value": each.label} if problem == REGRESSION else {"labels": list(each.label)} if problem == MULTI else {}
        found.append({"index": index, "label": label, "probs": probs, "num_classes": max(1, len(probs)), **further})
    return found
