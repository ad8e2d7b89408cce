"""JSON Lines, a record a line, and JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..json_text import parsed
from .text_files import lines_of


def json_lines_records(path: Path, encoding: str | None = None) -> Iterator[tuple[str, Any]]:
    """The records of a JSON Lines file, each with its line. Raises UserError for a line that is not JSON."""
    for number, line in enumerate(lines_of(path, encoding), start=1):
        if line.strip():
            where = f"{path.name} line {number}"
            try:
                yield where, parsed(line.lstrip("\ufeff"), _DECODE)  # a mark stands where files were put behind one another
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: not JSON: {error.msg} at character {error.colno}") from None


def json_records(path: Path, encoding: str | None = None) -> Iterator[tuple[str, Any]]:
    """The records of a JSON file: a list of them, alone or under `data`, a single one, or lines of JSON after all.

    Raises UserError for what is none of these.
    """
    text = "".join(lines_of(path, encoding))
    if not text.strip():
        return
    try:
        value = parsed(text, _DECODE)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON Lines under the name of JSON
            yield from json_lines_records(path, encoding)
            return
        raise UserError(f"{path.name} line {error.lineno}: not JSON: {error.msg}") from None
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    elif isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise UserError(f"{path.name} must hold a list of records, got {type(value).__name__}")
    for number, record in enumerate(value, start=1):
        yield f"{path.name} record {number}", record


class Spelled(float):
    """A number that keeps how it is written in its file: 0.50 is not 0.5 where it becomes a text."""

    def __new__(cls, text: str) -> "Spelled":
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return str(self.text)


def _number(text: str) -> float:
    number = float(text)
    return number if repr(number) == text else Spelled(text)  # few are: a plain one is made in half the time


_DECODE = json.JSONDecoder(parse_float=_number).decode  # made once: `json.loads` would make one a line
