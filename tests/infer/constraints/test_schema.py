"""JSON schemas: what is finished validates under jsonschema with its formats; what cannot be kept is refused by name."""

import json
import random
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator
from llguidance import LLMatcher

from seodang.data.errors import UserError
from seodang.infer import SamplingParams
from seodang.infer.constraints.grammar import new_grammar, over_bytes, source
from seodang.infer.text.vocabulary import Vocabulary

SCHEMAS = json.loads((Path(__file__).parent / "schemas.json").read_text(encoding="utf-8"))
CHECKED = Draft202012Validator.FORMAT_CHECKER
# of each format what a careless grammar would take
WRONG = {
    "date": ["2023-02-29", "1900-02-29", "2024-02-30", "2024-04-31", "0000-01-01", "2024-13-01", "24-01-01"],
    "time": ["12:30:60Z", "23:59:60Z", "24:00:00Z", "12:30:00", "12:30Z", "12:30:00+24:00"],
    "date-time": ["2023-02-29T00:00:00Z", "2024-01-01T12:30:60Z", "2024-01-01", "2024-01-01T12:30:00"],
    "duration": ["P", "PT", "1D", "P1D2Y", "P1W2D", "PT1"],
    "email": ["훈장", ""],
    "hostname": ["-a", "a-", "a..b", "a_b", "a" * 64, ".".join(["a" * 60] * 5)],
    "ipv4": ["1.2.3", "256.1.1.1", "01.2.3.4"],
    "ipv6": ["1", ":::", "1::2::3", "1:2:3:4:5:6:7:8:9", "g::"],
    "uuid": ["0" * 32, "0" * 8 + "-0000-0000-0000-" + "0" * 11],
    "uri": ["a", "//a", "http://a b", "1:x", "http://[1"],
}
RIGHT = {
    "date": ["2024-02-29", "2000-02-29", "0001-12-31"], "time": ["23:59:59.5+09:00", "00:00:00z"], "date-time": ["2024-02-29t00:00:00Z"],
    "duration": ["P1Y2M3DT4H5M6S", "P2W"], "email": ["a.b@c.kr"], "hostname": ["훈장".encode("idna").decode(), "a.b-c"], "ipv4": ["1.2.3.255"],
    "ipv6": ["::", "1::2", "1:2:3:4:5:6:7:8"], "uuid": ["123e4567-e89b-12d3-a456-426614174000"], "uri": ["http://a/b?c#d", "urn:x"],
}  # fmt: skip

