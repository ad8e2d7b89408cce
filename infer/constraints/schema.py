"""A JSON schema made ready for llguidance: what it would misread is said in another way, or refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from ...data.errors import UserError
from ...data.json_text import is_deeper

# what llguidance reads
KEYWORDS = {
    "anyOf", "oneOf", "allOf", "$ref", "const", "enum", "type", "items", "additionalItems", "prefixItems", "minItems", "maxItems",
    "properties", "additionalProperties", "patternProperties", "required", "minProperties", "maxProperties", "minLength", "maxLength",
    "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
}  # fmt: skip
# what says nothing of a value
ANNOTATIONS = {
    "$anchor", "$comment", "$defs", "$dynamicAnchor", "$id", "$schema", "$vocabulary", "contentEncoding", "contentMediaType",
    "contentSchema", "default", "definitions", "deprecated", "description", "discriminator", "example", "examples", "id", "readOnly",
    "title", "writeOnly",
}  # fmt: skip
UNSUPPORTED = {
    "$dynamicRef", "$recursiveAnchor", "$recursiveRef", "contains", "dependencies", "dependentRequired", "dependentSchemas", "else", "if",
    "maxContains", "minContains", "not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties", "uniqueItems",
}  # fmt: skip
MAPS, LISTS = ("properties", "patternProperties", "$defs", "definitions"), ("allOf", "anyOf", "oneOf", "prefixItems", "items")
SINGLES = ("additionalProperties", "additionalItems", "items")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
BLANKS = ("whitespace_flexible", "whitespace_pattern", "item_separator", "key_separator")
SPARING = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}  # compact JSON, and as json.dumps writes it
DEEPEST = 256  # objects and lists in one another: what follows them goes into them by recursion
MOST = 2**53  # whole numbers from here on are not all doubles

# RFC 3339 in the Gregorian calendar, its years from 1 on; without leap seconds, of which no rule says when they come
YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
DAY = f"(?:{YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|{LEAP_YEAR}-02-29)"
HOUR = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
TIME = rf"{HOUR}:[0-5][0-9](?:\.[0-9]+)?(?:[zZ]|[+-]{HOUR})"
OURS = {"date": f"^{DAY}$", "time": f"^{TIME}$", "date-time": f"^{DAY}[tT]{TIME}$"}
FORMATS = {*OURS, "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}
LONGEST_HOSTNAME = 253


def ready(schema: Mapping | bool) -> dict[str, Any]:
    """Return the schema as llguidance is to be given it; its blanks are at most one after a comma or colon unless `x-guidance` says more.

    Raises UserError for a keyword or format that is unknown (with the nearest that is known) or not supported, and for what
    llguidance would take otherwise than it is meant, with where it stands.
    """
    root = as_json(schema if isinstance(schema, Mapping) else {"allOf": [schema]})
    options = root.get("x-guidance", {})
    if not isinstance(options, dict):
        raise UserError(f"json_schema has x-guidance={options!r}: give an object of llguidance's options")
    places = {} if options.get("lenient") else all_schemas(root)
    holders = {path.split("/")[1] for node in places.values() if (path := str(node[0].get("$ref", ""))).startswith("#/")}
    for node, path in places.values():
        check_keywords(node, path, holders if path == "" else set())
        check_names(node, path)
        check_numbers(node, path)
        check_tuples(node, path)
        check_reference(node, path)
        restate_patterns(node, path)
        restate_format(node, path)
    for node, path in places.values():
        check_together(list(joined(node, root)), path)
    if not any(name in options for name in BLANKS):
        options = {**options, **SPARING}
    return {**root, "x-guidance": options}


def texts_of(schema: Mapping | bool) -> Iterator[str]:
    """Every text that the schema gives word for word: in its enums and constants, and the names of its properties."""
    if isinstance(schema, Mapping):
        for node, _ in all_schemas(as_json(schema)).values():
            constants = [node.get("const"), node.get("enum")]
            yield from names_in(node.get("properties"))
            yield from names_in(constants, deep=True)
            yield from (text for text in leaves(constants) if isinstance(text, str))


def all_schemas(root: dict[str, Any]) -> dict[int, tuple[dict[str, Any], str]]:
    """Return every schema object with its place as a JSON pointer, by its identity: all below the root, and what references lead to."""
    found: dict[int, tuple[dict[str, Any], str]] = {}
    open_ = [(root, "")]
    while open_:
        node, path = open_.pop()
        if not isinstance(node, dict) or id(node) in found:
            continue
        found[id(node)] = node, path
        for name in MAPS:
            if isinstance(node.get(name), dict):
                open_ += [(each, f"{path}/{name}/{key}") for key, each in node[name].items()]
        for name in LISTS:
            if isinstance(node.get(name), list):
                open_ += [(each, f"{path}/{name}/{place}") for place, each in enumerate(node[name])]
        open_ += [(node[name], f"{path}/{name}") for name in SINGLES if name in node]
        if isinstance(node.get("$ref"), str):
            open_.append((referred(root, node["$ref"]), node["$ref"].lstrip("#").rstrip("/")))
    return found


def referred(root: dict[str, Any], reference: str) -> Any:
    """Return what a reference within the schema leads to; None where it leads nowhere, which llguidance will say."""
    at: Any = root
    for key in reference.removeprefix("#").split("/")[1:]:
        if isinstance(at, list):
            at = at[int(key)] if key.isdecimal() and int(key) < len(at) else None
        elif key or reference != "#/":
            at = at.get(key) if isinstance(at, dict) else None
    return at if reference.startswith("#") else None


def joined(node: dict[str, Any], root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas that may speak of the same value: the node, what it refers to, and the parts of its allOf, anyOf and oneOf."""
    seen: set[int] = set()
    open_: list[Any] = [node]
    while open_:
        each = open_.pop()
        if isinstance(each, dict) and id(each) not in seen:
            seen.add(id(each))
            yield each
            open_ += [part for name in ("allOf", "anyOf", "oneOf") if isinstance(each.get(name), list) for part in each[name]]
            open_ += [referred(root, each["$ref"])] if isinstance(each.get("$ref"), str) else []


