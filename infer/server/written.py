"""Large answers as JSON, written in parts on the event loop: in one go, one would keep everybody else waiting."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

COMPACT = (",", ":")  # between the values, as JSONResponse has them
SHORT = 16  # lists of more entries are written entry by entry, each in one go; all others, and objects, with what lies in them
TOGETHER = 4096  # numbers that are written in one go
SPELL = 0.005  # seconds of writing, after which others have a turn


async def written(value: Any) -> bytes:
    """Return a value as JSON."""
    pieces, began = [], time.perf_counter()
    for piece in parts(value):
        pieces.append(piece.encode())
        if time.perf_counter() - began > SPELL:
            await asyncio.sleep(0)
            began = time.perf_counter()
    return b"".join(pieces)


def parts(value: Any) -> Iterator[str]:
    """Yield a value as JSON, little at a time."""
    if isinstance(value, dict) and value:
        opening = "{"
        for name, inner in value.items():
            yield f"{opening}{in_one_go({name: 0})[1:-2]}"
            yield from parts(inner)
            opening = ","
        yield "}"
    elif isinstance(value, list) and 0 < len(value) <= SHORT:
        opening = "["
        for inner in value:
            yield opening
            yield from parts(inner)
            opening = ","
        yield "]"
    elif isinstance(value, list) and value:
        opening = "["
        for first in range(0, len(value), TOGETHER):
            some = value[first : first + TOGETHER]
            flat = not any(isinstance(each, dict | list | tuple | str) for each in some)
            for entries in [some] if flat else ([each] for each in some):
                yield f"{opening}{in_one_go(entries)[1:-1]}"
                opening = ","
        yield "]"
    else:
        yield in_one_go(value)


def in_one_go(value: Any) -> str:
    """A value as JSON; raises ValueError for a number that JSON has not."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=COMPACT)
