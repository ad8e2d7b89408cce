"""Whether what a tool says of its parameters is a JSON schema at all: looked at before it is needed, be it shown, forced or read by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...data.errors import UserError
from ..constraints.schema import LISTS, MAPS, SINGLES

MOST_DEEP = 64  # schemas in one another: templates write them by recursion
ARE = {Mapping: "an object", list: "a list", str: "a text"}
KINDS = {
    **dict.fromkeys(MAPS, (Mapping,)), **dict.fromkeys(LISTS, (list,)), "enum": (list,), "required": (list,), "type": (str, list), "$ref": (str,),
    "pattern": (str,),
}  # fmt: skip
del KINDS["items"]  # a schema, or in older drafts a list of them


def check_schema(schema: Any, place: str) -> None:
    """Raise UserError, with where it stands, for what is no schema, and for one whose keywords have what they never have."""
    waiting = [(schema, place, 0)]
    while waiting:
        node, where, depth = waiting.pop()
        if isinstance(node, bool):
            continue
        if not isinstance(node, Mapping):
            raise UserError(f"{where} must be a JSON schema, got {node!r:.80}")
        if depth == MOST_DEEP:
            raise UserError(f"{where[:80]}... has more than {MOST_DEEP} schemas in one another: write it flatter")
        for key, kinds in KINDS.items():
            if key in node and not isinstance(node[key], kinds):
                raise UserError(f"{where}.{key} must be {' or '.join(ARE[kind] for kind in kinds)}, got {node[key]!r:.80}")
        for key in ("required", "type"):
            if isinstance(node.get(key), list) and not all(isinstance(each, str) for each in node[key]):
                raise UserError(f"{where}.{key} must be a list of texts, got {node[key]!r:.80}")
        waiting += [(part, f"{where}.{path}", depth + 1) for part, path in parts_of(node)]


def parts_of(node: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """The schemas that stand directly in one, with where."""
    for key in MAPS:
        yield from ((part, f"{key}.{name}") for name, part in node.get(key, {}).items())
    for key in LISTS:
        if isinstance(node.get(key), list):
            yield from ((part, f"{key}[{n}]") for n, part in enumerate(node[key]))
    for key in SINGLES:
        if key in node and not (key == "items" and isinstance(node[key], list)):
            yield node[key], key
