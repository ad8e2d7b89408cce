"""JSON text to values, and files of a record a line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def parsed(text: str, parse: Callable[[str], Any] = json.loads) -> Any:
    """What a JSON text says. Raises JSONDecodeError, also for lists too deep in one another and for numbers of too many digits for Python."""
    try:
        return parse(text)
    except RecursionError:
        raise json.JSONDecodeError("lists or objects lie too deep in one another", text, 0) from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # an integer of more than 4,300 digits, and what `parse` itself refuses
        raise json.JSONDecodeError(str(error).partition(";")[0], text, 0) from None


def read_json_lines(path: Path) -> list[Any]:
    """The records of a file of JSON Lines, in their order.

    A line ends where a file's lines end: `str.splitlines` would also cut at U+2028, U+2029 and U+0085, which JSON allows inside a text.
    """
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]
