"""What the value of a setting must be: rules that say no in a sentence, `rule(name, value)`, or say nothing (None)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

Rule = Callable[[str, Any], str | None]


def anything(name: str, value: Any) -> str | None:
    """The rule that every value keeps."""
    return None


def must_be(wanted: str, fits: Callable[[Any], bool]) -> Rule:
    """A rule of one sentence: the name must be what is wanted, and what came instead."""
    return lambda name, value: None if fits(value) else f"{name} must be {wanted}, got {shown(value)}"


def shown(value: Any) -> str:
    """A value as an error names it; a number that is too long to be written, by that."""
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"


def of(kind: type | tuple[type, ...], fits: Callable[[Any], bool] = lambda value: True) -> Callable[[Any], bool]:
    """Whether a value is of a kind, but no bool, and fits."""
    return lambda value: isinstance(value, kind) and not isinstance(value, bool) and fits(value)


MOST = 2**63  # what a tensor of whole numbers does not hold any more


def whole(least: int, wanted: str | None = None) -> Rule:
    """A whole number, not below the least, that a tensor can hold."""
    return must_be(wanted or f"a whole number from {least}", of(int, lambda n: least <= n < MOST))


def number(wanted: str, fits: Callable[[float], bool] = lambda x: True) -> Rule:
    """A finite number that fits; a whole one that a tensor can hold."""
    return must_be(wanted, of((int, float), lambda x: abs(x) <= (MOST if isinstance(x, int) else sys.float_info.max) and fits(x)))


def text(wanted: str) -> Rule:
    """A text, which is what is wanted."""
    return must_be(wanted, of(str))


fraction = number("in [0, 1]", lambda x: 0 <= x <= 1)
share = number("in (0, 1]", lambda x: 0 < x <= 1)
above_zero = number("a number above 0", lambda x: x > 0)
not_negative = number("a number from 0", lambda x: x >= 0)
any_number = number("a number")
yes_or_no = must_be("True or False", lambda value: isinstance(value, bool))
function = must_be("a function", callable)
mapping = must_be("a dictionary", lambda value: isinstance(value, Mapping))
listed = must_be("a list", lambda value: isinstance(value, Collection) and not isinstance(value, str | Mapping))


def entries(wanted: str, fits: Callable[[Any], bool], hint: str = "") -> Rule:
    """A list, of which every entry fits."""
    return both(listed, lambda name, value: worst(value, fits, lambda entry: f"{name} must be {wanted}, got the entry {entry!r}{hint}"))


def worst(values: Iterable[Any], fits: Callable[[Any], bool], told: Callable[[Any], str]) -> str | None:
    """What is told of the first of the values that does not fit."""
    return next((told(value) for value in values if not fits(value)), None)


def both(*rules: Rule) -> Rule:
    """Several rules, one after the other: each may rely on those before it."""
    return lambda name, value: next((refusal for rule in rules if (refusal := rule(name, value)) is not None), None)


texts = both(listed, must_be("texts of at least one character", lambda value: all(isinstance(each, str) and each for each in value)))
