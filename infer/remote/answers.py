"""What a server answers, read: the texts of a completion or a chat completion as results, and what an error says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...data.errors import UserError
from ...data.json_text import is_deeper, parsed
from ...data.surrogates import refuse_surrogates
from ..engine.params import SamplingParams
from ..requests.events import Result
from ..requests.likelihoods import ScoredToken, TokenLogprobs

MOST_SAID = 500  # characters of an error that are kept
VERSION = r"@.+|:.+|-latest|-\d{4}[\d-]*"  # that a server may tell behind a model's name: revisions, tags, dates
DEEPEST = 100  # lists and objects of a body in one another; log-probabilities take six
BROKEN_OFF = ("error", "abort")  # why an answer is over that is none: what OpenRouter says, and vLLM of a request that it dropped


class Refused(Exception):
    """A prompt that the server does not answer, or answers in a way that cannot be read; asked again, it would do the same."""


@dataclass(frozen=True)
class RemoteResult(Result):
    """A server's answer: `ids` where it tells them, `tokens` how many it says it made for all answers of the prompt, in the first of these.

    `logprobs`, those after every filter, are not known, nor is `prompt_length` where the server does not tell. `thinking` is what the server took
    out of the text. A finish_reason that we have no word for is the server's own, and None where it tells none.
    """

    tokens: int = 0
    thinking: str | None = None


def read_json(raw: bytes) -> Any:
    """Return what a body says; raises ValueError for one that is no JSON, has numbers that JSON has not, or lies too deep in itself to be looked through."""

    def never(number: str) -> Any:
        raise ValueError(f"{number} is no number of JSON")

    body = parsed(raw.decode(), lambda text: json.loads(text, parse_constant=never))
    if is_deeper(body, DEEPEST):
        raise ValueError(f"more than {DEEPEST} lists and objects lie in one another")
    return body


def results_of(body: Any, index: int, params: SamplingParams, token_ids: bool = False) -> list[RemoteResult]:
    """Return the answers to the prompt of this index, by their choices. Raises Refused for a body that has not all that was asked for."""
    try:
        refuse_surrogates(body, "the answer")
    except UserError as error:
        raise Refused(str(error)) from None
    choices, count = body.get("choices") if isinstance(body, Mapping) else None, params.num_return_sequences
    if not isinstance(choices, list) or not choices or not all(isinstance(each, Mapping) for each in choices):
        told = error_in(body)
        raise Refused("the server's answer has no choices" + (f": {told}" if told else ""))
    if len(choices) != count:
        raise Refused(f"the server gave {len(choices)} of the {count} answers that n={count} asks for")
    places = [place if choice.get("index") is None else choice["index"] for place, choice in enumerate(choices)]
    if not all(type(place) is int for place in places) or sorted(places) != [*range(count)]:
        raise Refused("the server's choices are not numbered from 0")
    usage = body.get("usage") if isinstance(body.get("usage"), Mapping) else {}
    told = {"prompt_length": number(usage.get("prompt_tokens")), "tokens": number(usage.get("completion_tokens")) or 0}
    found = [result_of(choice, index, place, params, token_ids, told) for place, choice in zip(places, choices)]
    return sorted(found, key=lambda result: result.choice)


def result_of(choice: Mapping[str, Any], index: int, place: int, params: SamplingParams, token_ids: bool, told: dict[str, Any]) -> RemoteResult:
    """One choice as a result; raises Refused where it lacks something."""
    said = choice.get("message") if "message" in choice else {"content": choice.get("text")}
    said = said if isinstance(said, Mapping) else {}
    thinking = said.get("reasoning_content") or said.get("reasoning")
    text = said.get("content")
    if text is None:  # a refusal, thinking that used all tokens up, or a call that nobody asked for
        text = said.get("refusal") or ("" if "content" in said and "message" in choice else None)
    if not isinstance(text, str):
        raise Refused("the server's answer has a choice without a text")
    if choice.get("finish_reason") in BROKEN_OFF:
        raise Refused(f"the server's answer broke off: {error_in(choice) or choice['finish_reason']}")
    ids = choice.get("token_ids")
    if token_ids and not (isinstance(ids, list) and all(type(id) is int for id in ids)):
        raise Refused("the server tells no ids of tokens: leave --token_ids out")
    ids = ids if token_ids else []
    return RemoteResult(
        index, text, ids, [], finish_reason(choice, params), **{**told, "tokens": 0 if place else told["tokens"]}, seed=params.seed,
        choice=place, top_logprobs=logprobs_of(choice.get("logprobs"), ids) if params.logprobs is not None else [],
        thinking=thinking if isinstance(thinking, str) else None,
    )  # fmt: skip


def other_model(body: Any, asked: str) -> str | None:
    """Return which model an answer is from, where that is another than was asked; None where it is the same one, or nothing is told.

    A name may bear a version behind it and who made it before it: "gpt-4o" is answered by "gpt-4o-2024-08-06", but not by "gpt-4o-mini".
    """
    told = body.get("model") if isinstance(body, Mapping) else None
    if not isinstance(told, str) or not told:
        return None
    one, other = asked.casefold(), told.casefold()
    pairs = ((one, other), (other, one), (one.removesuffix("-latest"), other))
    return None if any(re.fullmatch(rf"(.*/)?{re.escape(name)}({VERSION})?", longer) for name, longer in pairs) else told


def failed(error: str, index: int, params: SamplingParams) -> list[RemoteResult]:
    """What stands in the place of a prompt's answers where there are none."""
    return [RemoteResult(index, "", [], [], "error", None, params.seed, choice, error=error) for choice in range(params.num_return_sequences)]


