"""The value of a parameter that stands as a text of its own: what it is says the tool's schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...data.errors import UserError
from ..constraints.schema import KEYWORDS, ready, referred

PYTHON = {"True": "true", "False": "false", "None": "null"}
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}


def as_json_text(text: str, key: str, schema: Mapping[str, Any], python_constants: bool, whole: bool = True) -> str:
    """Return the JSON text of a parameter's value: the text itself where its schema says string, else the JSON that it is, if it is any.

    What fits nothing is a string. Of a value that is not whole, cut off by the answer's end, the beginning of its JSON text.
    """
    types = types_of((schema.get("properties") or {}).get(key), schema)
    plain = json.dumps(text, ensure_ascii=False)
    if not whole:
        return plain[:-1] if "string" in types or not types else text.strip()
    if types == {"string"}:
        return plain
    written = PYTHON.get(text.strip(), text.strip()) if python_constants else text.strip()
    try:
        kind = TYPES[type(json.loads(written))]
    except (ValueError, KeyError):
        return plain
    if "string" in types and not {kind, "number" if kind == "integer" else kind} & types:
        return plain
    return written


def types_of(node: Any, root: Mapping[str, Any]) -> set[str]:
    """The types that a schema allows, as far as it says; none where it says nothing."""
    if not isinstance(node, Mapping):
        return set()
    if isinstance(kind := node.get("type"), str | list):
        return {kind} if isinstance(kind, str) else set(kind)
    if "enum" in node or "const" in node:
        return {TYPES[type(each)] for each in node.get("enum", [node.get("const")])}
    if isinstance(reference := node.get("$ref"), str):
        target = referred(root, reference)
        return types_of(target, {}) if target is not node else set()
    return {each for name in ("anyOf", "oneOf", "allOf") for part in node.get(name, ()) for each in types_of(part, root)}


@dataclass(frozen=True)
class Alternative:
    """What a value's text may be: a literal, a text of a terminal's language, or else JSON of a schema."""

    literal: str | None = None
    pattern: str | None = None
    schema: Any = None


def alternatives(node: Any, root: Mapping[str, Any], python_constants: bool) -> list[Alternative]:
    """Return what the texts are that `as_json_text` reads as values of the schema. Raises UserError for a string's schema that is not supported."""
    if not isinstance(node, Mapping) or not (rest := {key: value for key, value in node.items() if key in KEYWORDS}):
        return [Alternative(pattern="/(?s:.*)/")]
    if values := node.get("enum") or ([node["const"]] if "const" in node else None):
        return [Alternative(each if isinstance(each, str) else _written(each, python_constants)) for each in values]
    for name in ("anyOf", "oneOf"):
        if set(rest) == {name}:
            return [each for part in node[name] for each in alternatives(part, root, python_constants)]
    if isinstance(kinds := node.get("type"), list):
        return [each for kind in kinds for each in alternatives({**node, "type": kind}, root, python_constants)]
    types = types_of(node, root)
    if types == {"string"}:
        return [Alternative(pattern=_text_pattern(node))]
    if "string" in types:
        what = "which is not supported where each parameter stands as a text: name one type"
        raise UserError(f"a parameter has the schema {json.dumps(node, ensure_ascii=False):.120}, {what}")
    if python_constants and set(rest) == {"type"} and node["type"] in ("boolean", "null"):
        return [Alternative(text) for text in (("True", "False") if node["type"] == "boolean" else ("None",))]
    return [Alternative(schema={**node, **{key: root[key] for key in ("$defs", "definitions") if key in root}})]


def _written(value: Any, python_constants: bool) -> str:
    return str(value) if python_constants and (value is None or isinstance(value, bool)) else json.dumps(value, ensure_ascii=False)


def _text_pattern(node: Mapping[str, Any]) -> str:
    """A terminal of the texts that a string's schema allows."""
    said = ready(dict(node))
    if wrong := [key for key in ("format", "allOf", "$ref") if key in said]:
        raise UserError(f"a parameter has {wrong[0]}={said[wrong[0]]!r}, which is not supported where a string stands as it is: give a pattern")
    terminal = f"/(?s:.{{{said.get('minLength', 0)},{said.get('maxLength', '')}}})/"
    if pattern := said.get("pattern"):
        if "|" in re.sub(r"\\.|\(.*\)|\[[^\]]*\]", "", pattern):
            raise UserError(f"a parameter has the pattern {pattern!r}: put its choice into parentheses")
        before, behind = ("" if pattern.startswith("^") else "(?s:.*)"), ("" if re.search(r"(?<!\\)\$\Z", pattern) else "(?s:.*)")
        inner = pattern.removeprefix("^").removesuffix("" if behind else "$")
        terminal += f" & /{before}({inner.replace(chr(92) + '/', '/').replace('/', chr(92) + '/')}){behind}/"
    return terminal
