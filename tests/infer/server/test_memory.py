"""What is free within the process goes back to the system while the server runs."""

import asyncio
import ctypes
import os
import subprocess
import sys

import psutil
import pytest

from seodang.infer.server.guard.memory import function, giving_back


@pytest.mark.skipif(function("malloc_trim") is None, reason="not glibc")
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


ARENAS = """
import ctypes, threading
from seodang.infer.server.guard.memory import few_arenas
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
few_arenas()
together, homes = threading.Barrier(12), set()
def run():
    together.wait()
    homes.add(libc.malloc(1000) >> 26)  # an arena lies within 64 MB of its own
    together.wait()
threads = [threading.Thread(target=run) for _ in range(12)]
for each in threads: each.start()
for each in threads: each.join()
print(len(homes))
"""


@pytest.mark.skipif(function("mallopt") is None, reason="not glibc")
@pytest.mark.parametrize("environment, arenas", [({}, range(1, 3)), ({"MALLOC_ARENA_MAX": "64"}, range(3, 13))])
def test_threads_share_two_arenas_unless_the_environment_says_how_many(environment, arenas):
    done = subprocess.run([sys.executable, "-c", ARENAS], capture_output=True, text=True, check=True, env={**os.environ, **environment})
    assert int(done.stdout) in arenas
