"""What is free within the process goes back to the system while the server runs."""

import asyncio
import ctypes

import psutil
import pytest

from seodang.infer.server.guard.memory import giving_back, trimmer


@pytest.mark.skipif(trimmer() is None, reason="not glibc")
def test_memory_that_is_free_between_pieces_in_use_goes_back():
    """64 MB in pieces of 32 KB, of which one in thirty stays: what lies between is the allocator's until it is asked for."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    pieces = [libc.malloc(32 << 10) for _ in range(2048)]
    for piece in pieces:
        ctypes.memset(piece, 1, 32 << 10)
    for piece in (kept := [piece for n, piece in enumerate(pieces) if n % 30]):
        libc.free(piece)
    process = psutil.Process()
    before = process.memory_info().rss

    async def wait() -> None:
        async with giving_back(every=0.01):
            for _ in range(500):
                if before - process.memory_info().rss > 40 << 20:
                    return
                await asyncio.sleep(0.01)

    asyncio.run(wait())
    given_back = before - process.memory_info().rss
    for piece in set(pieces) - set(kept):
        libc.free(piece)
    assert given_back > 40 << 20
