"""What stands about a setting in one place: its default and range, what it is for, an example, what others call it.

The settings of a filter or a strategy are the fields of a small class beside its function, each made by `option`. What a caller gives,
`SamplingParams`, inherits from all of these classes; its checks, the command line, the translations from other vocabularies and the
table of strategies read what `option` was told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, dataclass_transform, get_type_hints

from .rules import Rule, anything

# vocabularies in which a setting may have a name
CONFIG, OPENAI, VLLM, LLAMA_CPP = "generation_config", "OpenAI", "vLLM", "llama.cpp"
NEVER = object()  # a value that nobody gives


def unchanged(value: Any) -> Any:
    """The value itself."""
    return value


def file_or_text(value: str | None) -> str | None:
    """What a file holds, or the text itself where it names none."""
    return Path(value).read_text(encoding="utf-8") if value is not None and os.path.isfile(value) else value


@dataclass(frozen=True)
class Command:
    """How a setting is given on a command line where that differs from Python: its type and default there, and what reads such a value.

    `bare` is what the option means without a value; without it, it needs one.
    """

    type: Any
    default: Any = None
    read: Callable[[Any], Any] = unchanged
    bare: Any = None


@dataclass(frozen=True)
class Option:
    """A setting: its name, type and default, and what `option` was told of it."""

    help: str
    rule: Rule
    example: Any
    aliases: Mapping[str, tuple[str, ...]]
    command: Command | bool
    convert: Callable[[str, Any], Any] | None
    from_json: Callable[[Any], Any]
    off: Any
    greedy: Any
    samples: bool
    part_of: str | None
    claims: str | None
    ids: Callable[[Any], Iterable[int]] | None
    name: str = ""
    type: Any = None
    default: Any = None


def option(
    default: Any,
    help: str,
    rule: Rule = anything,
    *,
    example: Any = None,
    same_in: Iterable[str] = (),
    aliases: Mapping[str, tuple[str, ...]] | None = None,
    command: Command | bool = True,
    convert: Callable[[str, Any], Any] | None = None,
    from_json: Callable[[Any], Any] = unchanged,
    off: Any = NEVER,
    greedy: Any = NEVER,
    samples: bool = False,
    part_of: str | None = None,
    claims: str | None = None,
    ids: Callable[[Any], Iterable[int]] | None = None,
) -> Any:
    """A field of a class of settings.

    `rule` judges every value but a None that is the default; `convert(name, value)` makes of what is given what is kept. `example` is a value
    that asks for something. `same_in` names the vocabularies that have the setting under our name, `aliases` its other names there,
    `from_json` reads what they write, and `off` is a generation_config's value that asks for nothing. `command` is how, or False, whether it
    is an option of the command line. `samples`: given, it turns sampling on, but at the value `greedy` it turns it off. `part_of` names the
    setting without which this one says nothing, `claims` a setting that means something else beside this one. `ids` finds the token ids in a value.
    """
    known = {vocabulary: ("",) for vocabulary in same_in} | dict(aliases or {})
    told = Option(help, rule, example, known, command, convert, from_json, off, greedy, samples, part_of, claims, ids)
    return field(default=default, metadata={"option": told})


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type) -> type:
    """Make a class with fields by `option` a frozen dataclass whose fields are given by keyword, and document them by what they are for."""
    about = f"{cls.__doc__}\n\n" if cls.__doc__ else ""
    made = dataclass(frozen=True, kw_only=True)(cls)
    made.__doc__ = about + "\n".join(f"{each.name}: {each.metadata['option'].help}" for each in fields(made))
    return made


@cache
def options_of(cls: type) -> dict[str, Option]:
    """Every setting of a class by its name, in the order in which the classes that it inherits from are written."""
    made, types = {each.name: each for each in fields(cls)}, get_type_hints(cls)
    return {
        name: replace(made[name].metadata["option"], name=name, type=types[name], default=made[name].default)
        for name in dict.fromkeys(names_in(cls))
        if name in made
    }


def names_in(cls: type) -> Iterator[str]:
    """The names annotated in a class and those that it inherits from, these first."""
    for base in cls.__bases__:
        yield from names_in(base)
    yield from vars(cls).get("__annotations__", ())


def vocabulary(cls: type, name: str) -> dict[str, str]:
    """Our names by those of another vocabulary."""
    return {theirs or own: own for own, each in options_of(cls).items() for theirs in each.aliases.get(name, ())}
