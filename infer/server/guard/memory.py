"""The process holds no more than it uses: glibc keeps what lies between pieces in use, more with every unlike request and for each thread apart."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

EVERY = 30.0  # seconds: a call takes some hundredths of one
ARENAS, M_ARENA_MAX = 2, -8  # mallopt(3)


def few_arenas() -> None:
    """Let threads share two arenas, where each would have one of up to 64 MB of its own; where the C library has no `mallopt`, nothing is done.

    Threads that have an arena keep it, so this is called before there are any. What is in MALLOC_ARENA_MAX goes before.
    """
    mallopt = function("mallopt")
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(M_ARENA_MAX, ARENAS)


@asynccontextmanager
async def giving_back(every: float = EVERY) -> AsyncIterator[None]:
    """Give back what is free, from time to time; where the C library has no `malloc_trim`, nothing is done."""
    trim = function("malloc_trim")
    task = None if trim is None else asyncio.create_task(again_and_again(trim, every))
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def again_and_again(trim: Callable[[int], int], every: float) -> None:
    """Call it every so many seconds, in a thread: others that allocate wait for it, those that compute do not."""
    while True:
        await asyncio.sleep(every)
        await asyncio.to_thread(trim, 0)


def function(name: str) -> Callable[..., int] | None:
    """The C library's function of this name; None where it has none."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # another C library; another system
        return None
