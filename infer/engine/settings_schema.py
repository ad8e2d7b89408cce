"""The settings that a body over HTTP may give, as JSON Schema, drawn from their declarations.

Under names of ours, `x-group` says what a setting belongs to, as a form shows them: the kind of its filter, "strategy" or "answer".
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import TypeAdapter

from ...data.errors import UserError
from ..diffusion.orders import ORDERS
from ..filters.registry import FILTERS
from ..filters.spec import KINDS
from ..requests.options import Option, options_of
from ..runners.architecture import Capabilities
from ..runners.paradigm import Diffusion
from ..strategies.registry import OWNED, STRATEGIES, check, named, speaks, spoken
from .compat import OPENAI_NEUTRAL, OPENAI_PASSED_OVER, REQUEST, VLLM_NEUTRAL, VLLM_PASSED_OVER
from .params import OPTIONS, SamplingParams
from .sources import OF_ENCODER_DECODERS

Schema = dict[str, Any]
ABLE = Capabilities(hidden_states=True, mask_holes=True, both_ways=True, rewrites=True)  # a runner that can do everything
GROUPS = {name: KINDS[spec.kind] for spec in reversed(FILTERS.values()) for name in options_of(spec.options)} | {"filter_order": "own filters"}
TEXT, IDS = {"type": "string"}, {"type": "array", "items": {"type": "integer"}}
WORD = {"type": "string", "minLength": 1}
WORDS = {"anyOf": [WORD, {"type": "array", "items": WORD}]}
SCHEMA = {"anyOf": [{"type": "object"}, TEXT, {"type": "boolean"}]}
OF_THE_BODY = ("model", "messages", "prompt", "stream", "stream_options", "tools")  # which say what is asked, not how
AS_JSON: dict[str, Schema] = {  # types that JSON writes otherwise than Python, or has more words for
    "max_new_tokens": {"type": "integer", "minimum": 1, "description": "The answer ends after so many tokens."},
    "stop": WORDS,
    "bad_words": WORDS,
    "choice": WORDS,
    "hide": {**WORDS, "description": "Texts of the prompt that no token sees, wherever they stand in it."},
    "trie": {"type": "array", "items": {"anyOf": [TEXT, IDS]}, "description": "Texts, or sequences of ids, of which the answer is one."},
    "json_schema": {**SCHEMA, "description": "The answer is JSON of this schema."},
    "grammar": {**TEXT, "description": "The answer follows this Lark grammar."},
    "logit_bias": {
        "type": "object", "propertyNames": {"pattern": "^[0-9]+$"}, "additionalProperties": {"type": "number"},
        "description": "Added to the logits of ids.",
    },
    "num_assistant_tokens_schedule": {"enum": ["heuristic", "constant"]},
    "sequence_bias": {"type": "array", "items": {"type": "array", "prefixItems": [IDS, {"type": "number"}], "minItems": 2, "maxItems": 2}},
    "force_words_ids": {"type": "array", "items": {"anyOf": [IDS, {"type": "array", "items": IDS}]}},
    "alg": {"enum": list(ORDERS)},
    "template": {"anyOf": [WORD, {"type": "array", "minItems": 1, "items": {"anyOf": [WORD, {"type": "integer", "minimum": 1}]}}]},
    "dola_layers": {"anyOf": [{"enum": ["low", "high"]}, {**IDS, "minItems": 1}]},
    "logprobs": {"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0}]},
    "top_k": {"type": "integer", "minimum": -1},
    "negative_prompt": {"anyOf": [TEXT, {"type": "array"}]},
    "early_stopping": {"enum": [True, False, "never"]},
    "filter_order": {"type": "array", "items": {"enum": list(FILTERS)}},
}
OTHERS: dict[str, Schema] = {  # fields that come to settings of other names
    "top_logprobs": {"type": "integer", "minimum": 0, "description": "With logprobs true: tell so many of the likeliest tokens too."},
    "response_format": {
        "type": "object", "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}}, "required": ["type"],
        "description": "What the whole answer is; of type json_schema, json_schema.schema says it.",
    },
    "structured_outputs": {"type": "object", "description": "What the whole answer is: json, regex, choice or grammar."},
    "guided_json": {**SCHEMA, "description": "The same as json_schema."},
    "guided_regex": {**TEXT, "description": "The same as regex."},
    "guided_choice": {**WORDS, "description": "The same as choice."},
    "guided_grammar": {**TEXT, "description": "The same as grammar; GBNF is read too."},
    "allowed_token_ids": {**IDS, "description": "Nothing but these ids is said.", "minItems": 1},
    "use_beam_search": {"type": "boolean", "description": "Search with as many beams as there are answers."},
}


def settings_schema(defaults: SamplingParams, diffusion: Diffusion | None = None, encoder_decoder: bool = False) -> dict[str, Schema]:
    """Return the schema of every field that says how an answer is made, by its name, with the `defaults` that hold where it is not given.

    What belongs to strategies alone that the model does not speak by, one of diffusion or another, is left out, and what only an encoder-decoder has.
    """
    honoured = spoken(diffusion)
    known = {name: ours for name, ours in REQUEST.items() if ours not in OWNED or ours in honoured}
    known = {name: ours for name, ours in known.items() if encoder_decoder or ours not in OF_ENCODER_DECODERS}
    found = {name: field_schema(name, OPTIONS[ours], getattr(defaults, ours), diffusion) for name, ours in known.items()} | OTHERS
    if encoder_decoder:
        found["strategy"] = narrowed(found["strategy"])
    if defaults.samples:
        found["temperature"].setdefault("default", 1)
    for name, values in {**OPENAI_NEUTRAL, **VLLM_NEUTRAL}.items():
        found.setdefault(name, {"enum": list(values), "description": "Accepted where it asks for nothing."})
    for name in (*OPENAI_PASSED_OVER, *VLLM_PASSED_OVER):
        if name not in OF_THE_BODY:
            found.setdefault(name, {"description": "Accepted; nothing is made of it."})
    return found


def field_schema(name: str, option: Option, default: Any, diffusion: Diffusion | None = None) -> Schema:
    """A setting under one of its names: what it is for, its type, range and default."""
    schema = {"description": option.help, **(AS_JSON.get(option.name) or {**type_schema(option), **bounds(option)})}
    if name != option.name:
        schema["description"] = f"The same as {option.name}."
    else:
        schema["x-group"] = GROUPS.get(name, "strategy" if name in OWNED else "answer")
    if name == "strategy":
        schema["x-strategies"] = strategies(diffusion)
        schema["enum"] = [each for each, spec in STRATEGIES.items() if speaks(spec, diffusion)]
        default = default or named(SamplingParams(), diffusion)
    return {**schema, "default": default} if default is not None and is_json(default) else schema


def narrowed(strategy: Schema) -> Schema:
    """The schema of the strategy, with those alone that an encoder-decoder has."""
    able = [name for name in strategy["enum"] if STRATEGIES[name].encoder_decoder]
    return {**strategy, "enum": able, "x-strategies": {name: told for name, told in strategy["x-strategies"].items() if name in able}}


def strategies(diffusion: Diffusion | None) -> dict[str, Schema]:
    """The strategies that a body can ask for: what each does, the settings that it honours, the fewest that mean it, and whether it draws."""
    found = {}
    for name, spec in STRATEGIES.items():
        if not speaks(spec, diffusion):
            continue
        least = {key: value for key, value in spec.least.items() if is_json(value) and key != "strategy"}
        try:
            check(SamplingParams(**{**least, "strategy": name}), ABLE)
        except UserError:
            continue  # it needs a function
        found[name] = {"description": spec.summary, "settings": sorted(spec.honours), "least": least, "samples": spec.samples}
    return found


def type_schema(option: Option) -> Schema:
    """The type of a setting's values, null aside."""
    schema = TypeAdapter(option.type).json_schema()
    kinds = [each for each in schema.get("anyOf", [schema]) if each != {"type": "null"}]
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def bounds(option: Option) -> Schema:
    """The range of a number, out of what a setting's rule says to whatever is none."""
    said = option.rule(option.name, object()) or ""
    if between := re.search(r"in ([\[(])([\d.]+), ([\d.]+)([\])])", said):
        opening, low, high, closing = between.groups()
        lower, upper = "minimum" if opening == "[" else "exclusiveMinimum", "maximum" if closing == "]" else "exclusiveMaximum"
        return {lower: number(low), upper: number(high)}
    if above := re.search(r"a number (?:of seconds )?above ([\d.]+)", said):
        return {"exclusiveMinimum": number(above[1])}
    if least := re.search(r"must be (?:(0), or )?a (?:whole )?number from ([\d.]+)", said):
        return {"minimum": number(least[1] or least[2])}
    return {}


def number(text: str) -> int | float:
    """A number as it is written."""
    return json.loads(text)


def is_json(value: Any) -> bool:
    """Whether a value can be written as JSON."""
    try:
        json.dumps(value, allow_nan=False)
        return True
    except (TypeError, ValueError):
        return False