def as_json(schema: Mapping) -> dict[str, Any]:
    """Return a copy in JSON's own types; raises UserError for what is no JSON, and for half a surrogate pair, which no text has."""
    if is_deeper(schema, DEEPEST):
        raise UserError(f"json_schema has more than {DEEPEST} objects and lists in one another: write it flatter")
    try:
        written = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        return json.loads(written.encode())
    except (ValueError, TypeError) as error:
        raise UserError(f"json_schema is no JSON: {error}") from None


def check_keywords(node: dict[str, Any], path: str, holders: set[str]) -> None:
    """Raise UserError for a keyword that would be ignored; `holders` are names at the root that only hold schemas referred to."""
    if node.get("uniqueItems") is False:
        del node["uniqueItems"]
    for name in node:
        if name == "x-guidance" and path:
            raise UserError(f"json_schema{at(path)} has 'x-guidance', which is read at the top alone: move it there")
        if name in UNSUPPORTED:
            raise UserError(f"json_schema{at(path)} has {name!r}, which is not supported: leave it out, and check the answer for it")
        if name not in KEYWORDS | ANNOTATIONS | holders and not name.startswith("x-"):
            guess = get_close_matches(name, KEYWORDS | ANNOTATIONS | UNSUPPORTED, 1)
            hint = f"did you mean {guess[0]!r}?" if guess else "a note of your own begins with x-"
            raise UserError(f"json_schema{at(path)} has {name!r}, which is no keyword: {hint}")


def check_names(node: dict[str, Any], path: str) -> None:
    """Raise UserError for a key that only the escape of a constraint character could write: those are kept out of keys, where they could hide another."""
    required = node.get("required")
    names = [*names_in(node.get("properties")), *(required if isinstance(required, list) else ())]
    for name in [*names, *names_in([node.get("const"), node.get("enum")], deep=True)]:
        if isinstance(name, str) and (letter := next((each for each in name if each < " " and each not in "\b\f\n\r\t"), None)):
            raise UserError(f"json_schema{at(path)} has the key {name!r}, but U+{ord(letter):04X} cannot be written in a key: leave it out")


def names_in(value: Any, deep: bool = False) -> Iterator[str]:
    """The keys of an object; with `deep` those of all objects in a JSON value."""
    if isinstance(value, dict):
        yield from value
    if deep and isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from names_in(each, deep)


def check_numbers(node: dict[str, Any], path: str) -> None:
    """Raise UserError for whole numbers that are no doubles, in which llguidance counts."""
    for name in BOUNDS + ("const", "enum"):
        for number in numbers(node.get(name)):
            if abs(number) >= MOST:
                raise UserError(f"json_schema{at(path)} has {number!r} in {name!r}, but numbers are exact below 2**53 alone: give a smaller one")


def numbers(value: Any) -> Iterator[float]:
    """Every number in a JSON value."""
    return (each for each in leaves(value) if isinstance(each, int | float) and not isinstance(each, bool))


