"""JSON Schemas made whole for a document that holds them, and told to people in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]


def whole(schema: Any, parts: Mapping[str, Any]) -> Any:
    """A schema in which each of the parts that it refers to stands itself; without the titles that pydantic makes of names."""
    if isinstance(schema, list):
        return [whole(each, parts) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        schema = {**parts[schema["$ref"].rpartition("/")[2]], **{key: value for key, value in schema.items() if key != "$ref"}}
    return {key: whole(value, parts) for key, value in schema.items() if key != "title" or not isinstance(value, str)}


def nullable(schema: Schema) -> Schema:
    """A schema that null fits too."""
    about = [key for key in schema if key in ("description", "default") or key.startswith("x-")]  # the others say what fits
    fits = schema.get("anyOf", [{key: value for key, value in schema.items() if key not in about}])
    told = {key: schema[key] for key in about if schema[key] is not None}
    if fits == [{}]:
        return told
    return {**told, "anyOf": fits if {"type": "null"} in fits else [*fits, {"type": "null"}]}


def kinds(schema: Schema) -> str:
    """The types of a field's values, null aside, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kinds(each) for each in schema["anyOf"] if each != {"type": "null"}))
    if "enum" in schema:
        return ", ".join(json.dumps(each, ensure_ascii=False) for each in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {kinds(schema['items'])}" if schema.get("items") else "list"
    return {"string": "text", "integer": "whole number", "boolean": "true or false"}.get(schema.get("type"), schema.get("type", "anything"))


def span(schema: Schema) -> str:
    """The range of a field's numbers, in words."""
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    found = next((each for each in schema.get("anyOf", [schema]) if words.keys() & each.keys()), {})
    return " ".join(f"{word} {found[key]:g}" for key, word in words.items() if key in found)
