"""JSON Lines: a record a line."""

import json
from pathlib import Path
from typing import Any


def read_json_lines(path: Path) -> list[Any]:
    """The records of a file, in their order.

    A line ends where a file's lines end: `str.splitlines` would also cut at U+2028, U+2029 and U+0085, which JSON allows inside a text.
    """
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]