def leaves(value: Any) -> Iterator[Any]:
    """Every value in a JSON value that is neither object nor array."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    else:
        yield value


def check_tuples(node: dict[str, Any], path: str) -> None:
    """Raise UserError where llguidance would drop `prefixItems` for the older way of saying them."""
    if "prefixItems" in node and ("additionalItems" in node or isinstance(node.get("items"), list)):
        raise UserError(f"json_schema{at(path)} has 'prefixItems' beside the older 'additionalItems' or a list of 'items': keep one way")


def check_reference(node: dict[str, Any], path: str) -> None:
    """Raise UserError for references that llguidance would look up by their escapes, or from a place of their own."""
    reference = node.get("$ref")
    if isinstance(reference, str) and ("~" in reference or "%" in reference):
        raise UserError(f"json_schema{at(path)} has the $ref {reference!r}: refer to a name without / ~ and %")
    if path and "$id" in node and '"$ref":' in json.dumps(node):
        raise UserError(f"json_schema{at(path)} has an $id, within which $ref would mean another place: leave it out")


def restate_patterns(node: dict[str, Any], path: str) -> None:
    """Give every pattern as it is meant in ECMA 262 to a reader of Rust's regular expressions."""
    if isinstance(node.get("pattern"), str):
        node["pattern"] = literal_classes(node["pattern"], path)
    if isinstance(node.get("patternProperties"), dict):
        node["patternProperties"] = {literal_classes(pattern, path): each for pattern, each in node["patternProperties"].items()}


def literal_classes(pattern: str, path: str) -> str:
    """Escape what within [...] means itself, but to Rust a class in the class, an intersection or a difference.

    `path` is the place in the schema for messages. Raises UserError for what cannot be told apart.
    """

    def escaped(found: re.Match) -> str:
        begin, within = found["begin"], found["within"]
        if begin is None:
            return found[0]
        if "--" in re.sub(r"\\.", "", within):
            raise UserError(f"json_schema{at(path)} has '--' within [...] of the pattern {pattern!r}: write \\- for a hyphen that means itself")
        return begin + re.sub(r"(?s)\\.|[\[&~]", lambda each: each[0] if len(each[0]) > 1 else f"\\{each[0]}", within) + "]"

    return re.sub(r"(?s)\\.|(?P<begin>\[\^?\]?)(?P<within>(?:\\.|[^\]\\])*)\]", escaped, pattern)


def restate_format(node: dict[str, Any], path: str) -> None:
    """Say a format by a pattern where llguidance's own takes what the format does not have; raises UserError for one that is unknown."""
    name, kinds = node.get("format"), node.get("type", "string")
    if not isinstance(name, str) or "string" not in (kinds if isinstance(kinds, list) else [kinds]):
        return  # a format of numbers (int32, double) says nothing that JSON could check
    if name not in FORMATS:
        guess = get_close_matches(name, FORMATS, 1)
        hint = f"did you mean {guess[0]!r}?" if guess else f"the formats are {', '.join(sorted(FORMATS))}"
        raise UserError(f"json_schema{at(path)} has the format {name!r}, which is not known: {hint}")
    if name == "hostname" and isinstance(node.get("maxLength", 0), int):
        node["maxLength"] = min(node.get("maxLength", LONGEST_HOSTNAME), LONGEST_HOSTNAME)
    if name in OURS:
        del node["format"]
        if "pattern" in node:
            node["allOf"] = [*node.get("allOf", []), {"pattern": OURS[name]}]
        else:
            node["pattern"] = OURS[name]


def check_together(nodes: list[dict[str, Any]], path: str) -> None:
    """Raise UserError for numbers of schemas that meet in one value and that llguidance would reckon wrongly."""
    given = [(name, node[name]) for node in nodes for name in BOUNDS if next(numbers(node.get(name)), None) is not None]
    given += [(f"exclusive{name.capitalize()}", node[name]) for node in nodes for name in BOUNDS[:2] if node.get(f"exclusive{name.capitalize()}") is True]
    for name, bound in given:
        for other, end in given:
            if name.startswith("exclusive") and bound == int(bound) and other.lower().endswith("maximum" if "Minimum" in name else "minimum"):
                inward = end - bound if "Minimum" in name else bound - end
                if 0 < inward < 1 and away(bound, end):
                    raise UserError(
                        f"json_schema{at(path)} has {name}={bound} with {other}={end}, and {bound} itself would be taken: "
                        f"give {name.removeprefix('exclusive').lower()} with the nearest number that you mean"
                    )
    factors = sorted({node["multipleOf"] for node in nodes if next(numbers(node.get("multipleOf")), 0)})
    if len(factors) > 1:
        places = max(len(f"{factor:f}".rstrip("0").partition(".")[2]) for factor in factors)
        first, *others = {abs(round(factor * 10**places)) for factor in factors}
        for other in others:
            first *= other
        if first >= 2**32:
            raise UserError(f"json_schema{at(path)} has multipleOf {factors[0]} and {factors[1]} of one value, too large together: give their common one")


def away(bound: float, end: float) -> bool:
    """Whether the way from a whole bound to the end leads away from 0."""
    return bound == 0 or (end > bound) == (bound > 0)


def at(path: str) -> str:
    """Return how a message names a place in the schema; the root has no name."""
    return f" at {path}" if path else ""
