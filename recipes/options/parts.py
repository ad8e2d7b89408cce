"""Some of the options that another command has, for one that needs these alone."""

from collections.abc import Collection
from copy import copy
from dataclasses import fields, make_dataclass
from typing import get_type_hints


def part_of(options: type, names: Collection[str], name: str, doc: str) -> type:
    """A dataclass of these fields of another, with their types, defaults and help."""
    hints, found = get_type_hints(options), []
    for each in fields(options):
        if each.name in names:
            again = copy(each)
            found.append((each.name, hints[each.name], again))
    assert len(found) == len(names), names
    return make_dataclass(name, found, namespace={"__doc__": doc})
