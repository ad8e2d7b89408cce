"""JSON text to values, how deep these lie in one another, and files of a record a line."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
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


def levels(value: Any, most: int) -> Iterator[list[Collection]]:
    """Yield the objects and lists of a JSON value level by level, so many levels at most: without recursion, however deep they lie.

    >>> list(levels({"a": [1, {}]}, 2))
    [[{'a': [1, {}]}], [[1, {}]]]
    """
    level = [value] if isinstance(value, Mapping | list | tuple) else []
    while level and most:
        yield level
        most -= 1
        inner = (each for held in level for each in (held.values() if isinstance(held, Mapping) else held))
        level = [each for each in inner if isinstance(each, Mapping | list | tuple)]


def is_deeper(value: Any, most: int) -> bool:
    """Whether more objects and lists of a JSON value lie in one another."""
    return sum(1 for _ in levels(value, most + 1)) > most


def read_json_lines(path: Path) -> list[Any]:
    """The records of a file of JSON Lines, in their order.

    A line ends where a file's lines end: `str.splitlines` would also cut at U+2028, U+2029 and U+0085, which JSON allows inside a text.
    """
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]
