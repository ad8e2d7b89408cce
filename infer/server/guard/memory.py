"""Memory that is free within the process goes back to the system: glibc keeps what lies between pieces in use, more with every unlike request."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

EVERY = 30.0  # seconds: a call takes some hundredths of one


@asynccontextmanager
async def giving_back(every: float = EVERY) -> AsyncIterator[None]:
    """Give back what is free, from time to time; where the C library has no `malloc_trim`, nothing is done."""
    trim = trimmer()
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


def trimmer() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`; None elsewhere."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; another system
        return None