def finish_reason(choice: Mapping[str, Any], params: SamplingParams) -> str | None:
    """Why an answer is over, in our words: OpenAI's "stop" is an end token or a stop string, which vLLM's `stop_reason` tells apart."""
    reason = choice.get("finish_reason")
    if reason != "stop":
        return reason if isinstance(reason, str) else None
    asked = bool(params.stop or params.stop_token_ids or params.stop_regex)
    return "stop" if (choice["stop_reason"] is not None if "stop_reason" in choice else asked) else "eos"


def logprobs_of(told: Any, ids: Sequence[int]) -> list[TokenLogprobs]:
    """A choice's log-probabilities, of a chat or of a completion; ids where the answer's are known. Raises Refused where there are none."""
    try:
        if "content" in told:
            found = [(scored(each), [scored(other) for other in each.get("top_logprobs") or ()]) for each in told["content"]]
        else:
            tops = told.get("top_logprobs") or [None] * len(told["tokens"])
            found = [
                (scored({"token": token, "logprob": own}), [scored({"token": other, "logprob": value}) for other, value in (top or {}).items()])
                for token, own, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True)
            ]
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        raise Refused("the server tells no log-probabilities: leave --logprobs out") from None
    known: Sequence[int | None] = ids if len(ids) == len(found) else [None] * len(found)
    return [TokenLogprobs(id, own.logprob, own.text, own.bytes, tuple(top)) for id, (own, top) in zip(known, found)]


def scored(each: Mapping[str, Any]) -> ScoredToken:
    """A token with its log-probability; its id is not told. Raises ValueError for a number that JSON could not hold again."""
    spelled, value = each.get("bytes"), float(each["logprob"])
    if not math.isfinite(value):
        raise ValueError(f"{value} is no log-probability")
    return ScoredToken(None, value, str(each["token"]), None if spelled is None else bytes([*spelled]))


def number(value: Any) -> int | None:
    """A count, else nothing."""
    return value if type(value) is int and value >= 0 else None


def error_in(body: Any) -> str | None:
    """What a body says is wrong, as OpenAI, Ollama, FastAPI and others write it; None where it says nothing."""
    if not isinstance(body, Mapping):
        return None
    for told in (body.get("error"), body.get("message"), body.get("detail")):
        if isinstance(told, Mapping):
            told = told.get("message")
        if told:
            return told if isinstance(told, str) else json.dumps(told, ensure_ascii=False)
    return None


def one_line(text: str) -> str:
    """A server's words on one line, of a bounded length, without what would move a terminal's cursor."""
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return words if len(words) <= MOST_SAID else f"{words[:MOST_SAID]}..."
