"""Settings as others write them in requests: OpenAI's body, vLLM's sampling parameters."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from llguidance.gbnf_to_lark import any_to_lark

from ...data.errors import UserError
from ..constraints.grammar import GRAMMARS, parsed
from ..filters.banned_ids import Always
from ..requests import options as declared
from ..requests.options import vocabulary
from ..strategies.beam import BEAM
from ..strategies.registry import choose
from .params import OPTIONS, SamplingParams

# what a body says besides how the answer is made: the conversation, how it is told, whose it is
OPENAI_PASSED_OVER = (
    "model", "messages", "prompt", "stream", "stream_options", "tools", "parallel_tool_calls", "user", "metadata",
    "store", "service_tier", "safety_identifier", "prompt_cache_key",
)  # fmt: skip
OPENAI = vocabulary(SamplingParams, declared.OPENAI)
# what a value must be to ask for nothing
OPENAI_NEUTRAL = {"tool_choice": ("auto", "none"), "modalities": (["text"],), "echo": (False,)}

VLLM_PASSED_OVER = ("detokenize", "output_kind", "truncate_prompt_tokens_side")
VLLM = OPENAI | vocabulary(SamplingParams, declared.VLLM)
VLLM_NEUTRAL = {
    "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,), "include_stop_str_in_output": (False,),
    "use_beam_search": (False,), "truncate_prompt_tokens": (-1,), "skip_reading_prefix_cache": (False,),
    "extra_args": ({},), "early_stopping": (False,),
}  # fmt: skip
# settings that are functions or models, which no text can say
NOT_DATA = (
    "stop_when", "prefix_allowed_tokens_fn", "filters", "amateur_model", "assistant_model", "assistant_tokenizer", "reward", "answer_of", "utility",
    "generation_tokens_hook_func", "generation_logits_hook_func",
)  # fmt: skip
OURS = {name: name for name in OPTIONS if name not in NOT_DATA}
REQUEST = OURS | VLLM  # by any of the names that a body over HTTP may use
STRUCTURES = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
NEUTRAL_STRUCTURES = {
    "disable_fallback": (False, True), "disable_additional_properties": (False,), "backend": (), "_backend": (),
    "_backend_was_auto": (False, True), "structural_tag": (), "whitespace_pattern": (),
}  # fmt: skip


def from_openai(body: Mapping[str, Any]) -> SamplingParams:
    """Return the settings in the body of a chat or text completion; what `OPENAI_PASSED_OVER` names is the server's to read.

    As there, an answer is sampled at temperature 1 where none is given; the length is ours where none is given. `response_format`
    of "json_object" is a schema of any object. Raises UserError for what is unknown or cannot be honoured.
    """
    options, asked = without_logprobs(body)
    formatted = structure_of(options.pop("response_format", None))
    known = translated(options, OPENAI, OPENAI_PASSED_OVER, OPENAI_NEUTRAL, "the request")
    return drawn({**known, **formatted, **asked})


def from_vllm(options: Mapping[str, Any]) -> SamplingParams:
    """Return the settings in vLLM's `SamplingParams`, given as a dictionary, or in its extra body fields (`guided_json`, ...).

    As there, an answer is sampled at temperature 1 where none is given; the length is ours where none is given. A grammar may be
    Lark or GBNF. Raises UserError for what is unknown or cannot be honoured.
    """
    return drawn(asked_of(options, VLLM))


def from_request(body: Mapping[str, Any], ignored: list[str] | None = None) -> dict[str, Any]:
    """Return the settings that a body over HTTP gives, by our names: OpenAI's, vLLM's extra fields, and every one of ours that is data.

    `use_beam_search` is, as in vLLM, a search of as many beams as there are answers. Raises UserError for what is unknown or cannot be honoured;
    where a list is given for what is `ignored`, fields that are unknown, or ask for what we do not do, are named there instead.
    """
    body = dict(body)
    searches = body.pop("use_beam_search", False)
    known = asked_of(body, REQUEST, ignored)
    if searches is True:
        if known.pop("temperature", 0):
            raise UserError("use_beam_search draws no tokens, so temperature has no effect: leave it out, or give num_beams and do_sample=true")
        if "num_beams" in known:
            raise UserError("the request gives use_beam_search and num_beams: drop one of them")
        if known.setdefault("do_sample", False):
            raise UserError("use_beam_search draws no tokens: leave do_sample out, or give num_beams with it")
        known["num_beams"] = max(known.get("num_return_sequences", 1), known.pop("best_of", 1))
    elif searches not in (False, None):
        raise UserError(f"use_beam_search must be true or false, got {searches!r}")
    return known


def asked_of(options: Mapping[str, Any], names: Mapping[str, str], ignored: list[str] | None = None) -> dict[str, Any]:
    """Return what vLLM's fields, by these names, come to in our settings."""
    options, asked = without_logprobs(options)
    formatted = structure_of(options.pop("response_format", None))
    for name in ("structured_outputs", "guided_decoding"):
        formatted |= structured({} if options.get(name) is None else options[name], name, {})
        options.pop(name, None)
    guided = {name: options.pop(name) for name in list(options) if name.startswith("guided_")}
    guided = {name.removeprefix("guided_"): value for name, value in guided.items()}
    formatted |= structured(guided, "the guided_ options", {"decoding_backend": ()})
    allowed = options.pop("allowed_token_ids", None)
    passed_over = (*OPENAI_PASSED_OVER, *VLLM_PASSED_OVER)
    known = translated(options, names, passed_over, {**OPENAI_NEUTRAL, **VLLM_NEUTRAL}, "the request", ignored)
    if known.get("top_k") == -1:
        known["top_k"] = 0
    if allowed is not None:
        if not isinstance(allowed, list) or not allowed or not all(type(id) is int for id in allowed):
            raise UserError(f"allowed_token_ids must be a list of ids, got {allowed!r}")
        known["prefix_allowed_tokens_fn"] = Always(allowed)
    for ours in known.keys() & formatted.keys():
        raise UserError(f"the request gives {ours}={known[ours]!r} and, by another name, {formatted[ours]!r}: drop one of them")
    return {**known, **formatted, **asked}


