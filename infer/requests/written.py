"""Settings that are no single value, as the words of a command line."""

from __future__ import annotations

import os
from ast import literal_eval
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...data.errors import UserError

FILES = (".txt", ".csv", ".jsonl")  # a single word that ends so is the name of a file


def lines_or_texts(name: str, words: Sequence[str]) -> tuple[str, ...]:
    """Return the lines of the file that a single word names, empty ones passed over; else the words themselves."""
    if len(words) != 1 or not os.path.isfile(words[0]):
        if len(words) == 1 and words[0].endswith(FILES):
            raise UserError(f"{name}: there is no file {words[0]}: name one of a text a line, or give the texts")
        return tuple(words)
    lines = tuple(line for line in Path(words[0]).read_text(encoding="utf-8-sig").split("\n") if line.strip())
    if not lines:
        raise UserError(f"{name}: the file {words[0]} is empty: write one text a line")
    return tuple(line.removesuffix("\r") for line in lines)


def texts_by_place(name: str, words: Sequence[str]) -> dict[int, str | int] | None:
    """Return the texts of `0=Yes` and the like by their places, or of one JSON object, where numbers are ids; None for no words."""
    if not words:
        return None
    written = pairs(name, words, "PLACE=TEXT, as 0=Yes", first=True)
    if place := next((place for place, _ in written if not place.isdecimal()), None):
        raise UserError(f"{name} has {place!r} where a token's place is told: write PLACE=TEXT, counted from 0, as 0=Yes")
    return by_place(name, ((place, text if type(text) is int else str(text)) for place, text in written))


def by_place(name: str, given: Iterable[tuple[str, Any]]) -> dict[int, Any]:
    """Return what is given by the numbers of its places; raises UserError for a place that is written twice, ValueError for one that is no number."""
    found: dict[int, Any] = {}
    for written, value in given:
        if (place := int(written)) in found:
            raise UserError(f"{name} gives token {place} twice, {found[place]!r} and {value!r}: drop one of them")
        found[place] = value
    return found


def numbers_by_token(name: str, words: Sequence[str]) -> dict[int | str, float] | None:
    """Return the numbers of `yes=2.5` and the like, or of one JSON object, by text or, where it is all digits, by id; None for no words.

    A text of digits stands in quotes of its own.
    """
    if not words:
        return None
    found: dict[int | str, float] = {}
    for token, number in pairs(name, words, "TEXT=NUMBER, as yes=2.5, or ID=NUMBER"):
        quoted = len(token) > 2 and token[0] == token[-1] == '"'
        try:
            found[int(token) if token.isdecimal() else token[1:-1] if quoted else token] = float(number)
        except (TypeError, ValueError):
            raise UserError(f"{name} has {number!r} for {token!r}, which is no number: write TEXT=NUMBER, as yes=2.5") from None
    return found


def pairs(name: str, words: Sequence[str], how: str, first: bool = False) -> list[tuple[str, Any]]:
    """Return what stands before and behind the last equals sign of each word, or the `first` one; of one JSON object its pairs."""
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        try:
            read = literal_eval(words[0])  # JSON, and a dictionary of a YAML file of options as text
        except (ValueError, SyntaxError):
            read = None
        if not isinstance(read, dict):
            raise UserError(f"{name} {words[0]!r} is no JSON object: write it as one, or as {how}")
        return [(str(key), value) for key, value in read.items()]
    found = []
    for word in words:
        before, sign, behind = word.partition("=") if first else word.rpartition("=")
        if not (before and sign and behind):
            raise UserError(f"{name} {word!r} is not written as {how}")
        found.append((before, behind))
    return found
