"""Our settings as the fields of a request in OpenAI's protocol, each by the name that it is declared to have there, or in vLLM's extension of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...data.errors import UserError
from ..constraints.grammar import parsed
from ..engine.compat import NOT_DATA, VLLM
from ..engine.params import SamplingParams
from ..requests.params import Unsaid
from ..strategies.registry import OWNED, choose

# their names by ours, the first where there are several; a strategy's are its own, whatever another engine may mean by the name
WORDS = {ours: theirs for theirs, ours in reversed(VLLM.items()) if ours not in OWNED and ours != "prompt_logprobs"}
STRUCTURES = ("regex", "choice", "grammar")  # what vLLM calls structured_outputs
LATER = ("max_tokens", "max_completion_tokens")  # what OpenAI's newer models call the former


def fields_of(params: SamplingParams, chat: bool, *, seodang: bool = False, token_ids: bool = False, explicit: bool = False) -> dict[str, Any]:
    """Return the fields that ask for these settings; what nobody set is not among them, but for the length, and with `explicit` the temperature.

    A `seodang` server takes every setting that is data, under our names where the protocol has none; of any other, UserError is raised for what
    the protocol has no word for.
    """
    refuse_functions(params)
    if not seodang:
        refuse_strategy(params)
    said, given = dict(params.given), {}
    said.setdefault("max_new_tokens", params.max_new_tokens)
    if isinstance(said["max_new_tokens"], Unsaid) and (params.max_length is not None or params.template is not None):
        del said["max_new_tokens"]
    for name, value in said.items():
        if name in ("do_sample", "strategy") and not seodang:
            continue
        if name in WORDS:
            given |= logprobs(value, chat) if name == "logprobs" else {WORDS[name]: as_json(name, value)}
        elif name == "json_schema":
            given["response_format"] = response_format(value)
        elif name in STRUCTURES:
            given["structured_outputs"] = {name: as_json(name, value)}
        elif name == "suffix" and not chat:
            raise UserError(f"suffix={value!r}: what a server answers to a text leaves it out: give template, or answer with --backend seodang")
        elif seodang and name != "prompt_logprobs":
            given[name] = as_json(name, value)
        else:
            raise UserError(without_word(name))
    if params.do_sample is False and not seodang:
        given.setdefault("temperature", 0.0)
    elif params.do_sample and not seodang or explicit:
        given.setdefault("temperature", 1.0 if params.samples else 0.0)
    if token_ids and seodang:
        raise UserError("token_ids: a Seodang server tells no ids of tokens: leave it out, or answer with --backend seodang")
    return given | ({"return_token_ids": True} if token_ids else {})


def refuse_functions(params: SamplingParams) -> None:
    """Raise UserError for a setting that no text can say: a function, a further model."""
    if name := next((name for name in NOT_DATA if name in params.given), None):
        raise UserError(f"{name} cannot be sent to a server: leave it out, or answer with --backend seodang")


def refuse_strategy(params: SamplingParams) -> None:
    """Raise UserError for a strategy, and for a setting of one, other than drawing tokens and taking the likeliest."""
    spec = choose(params)
    if spec.name != "sampling":
        raise UserError(f"the strategy {spec.name!r} has no word in OpenAI's protocol: only a Seodang server takes it; leave it out, or answer with --backend seodang")
    if name := next((name for name in params.given if name in OWNED), None):
        raise UserError(without_word(name))


def without_word(name: str) -> str:
    """The refusal of a setting that the protocol cannot say."""
    if name == "prompt_logprobs":
        return "prompt_logprobs come from --backend seodang alone: leave them out"
    return f"{name} has no word in OpenAI's protocol, nor in vLLM's extension of it: only a Seodang server takes it; leave it out, or answer with --backend seodang"


def logprobs(count: int, chat: bool) -> dict[str, Any]:
    """What asks for log-probabilities: a chat says whether and how many, a completion how many."""
    if not chat:
        return {"logprobs": count}
    return {"logprobs": True} | ({"top_logprobs": count} if count else {})


def response_format(schema: Mapping | str) -> dict[str, Any]:
    """A schema as OpenAI has it; `strict`, or its models take it for a hint. Raises UserError for one that is no object."""
    read = parsed(schema)
    if not isinstance(read, Mapping):
        raise UserError(f"json_schema must be an object where a server is asked, got {read!r}")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": read, "strict": True}}


def as_json(name: str, value: Any) -> Any:
    """A value as JSON has it. Raises UserError for a bias by text, whose tokens the server's tokenizer alone knows."""
    if name == "logit_bias":
        if text := next((token for token in value if isinstance(token, str)), None):
            raise UserError(f"logit_bias has {text!r}, and a server is told ids alone: give the token's, as 15=2.5")
        return {str(token): bias for token, bias in value.items()}
    if isinstance(value, Mapping):
        return {str(key): each for key, each in value.items()}
    return [*value] if isinstance(value, tuple) else value
