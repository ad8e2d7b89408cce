"""The value of a parameter that stands as a text of its own: what it is says the tool's schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PYTHON = {"True": "true", "False": "false", "None": "null"}
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}


def as_json_text(text: str, key: str, schema: Mapping[str, Any], python_constants: bool, whole: bool = True) -> str:
    """Return the JSON text of a parameter's value: the text itself where its schema says string, else the JSON that it is, if it is any; what fits nothing is a string.

    Of a value that is not whole, cut off by the answer's end, the beginning of its JSON text.
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
        target: Any = root
        for step in reference.removeprefix("#/").split("/"):
            target = target.get(step) if isinstance(target, Mapping) else None
        return types_of(target, {}) if target is not node else set()
    return {each for name in ("anyOf", "oneOf", "allOf") for part in node.get(name, ()) for each in types_of(part, root)}