def names_in(value) -> set[str]:
    """Every text in a schema, names and values alike."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        return set(value).union(*map(names_in, value.values()))
    return set().union(*map(names_in, value)) if isinstance(value, list) else set()


def baits(schema) -> list[bytes]:
    """What a text that wants to be wrong would try to say."""
    found = ["9007199254740992", "0", "-0", "-1", "1", "0.1", "1e5", "2.25", "null", "true", "[", "{", "}", "]", ",", '"', "\\", " ", "{}", "[]"]
    for name in names_in(schema) | {"a", "b", "ko", "S_", "I_", ""}:
        written = json.dumps(name, ensure_ascii=False)
        hidden = "".join(f"\\u{ord(letter):04x}" for letter in name[:1] if letter < "\u0800") + written[1:-1][1:]
        found += [written, written + ":", f'{written}:1,{written}:"b",', f'"{hidden}":"old"', written[1:-1]]
    wrong = [value for each in WRONG.values() for value in each if len(value) < 30]
    return [text.encode() for text in found + [f'"{value}"' for value in wrong] + wrong]


def adversary(constraint, tokens: list[bytes | None], end: int, baits: list[bytes], draw: random.Random, most: int = 150) -> bytes | None:
    """A random text of the grammar, full of attempts to break it; None where it did not come to an end."""
    written, wanted = b"", b""
    for step in range(most):
        scores = constraint.mask(None, torch.zeros(1, len(tokens)))[0]
        allowed = scores.isfinite().nonzero()[:, 0].tolist()
        assert allowed, f"a dead end after {written.decode(errors='replace')}"
        if end in allowed and (len(allowed) == 1 or draw.random() < 0.25 or step > most // 3):
            return written
        allowed = [id for id in allowed if id != end]
        wanted = wanted or (draw.choice(baits) if draw.random() < 0.5 else b"")
        fitting = [id for id in allowed if wanted.startswith(tokens[id])]
        closing = [id for id in allowed if tokens[id] in (b'"', b"}", b"]", b'"}')] if step > most // 3 else []
        id = draw.choice(closing if closing and draw.random() < 0.8 else fitting or allowed)
        wanted = wanted.removeprefix(tokens[id]) if id in fitting else b""
        written += tokens[id]
        constraint.accept(id)
    return None


def without_repeats(pairs):
    keys = [key for key, _ in pairs]
    assert len(set(keys)) == len(keys), f"keys that come again: {keys}"
    return dict(pairs)


def finished(schema, tokenizer, seeds) -> int:
    """How many random texts ended; each validates."""
    tokens = Vocabulary.of(tokenizer).tokens
    constraint = new_grammar(SamplingParams(json_schema=schema), tokenizer, {tokenizer.eos_token_id})
    validator, tried, count = Draft202012Validator(schema, format_checker=CHECKED), baits(schema), 0
    for seed in seeds:
        text = adversary(constraint.fork(), tokens, tokenizer.eos_token_id, tried, random.Random(seed))
        if text is not None:
            value = json.loads(text, object_pairs_hook=without_repeats)
            assert not [error.message for error in validator.iter_errors(value)], text.decode()
            count += 1
    return count


@pytest.mark.parametrize("format", WRONG)
def test_each_format_is_checked_and_refuses_what_is_wrong(format):
    validator = Draft202012Validator({"type": "string", "format": format}, format_checker=CHECKED)
    grammar = over_bytes("json_schema", source("json_schema", {"type": "string", "format": format}))
    for value in WRONG[format]:
        assert not validator.is_valid(value), value
        assert not is_text_of(grammar, json.dumps(value)), value
    for value in RIGHT[format]:
        assert validator.is_valid(value) and is_text_of(grammar, json.dumps(value)), value


HOLES = [
    ({"properties": {"age": {"type": "integer"}}, "required": ["age"]}, '{"age":5,"', ['\\u0061ge":"old"', 'age":"old"', '\\"":5,"\\""']),
    ({"properties": {"age": {"type": "integer"}}}, '{"', ['\\u0061ge":"old"', "\\u0061"]),
    ({"type": "object", "patternProperties": {"^S_": {"type": "string"}}}, '{"', ["\\u0053_a", "S_\\u0061", '\\n":1,"\\u000a', "S_a\":1"]),
    ({"type": "object", "minProperties": 2}, '{"a":1,"', ['a"', 'b":{"a":1},"a"', 'b":{"a":1,"a"']),
    ({}, '[{"a":[{"a":1},{"', ['b":1,"b"', 'b":1},{"b":{}},{"b":[],"b"']),
]


@pytest.mark.parametrize(("schema", "begun", "wrong"), HOLES)
def test_no_key_hides_another_or_comes_again(wordy_tokenizer, schema, begun, wrong):
    spell = Vocabulary.of(wordy_tokenizer).spell
    constraint = new_grammar(SamplingParams(json_schema=schema), wordy_tokenizer, {2})
    assert constraint.takes(spell(begun.encode())) and constraint.takes(spell(f'{begun}k":1'.encode()))
    for further in wrong:
        assert not constraint.takes(spell(f"{begun}{further}".encode())), further


def test_a_control_character_in_a_value_is_escaped_all_the_same(wordy_tokenizer):
    constraint = new_grammar(SamplingParams(json_schema={"const": {"a": "\x00\x7f\n"}}), wordy_tokenizer, {2})
    assert constraint.takes(Vocabulary.of(wordy_tokenizer).spell(rb'{"a":"\u0000\u007f\n"}'))


def test_one_blank_at_most_follows_a_separator_unless_more_is_asked_for():
    value, schema = {"a": [1, {"b": None}], "c": {}}, {"type": "object"}
    compact, dumped = json.dumps(value, separators=(",", ":")), json.dumps(value)
    spread = [dumped.replace(", ", ",  "), dumped.replace(": ", ":\n"), "{ " + dumped[1:], dumped.replace(",", " ,")]
    sparing = over_bytes("json_schema", source("json_schema", schema))
    assert is_text_of(sparing, compact) and is_text_of(sparing, dumped) and not any(is_text_of(sparing, text) for text in spread)
    free = over_bytes("json_schema", source("json_schema", {**schema, "x-guidance": {"whitespace_flexible": True}}))
    assert all(is_text_of(free, text) for text in [compact, dumped, *spread])
    none = over_bytes("json_schema", source("json_schema", {**schema, "x-guidance": {"whitespace_flexible": False}}))
    assert is_text_of(none, compact) and not is_text_of(none, dumped)
    within = over_bytes("grammar", source("grammar", 'start: "<" %json {"type": "object"} ">"'))
    assert is_text_of(within, f"<{dumped}>") and not is_text_of(within, f"<{spread[0]}>")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "maximun": 3}, "json_schema has 'maximun', which is no keyword: did you mean 'maximum'?"),
        ({"requierd": ["a"]}, "did you mean 'required'?"),
        ({"properties": {"a": {"items": {"minlength": 1}}}}, "json_schema at /properties/a/items has 'minlength', which is no keyword: did you mean 'minLength'?"),
        ({"$defs": {"a": {"tpye": "null"}}, "$ref": "#/$defs/a"}, "at /$defs/a has 'tpye'"),
        ({"anyOf": [{"$ref": "#/parts/a"}], "parts": {"a": {"prefixitems": []}}}, "at /parts/a has 'prefixitems'"),
        ({"patternProperties": {"a": {"nullable": True}}}, "has 'nullable', which is no keyword: a note of your own begins with x-"),
        ({"type": "array", "uniqueItems": True}, "has 'uniqueItems', which is not supported"),
        ({"if": {}, "then": {}}, "has 'if', which is not supported"),
        ({"type": "string", "format": "idn-email"}, "has the format 'idn-email', which is not known: did you mean 'email'?"),
        ({"format": "colour"}, "the formats are date, date-time, duration, email, hostname, ipv4, ipv6, time, uri, uuid"),
        ({"minimum": 9007199254740993}, "has 9007199254740993 in 'minimum', but numbers are exact below 2**53 alone"),
        ({"minimum": 1e20}, "has 1e+20 in 'minimum'"),
        ({"enum": [{"a": [-(2**53)]}]}, "has -9007199254740992 in 'enum'"),
        ({"exclusiveMinimum": 0, "maximum": 0.5}, "has exclusiveMinimum=0 with maximum=0.5, and 0 itself would be taken: give minimum"),
        ({"exclusiveMaximum": -1, "allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"minimum": -1.5}}}, "exclusiveMaximum=-1 with minimum=-1.5"),
        ({"minimum": 1, "exclusiveMinimum": True, "maximum": 1.5}, "exclusiveMinimum=1 with maximum=1.5"),
        ({"allOf": [{"multipleOf": 641}, {"multipleOf": 6700417}]}, "multipleOf 641 and 6700417 of one value, too large together"),
        ({"prefixItems": [{"type": "null"}], "items": {}, "additionalItems": False}, "'prefixItems' beside the older 'additionalItems'"),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {}}}, "refer to a name without / ~ and %"),
        ({"properties": {"a": {"$id": "b", "$ref": "#/$defs/c"}}, "$defs": {"c": {}}}, "has an $id, within which $ref would mean another place"),
        ({"properties": {"a\x1b": {}}}, "has the key 'a\\x1b', but U+001B cannot be written in a key"),
        ({"required": ["\x00"]}, "U+0000 cannot be written"),
        ({"const": [{"\x01": 1}]}, "U+0001 cannot be written"),
        ({"const": "\ud800"}, "json_schema.const has the lone surrogate U+D800"),
        ({"const": float("nan")}, "json_schema is no JSON: Out of range float values"),
        ({"x-guidance": {"whitespace_flexble": True}}, "unknown field `whitespace_flexble`"),
        ({"pattern": "[+--]"}, "has '--' within [...] of the pattern '[+--]'"),
        ({"x-guidance": True}, "has x-guidance=True: give an object"),
        ({"items": {"x-guidance": {}}}, "at /items has 'x-guidance', which is read at the top alone"),
        (False, "Unsatisfiable"),
    ],
)
def test_what_would_be_taken_otherwise_than_meant_is_refused_by_name(wordy_tokenizer, schema, words):
    given = json.dumps(schema) if isinstance(schema, bool) else schema
    with pytest.raises(UserError, match=re.escape(words)):
        new_grammar(SamplingParams(json_schema=given), wordy_tokenizer, {2})


def test_what_is_refused_of_a_range_would_be_taken():
    """Why the refusals of ranges and factors are there: an llguidance that reads them rightly needs them no more."""
    for schema, text in [
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "0"),
        ({"type": "integer", "minimum": 2**53 + 1}, str(2**53)),
        ({"type": "integer", "allOf": [{"multipleOf": 641}, {"multipleOf": 6700417}]}, "1"),  # their product is 2**32 + 1
    ]:
        assert is_text_of(over_bytes("json_schema", LLMatcher.grammar_from_json_schema(schema)), text)


def test_ranges_of_numbers_hold_what_they_say():
    """Every kind of pair of bounds beside values on, near and between them."""
    bounds, values = [-10, -1, -0.25, 0, 0.5, 1, 2.25], ["-10", "-1.5", "-1", "-0.5", "-0.25", "-0", "0", "0.3", "0.5", "0.50", "1", "1.0", "2.25", "3"]
    tried = 0
    for (low, lower), (high, upper) in product(product(["minimum", "exclusiveMinimum"], bounds), product(["maximum", "exclusiveMaximum"], bounds)):
        schema = {"type": "number", low: lower, high: upper}
        try:
            grammar = over_bytes("json_schema", source("json_schema", schema))
        except UserError as refusal:
            assert "itself would be taken" in str(refusal) or lower >= upper
            continue
        for value in values:
            tried += 1
            assert not is_text_of(grammar, value) or Draft202012Validator(schema).is_valid(json.loads(value)), (schema, value)
    assert tried > 700


def is_text_of(grammar: LLMatcher, text: str) -> bool:
    fork, data = grammar.deep_copy(), list(text.encode())
    return fork.try_consume_tokens(data) == len(data) and fork.is_accepting()


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema, ensure_ascii=False)[:60])
def test_every_finished_answer_validates(wordy_tokenizer, schema):
    assert finished(schema, wordy_tokenizer, range(3)) >= 1


@pytest.mark.full
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema, ensure_ascii=False)[:60])
def test_every_one_of_many_finished_answers_validates(wordy_tokenizer, tokenizer, schema):
    assert finished(schema, wordy_tokenizer, range(3, 200)) >= 100
    assert finished(schema, tokenizer, range(4)) >= 1
