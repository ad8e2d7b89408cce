"""/v1/embeddings: texts to vectors, in the passes that all requests share."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ConfigDict, Field, field_validator
from torch import Tensor

from ...data.errors import UserError
from .calls import Call, heard_out
from .completions import PROMPTS, prompts_of
from .docs import takes
from .guard.errors import ApiError
from .guard.limits import INPUTS
from .protocol import Body, body_of, refuse_too_many
from .served import Served, ServedEncoder
from .written import written


class EmbeddingBody(Body):
    """What a client asks of /v1/embeddings."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: Any = Field(description=f"A text, a list of texts, token ids, or a list of token ids; {INPUTS} of them at most.", json_schema_extra=PROMPTS)
    encoding_format: Literal["float", "base64"] = Field("float", description="A list of numbers, or the bytes of little-endian float32.")
    dimensions: int | None = Field(None, description="How many numbers a vector has: as many as the model's hidden states.")
    user: str | None = Field(None, description="Of the client's own bookkeeping; nothing is made of it.")

    @field_validator("input")
    @classmethod
    def _inputs(cls, value: Any) -> list[str | list[int]]:
        return prompts_of(value)

    def how(self, served: Served) -> dict[str, Any]:
        """What the engine has to know beside a text."""
        return {"adapter": served.adapter(self.model)}


class EncoderBody(EmbeddingBody):
    """What a client asks of an encoder's /v1/embeddings."""

    truncate: bool = Field(False, description="Read of a text that is longer than the encoder its beginning, where it is refused elsewhere.")
    prompt_name: str | None = Field(None, description="Which of the model's own prompts stands before each text.")

    def how(self, served: Served) -> dict[str, Any]:
        """What the engine has to know beside a text."""
        return {"truncate": self.truncate, "prompt_name": self.prompt_name}


def embedding_routes(served: Served) -> APIRouter:
    """The path that turns texts into vectors."""
    routes, size = APIRouter(), served.engine.vector_size
    kind = EncoderBody if isinstance(served, ServedEncoder) else EmbeddingBody

    @routes.post("/v1/embeddings", openapi_extra=takes(kind, served, input=["a cat", "a kitten"]))
    async def embeddings(request: Request) -> Response:
        """A vector of each text: an encoder's own, of a model that speaks the mean of its last hidden states.

        It is what `seodang.infer.embed` gives: such a mean, and the vector of an encoder that does not say otherwise, is not scaled to length 1, as those
        of OpenAI's own models are. Who compares by dot products divides by the length first; a cosine does not mind.
        """
        body, engine = await body_of(request, served, kind), served.engine
        if body.dimensions not in (None, size):
            raise ApiError(400, f"dimensions is {body.dimensions}, but a vector of this model has {size}: give {size}, or leave it out", "dimensions")
        refuse_too_many(body.input, served, "input", INPUTS)
        try:
            call = await Call.begin(body.input, partial(engine.embed, **body.how(served)))
            vectors = await heard_out(request, call, read_all(call))
        except UserError as error:
            raise of_input(error) from None
        tokens = sum(map(prompt_length, call.tickets))
        data = await asyncio.to_thread(told, vectors, body.encoding_format)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        cut = [place for place, ticket in enumerate(call.tickets) if getattr(ticket.generation.request, "truncated", False)]
        content = await written({"object": "list", "data": data, "model": body.model or served.name, "usage": usage, **({"truncated": cut} if cut else {})})
        return Response(content, media_type="application/json")

    return routes


async def read_all(call: Call) -> list[Tensor]:
    """Wait for all vectors of a call."""
    async for _ in call.events():
        pass
    return [ticket.embedding(0) for ticket in call.tickets]


def prompt_length(ticket: Any) -> int:
    """How many tokens a ticket's prompt has."""
    return ticket.generation.request.prompt_length


def of_input(error: UserError) -> ApiError:
    """The error in the words of this path."""
    told = ApiError.of(error)
    if told.status != 400:
        return told
    if str(told).startswith("prompt '"):
        return ApiError(400, str(told), "prompt_name")
    return ApiError(400, str(told).replace("prompt[", "input[").replace("prompt 1 ", "the input "), "input")


def told(vectors: Sequence[Tensor], encoding: str) -> list[dict[str, Any]]:
    """The vectors in their order, each [hidden], as they are sent."""
    return [{"object": "embedding", "index": index, "embedding": encoded(vector, encoding)} for index, vector in enumerate(vectors)]


def encoded(vector: Tensor, encoding: str) -> list[float] | str:
    """A vector, [hidden], as it is sent."""
    numbers = vector.float().numpy().astype("<f4")
    return numbers.tolist() if encoding == "float" else base64.b64encode(numbers.tobytes()).decode("ascii")
