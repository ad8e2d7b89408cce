"""What one request may ask at most, all in one place; what asks for more is refused by name before anything is made of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ....data.json_text import is_deeper, levels, parsed
from ...engine.compat import REQUEST
from ...engine.live import LiveEngine
from ...requests.rules import shown
from ...requests.stop import LONGEST_PATTERN
from .errors import ApiError

MAX_BODY = 2 << 20  # bytes, or where the model has many positions, so many for each: beyond what it can read, and read in a second
POSITION_BODY = 32
BODY_DEPTH = 100  # objects and lists in one another
BODY_SECONDS = 20.0  # that a body may take to come
FIELDS, FIELD_LENGTH = 512, 128  # of a body, and characters of a name: several times as many as there are, for mistakes are looked for by each
PROMPTS = 64  # of one request
INPUTS = 1024  # of one request for vectors: as many as clients send at once
STOPS, STOP_LENGTH = 4, 64  # each is looked for behind every token, while the others wait
ENTRIES = 1024  # of a list or object among the settings
BREAKERS = 64  # each is looked for in every token of the vocabulary
HIDDEN = 16  # texts, each looked for at every place of the prompt
TOOLS = CALLS = 128  # of a request, and of a message
TOKENIZED = 1 << 17  # tokens that /tokenize counts, where the model has not more positions
SETTING, DEPTH = 64 << 10, 64  # bytes of a setting as JSON, and objects and lists in one another: schemas, grammars, patterns and all others

NUMBERS = {  # by our names
    "num_return_sequences": 16, "best_of": 16, "logprobs": 20, "top_logprobs": 20, "prompt_logprobs": 20,
    "num_assistant_tokens": 64, "prompt_lookup_num_tokens": 64,  # drafts that are read in one pass with all others
}  # fmt: skip
# what the answer is, whose lists are bounded as a whole; `text` is that of /v1/responses
LANGUAGES = {"json_schema", "regex", "grammar", "choice", "trie", "response_format", "structured_outputs", "guided_decoding", "text"}
READ = {"prompt", "messages", "input", "instructions", "tokens", "tools", "negative_prompt"}  # what the model reads, which its positions bound
OF_THE_MODEL = ("allowed_token_ids", "attention_mask")  # which may have an entry for each of its ids, and of its positions
LISTS = {"stop": STOPS, "dry_sequence_breakers": BREAKERS, "hide": HIDDEN}
TEXTS = {"stop": STOP_LENGTH, "stop_regex": LONGEST_PATTERN}  # characters


def hold(given: Mapping[str, Any], engine: LiveEngine) -> None:
    """Raise ApiError for the first field of a body that asks for more than it may: it names the field, what came and the limit."""
    if len(given) > FIELDS:
        raise ApiError(400, f"the body has {len(given)} fields, more than the {FIELDS} that are read: leave some out")
    if (longest := max(map(len, given), default=0)) > FIELD_LENGTH:
        raise ApiError(400, f"the body has a field whose name has {longest} characters, more than the {FIELD_LENGTH} that any has: leave it out")
    of_the_model = dict(zip(OF_THE_MODEL, (len(engine.tokenizer), engine.positions)))
    for name, value in given.items():
        ours = REQUEST.get(name, name)
        if (most := NUMBERS.get(ours)) and type(value) is int and value > most:
            raise ApiError(400, f"{name} must be at most {most}, got {shown(value):.40}", name)
        if ours == "stop":
            hold_stops(name, value)
        if name == "tools":
            hold_tools(value)
        elif isinstance(value, str | list | dict) and name not in READ:
            hold_setting(name, value, of_the_model.get(ours) or most_entries(ours), name)


def most_entries(ours: str) -> int | None:
    """How many entries each list or object of a setting may have; None where its size as a whole is what counts."""
    if ours in LANGUAGES or ours.startswith("guided_"):
        return None
    return LISTS.get(ours, ENTRIES)


def hold_setting(place: str, value: Any, entries: int | None, field: str) -> None:
    """Raise ApiError for a setting that is larger or deeper than any may be, or whose lists or objects have more entries, where these are bounded."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    size = len(text.encode())
    if size > SETTING and (entries is None or entries <= ENTRIES):  # more ids than that are bounded by their number
        raise ApiError(400, f"{place} has {size} bytes{'' if text is value else ' as JSON'}, more than the {SETTING} that are read: make it smaller", field)
    read = parsed_or_none(value) if field in ("json_schema", "guided_json") else None
    hold_depth(place, value if read is None else read, DEPTH, field)
    if entries is not None and (longest := max((len(each) for each in containers(value)), default=0)) > entries:
        raise ApiError(400, f"{place} has {longest} entries, more than the {entries} that it may have: leave some out", field)


def hold_stops(name: str, value: Any) -> None:
    """Raise ApiError for more texts that end an answer than there may be, and for one that is too long."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if len(texts) > STOPS:
        raise ApiError(400, f"{name} has {len(texts)} texts, more than the {STOPS} that may end an answer: leave some out", name)
    for n, each in enumerate(texts):
        if isinstance(each, str) and len(each) > STOP_LENGTH:
            place = name if isinstance(value, str) else f"{name}[{n}]"
            raise ApiError(400, f"{place} has {len(each)} characters, more than the {STOP_LENGTH} that a stop may have: shorten it", name)


def hold_tools(value: Any) -> None:
    """Raise ApiError for more tools than there may be, and for one whose parameters are too large or too deep."""
    if not isinstance(value, list):
        return
    if len(value) > TOOLS:
        raise ApiError(400, f"tools has {len(value)} functions, more than the {TOOLS} that there may be: leave some out", "tools")
    for n, tool in enumerate(value):
        if isinstance(tool, Mapping):
            inner = tool.get("function", tool)
            parameters = inner.get("parameters") if isinstance(inner, Mapping) else None
            hold_setting(f"tools[{n}].{'function.' if 'function' in tool else ''}parameters", parameters, None, "tools")


def hold_depth(place: str, value: Any, most: int, field: str | None = None) -> None:
    """Raise ApiError for a JSON value with more objects and lists in one another."""
    if is_deeper(value, most):
        raise ApiError(400, f"{place} has more than {most} objects and lists in one another: write it flatter", field)


def containers(value: Any) -> Iterator[Collection]:
    """Yield every object and list of a JSON value."""
    return (each for level in levels(value, BODY_DEPTH) for each in level)


def parsed_or_none(value: Any) -> Any:
    """What a text says as JSON; None for a text that is none, and for what is no text."""
    try:
        return parsed(value) if isinstance(value, str) else None
    except ValueError:
        return None


def told(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A field's JSON Schema with the limits of it that JSON Schema has words for."""
    ours = REQUEST.get(name, name)
    if "anyOf" in schema:
        return {**schema, "anyOf": [told(name, each) for each in schema["anyOf"]]}
    kind = schema.get("type")
    if kind == "integer" and ours in NUMBERS:
        return {**schema, "maximum": min(NUMBERS[ours], schema.get("maximum", NUMBERS[ours]))}
    if name in READ:
        return schema
    if kind == "string" and "enum" not in schema:
        return {**schema, "maxLength": TEXTS.get(ours, SETTING)}
    if most_entries(ours) is None:
        return schema
    if kind == "array":
        inner = {"items": {**schema["items"], "maxLength": TEXTS[ours]}} if ours in TEXTS else {}
        return {**schema, **inner, **({} if ours in OF_THE_MODEL else {"maxItems": LISTS.get(ours, ENTRIES)})}
    return {**schema, "maxProperties": ENTRIES} if kind == "object" and "properties" not in schema else schema