def without_logprobs(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a request into what does not speak of log-probabilities and our settings for what does.

    A chat says `logprobs: true` and perhaps `top_logprobs: n`, a completion `logprobs: n`, with `echo` also of the prompt. Raises UserError for
    one without the other.
    """
    left = dict(options)
    whether, count = left.pop("logprobs", None), left.pop("top_logprobs", None)
    if whether is None or whether is False:
        if count:
            raise UserError(f"the request asks for top_logprobs={count!r} without logprobs: give logprobs=true too")
        return left, {}
    if whether is not True and count is not None:
        raise UserError(f"the request gives logprobs={whether!r} and top_logprobs={count!r}: with top_logprobs, logprobs is true")
    asked = {"logprobs": count or 0 if whether is True else whether}
    if left.get("echo") is True:
        asked["prompt_logprobs"] = asked["logprobs"]
        del left["echo"]
    return left, asked


def translated(
    options: Mapping[str, Any],
    names: Mapping[str, str],
    passed_over: Collection[str],
    neutral: Mapping[str, Collection],
    whole: str,
    ignored: list[str] | None = None,
) -> dict[str, Any]:
    """Return the options under our names; raises UserError for one that is unknown, or asks for what we do not do, unless these go to `ignored`."""
    known: dict[str, Any] = {}
    for name, value in options.items():
        if name in names and value is not None:
            ours = names[name]
            if ours in known and known[ours] != value:
                raise UserError(f"{whole} gives {name}={value!r} and, by another name, {known[ours]!r}: drop one of them")
            known[ours] = read(OPTIONS[ours], value)
        elif name in names or name in passed_over or name in neutral and (value is None or neutral_value(value, neutral[name])):
            continue
        elif ignored is not None:
            ignored.append(name)
        elif name in neutral:
            raise UserError(f"{whole} asks for {name}={value!r}, which Seodang does not do: leave it out")
        else:
            guess = get_close_matches(name, [*names, *neutral, *passed_over, "response_format", "structured_outputs"], 1)
            raise UserError(f"{whole} has {name!r}, which is unknown: " + (f"did you mean {guess[0]}?" if guess else "leave it out"))
    return known


def neutral_value(value: Any, neutral: Collection) -> bool:
    """Whether a value is one of those that ask for nothing; 1 is not true."""
    return any(value == each and type(value) is type(each) for each in neutral)


def read(option: declared.Option, value: Any) -> Any:
    """Return what a setting makes of JSON; of what it makes nothing, the value itself, which its rule then refuses."""
    try:
        return option.from_json(value)
    except UserError:
        raise
    except (TypeError, ValueError):
        return value


def drawn(known: dict[str, Any]) -> SamplingParams:
    """The settings, sampled where no temperature says otherwise."""
    refuse_two_languages(known)
    return SamplingParams(**known if "temperature" in known else {**known, "do_sample": True})


def refuse_two_languages(known: Mapping[str, Any]) -> None:
    """Raise UserError for settings of which two say what the whole answer is."""
    languages = [name for name in GRAMMARS if name in known]
    if len(languages) > 1:
        raise UserError(f"{languages[0]} and {languages[1]} both say what the whole answer is: drop one of them")


def drawn_unasked(params: SamplingParams) -> bool:
    """Whether settings that say nothing of chance are meant, as OpenAI's clients mean them, to draw at temperature 1.

    They are unless they ask for a search of beams, for a strategy that drawing makes another one of, or that takes no random choices.
    """
    if params.do_sample is not None or params.temperature is not None:
        return False
    plain, sampled = choose(params), choose(replace(params, do_sample=True))
    return plain is sampled and plain.samples and plain is not BEAM


def structure_of(response_format: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return our settings for OpenAI's `response_format`."""
    if response_format is None or response_format == {"type": "text"}:
        return {}
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "json_object":
        return {"json_schema": {"type": "object"}}
    if kind == "json_schema":
        named = response_format.get("json_schema")
        schema = named.get("schema") if isinstance(named, Mapping) else None
        if not isinstance(schema, Mapping | bool):
            raise UserError('response_format of type "json_schema" needs {"json_schema": {"name": ..., "schema": {...}}}')
        return {"json_schema": schema if isinstance(schema, Mapping) else json.dumps(schema)}
    raise UserError(f'response_format must be of type "text", "json_object" or "json_schema", got {response_format!r}')


def structured(options: Mapping[str, Any], whole: str, neutral: Mapping[str, Collection]) -> dict[str, Any]:
    """Return our settings for vLLM's structured outputs; raises UserError for what is none, and for a grammar that cannot be read."""
    if not isinstance(options, Mapping):
        raise UserError(f"{whole} must be an object, got {options!r}")
    options = {name: value for name, value in options.items() if value is not None}
    any_object, compact = options.pop("json_object", False), options.pop("disable_any_whitespace", False)
    known = translated(options, STRUCTURES, (), {**NEUTRAL_STRUCTURES, **neutral}, whole)
    if any_object:
        known.setdefault("json_schema", {"type": "object"})
    if compact and "json_schema" in known:
        schema = known["json_schema"]
        schema = parsed(schema)
        known["json_schema"] = {**schema, "x-guidance": {"whitespace_flexible": False}} if isinstance(schema, Mapping) else schema
    if "grammar" in known:
        if not isinstance(known["grammar"], str):
            raise UserError(f"grammar must be a text, got {known['grammar']!r}")
        try:
            known["grammar"] = any_to_lark(known["grammar"])
        except Exception as error:  # the converter's own are of any kind
            raise UserError(f"the grammar is neither Lark nor GBNF: {error}") from None
    return known
