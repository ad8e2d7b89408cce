"""/v1/completions: texts and ids, continued."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import Field, field_validator

from ...data.literal import literal_ids
from ..requests.events import Committed, Event, Finished, PromptRead
from ..requests.likelihoods import TokenLogprobs
from ..requests.stop import overlap
from ..text.detokenise import detokeniser, whole_text
from .answering import FINISH_REASONS, Chunks, answered
from .calls import Call
from .docs import takes
from .logprobs import completion_logprobs, prompt_logprobs, prompt_tokens
from .protocol import AskingBody, settings_of
from .served import Served

IDS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
PROMPTS = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}, "minItems": 1}, IDS, {**IDS, "items": IDS}]}
SILENT = "this path continues texts: leave it out"


class CompletionBody(AskingBody):
    """What a client asks of /v1/completions, besides the settings of the answer."""

    refused: ClassVar[Mapping[str, str]] = {
        "messages": "this path continues texts: give prompt", "tools": SILENT, "tool_choice": SILENT, "chat_template_kwargs": SILENT,
    }  # fmt: skip

    prompt: Any = Field(description="A text, a list of texts, token ids, or a list of token ids.", json_schema_extra=PROMPTS)
    echo: bool = Field(False, description="Begin the answer by the prompt.")
    max_tokens: int | None = Field(None, ge=0, description="The answer ends after so many tokens; 0 to have the prompt judged alone.")

    @field_validator("prompt")
    @classmethod
    def _prompts(cls, value: Any) -> list[str | list[int]]:
        return prompts_of(value)


def prompts_of(value: Any) -> list[str | list[int]]:
    """Return the prompts of a text, a list of texts, ids, or a list of ids; raises ValueError for anything else."""
    given = [value] if isinstance(value, str) or is_ids(value) else value
    if isinstance(given, list) and given and all(isinstance(each, str) or is_ids(each) for each in given):
        return given
    raise ValueError("must be a text, token ids, or a list of texts or of token ids")


def is_ids(value: Any) -> bool:
    """Whether a value is a list of whole numbers."""
    return isinstance(value, list) and len(value) > 0 and all(type(each) is int for each in value)  # True is an int, and no id


def completion_routes(served: Served) -> APIRouter:
    """The path that continues texts."""
    routes = APIRouter()

    @routes.post("/v1/completions", openapi_extra=takes(CompletionBody, served, prompt="The three primary colours are", max_tokens=16))
    async def completions(request: Request) -> Response:
        """Continue texts or ids; whole, or with `stream` as it grows."""
        return await answered(request, served, CompletionBody, Completion)

    return routes


class Completion(Chunks):
    """A body of /v1/completions, and how the answers to it are written."""

    def __init__(self, body: CompletionBody, served: Served):
        """Raises UserError for settings that are unknown or cannot be honoured."""
        self.prompts: Sequence[str | list[int]] = body.prompt
        self.head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": body.model or served.name}
        super().__init__(body)
        self._tokenizer, self._echo, self._judges_alone = served.tokenizer, body.echo, body.max_tokens == 0
        suffix = (body.model_extra or {}).get("suffix")
        ids = literal_ids(served.tokenizer, suffix) if isinstance(suffix, str) and served.diffusion is not None else []
        length = {} if body.max_tokens is None else {"max_new_tokens": max(body.max_tokens, 1) + len(ids)}  # a token comes in any case
        self.params, self.ignored = settings_of(body, served, **length)
        self._suffix, self._suffix_tokens = whole_text(served.tokenizer, ids), len(ids)
        self._held: dict[int, list[str]] = {}  # of each choice what came with the tokens of the suffix
        self._judged = "prompt_logprobs" in (body.model_extra or {})
        if self._echo and self.params.logprobs is not None and not self._judged:
            self.params = replace(self.params, prompt_logprobs=self.params.logprobs)
        self._texts: dict[int, str] = {}  # what has been sent of each choice
        self._read: dict[int, list[TokenLogprobs | None]] = {}  # by prompt

    def parts(self, prompt: int, event: Event) -> list[dict[str, Any]]:
        """What an event adds to the choices."""
        if isinstance(event, PromptRead):
            self._read[prompt] = event.logprobs
            return []
        if not isinstance(event, Committed | Finished):
            return []
        index = self.place_of(prompt, event.choice)
        begin = [] if index in self._texts else self._begun(prompt, index)
        if isinstance(event, Finished):
            rest = without_end("".join(self._held.get(index, ())), self._suffix)
            return [*begin, part(index, rest, finish_reason="length" if self._judges_alone else FINISH_REASONS[event.reason])]
        if self._suffix_tokens and event.position >= self._call.tickets[prompt].generation.request.params.max_new_tokens - self._suffix_tokens:
            self._held.setdefault(index, []).append(event.text)
            return begin
        if self._judges_alone or not (event.text or event.top_logprobs):
            return begin
        known = event.top_logprobs and completion_logprobs([event.top_logprobs], [len(self._texts[index])])
        self._texts[index] += event.text
        return [*begin, part(index, event.text, known)]

    def usage(self, call: Call) -> dict[str, Any]:
        """How many tokens there were, a suffix among those of the prompt; where the prompt is judged alone, the one that came in any case is nobody's."""
        known, given = super().usage(call), sum(map(len, self._held.values()))
        known["prompt_tokens"] += self._suffix_tokens * len(call.tickets)
        known["completion_tokens"] -= given
        known["total_tokens"] = known["prompt_tokens"] + known["completion_tokens"]
        return {**known, "completion_tokens": 0, "total_tokens": known["prompt_tokens"]} if self._judges_alone else known

    def _begun(self, prompt: int, index: int) -> list[dict[str, Any]]:
        """What stands before the answer: the prompt, where it is to be echoed, and what the model thinks of it, where that is asked."""
        self._texts[index] = ""
        judged = self._read.get(prompt)
        told = {"prompt_logprobs": prompt_logprobs(judged)} if self._judged else {}
        if not self._echo:
            return [{**part(index), **told}] if told else []
        given, ids = self.prompts[prompt], self.ids_of(prompt)
        self._texts[index] = given if isinstance(given, str) else whole_text(self._tokenizer, ids)
        known = None
        if self.params.logprobs is not None:
            stream, offsets, length = detokeniser(self._tokenizer), [], 0
            for id in ids:
                offsets.append(length)
                length += len(stream.push(id))
            known = completion_logprobs(prompt_tokens(self._tokenizer, ids, judged, self.params.logprobs), offsets)
        return [{**part(index, self._texts[index], known), **told}]


def without_end(text: str, end: str) -> str:
    """The text without the end that is given, or without what stands of it where the text was cut off."""
    return text.removesuffix(end) if text.endswith(end) else text[: len(text) - overlap(text, end)]


def part(index: int, text: str = "", logprobs: dict | None = None, finish_reason: str | None = None) -> dict[str, Any]:
    """A choice, or what has come of it since the last part."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
