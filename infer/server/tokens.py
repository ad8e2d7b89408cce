"""/tokenize and /detokenize: texts and messages to the ids that the model reads, and ids to text; fields as vLLM has them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ConfigDict, Field
from transformers import PreTrainedTokenizerBase

from ...data.chat import text_ids
from ...data.errors import UserError
from ...data.literal import refuse_more
from ...data.long_text import TooManyTokens
from ..engine.prompts import encode, encode_source
from ..parsing.form import answer_form
from ..text.detokenise import whole_text
from ..text.vocabulary import check_ids
from .docs import takes
from .guard.errors import ApiError
from .guard.limits import TOKENIZED
from .messages import dialogue_of, tools_of
from .protocol import Body, body_of
from .served import Served
from .written import written

AT_A_TIME = 2  # long texts may take seconds, in threads that all requests share
OF_A_TEXT, OF_MESSAGES = ("add_special_tokens",), ("tools", "chat_template_kwargs")  # what says something beside one of them alone


class TokenizeBody(Body):
    """A text, or messages, whose ids are asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str | None = Field(None, description="A text.")
    messages: list[Any] | None = Field(None, description="A dialogue instead.")
    tools: list[Any] | None = Field(None, description="The tools that are shown to the model with it.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables of the chat template that the operator allows.")
    add_special_tokens: bool = Field(True, description="With what the tokenizer puts around a text; without, its control tokens are text too.")
    return_token_strs: bool = Field(False, description="Tell what each token is called too.")


class DetokenizeBody(Body):
    """Ids whose text is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tokens: list[int] = Field(description="Token ids.")


def token_routes(served: Served) -> APIRouter:
    """The paths between text and ids."""
    routes, tokenizer = APIRouter(), served.tokenizer
    turns = asyncio.Semaphore(AT_A_TIME)

    @routes.post("/tokenize", openapi_extra=takes(TokenizeBody, served, prompt="a text"))
    async def tokenize(request: Request) -> Response:
        """The ids that the model reads for a text, or for a dialogue that it is to answer."""
        body = await body_of(request, served, TokenizeBody)
        if (body.prompt is None) is (body.messages is None):
            raise ApiError(400, "give prompt or messages, one of them", "prompt")
        told, idle = ("messages", OF_A_TEXT) if body.prompt is None else ("prompt", OF_MESSAGES)
        if not served.lenient and (name := next((name for name in idle if name in body.model_fields_set), None)):
            raise ApiError(400, f"{name} has no effect beside {told}: leave it out", name)
        async with turns:
            try:
                ids = await asyncio.to_thread(ids_of, served, body)
            except TooManyTokens as found:
                raise ApiError(400, f"{told} has {found}, which are not counted here: send less at a time", told) from None
            names = await asyncio.to_thread(tokenizer.convert_ids_to_tokens, ids) if body.return_token_strs else None
            answer = {"count": len(ids), "max_model_len": served.engine.positions, "tokens": ids, "token_strs": names}
            return Response(await written(answer), media_type="application/json")

    @routes.post("/detokenize", openapi_extra=takes(DetokenizeBody, served, tokens=[5, 6, 7]))
    async def detokenize(request: Request) -> dict[str, str]:
        """The text of ids, control tokens left out."""
        body = await body_of(request, served, DetokenizeBody)
        async with turns:
            return {"prompt": await asyncio.to_thread(text_of, tokenizer, body.tokens)}

    return routes


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of ids; raises ApiError for one that is none of the tokenizer's."""
    try:
        check_ids(ids or [0], len(tokenizer), "tokens")
    except UserError as error:
        raise ApiError(400, str(error), "tokens") from None
    return whole_text(tokenizer, ids)


def ids_of(served: Served, body: TokenizeBody) -> list[int]:
    """The ids of a body's text or dialogue; raises TooManyTokens for one that would keep the server busy for long."""
    most = max(TOKENIZED, served.engine.positions or 0)
    if body.messages is not None:
        dialogue = dialogue_of(served, body.messages, tools_of(body.tools or [], answer_form(served.tokenizer)), body.chat_template_kwargs)
        if served.encoder_decoder:
            return encode_source(served.tokenizer, dialogue, "messages", len(served.tokenizer), most=most)
        return encode(served.tokenizer, dialogue, most=most)
    if body.add_special_tokens:
        return text_ids(served.tokenizer, body.prompt, most=most)
    refuse_more(served.tokenizer, body.prompt, most, literal=False)
    return served.tokenizer.encode(body.prompt, add_special_tokens=False)
