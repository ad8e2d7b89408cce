"""What all cores read of memory a second: a loop in C over a buffer far larger than any cache, compiled for this machine by `$CC` or cc.

python benchmarks/bandwidth.py
"""

import ctypes
import json
import mmap
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

SIZE = 2**30


class Memory:
    """A GiB to read in pages of the usual size, as a model's weights lie in, and another in huge ones where the system has them, to see what those would give."""

    def __init__(self):
        source = Path(__file__).with_name("read_bandwidth.c")
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder, "read.so")
            command = [*shlex.split(os.environ.get("CC", "cc")), "-O3", "-march=native", "-pthread", "-shared", "-fPIC", str(source), "-o", str(library)]
            subprocess.run(command, check=True)
            self.read = ctypes.CDLL(str(library)).seodang_read
        self.read.restype, self.read.argtypes = ctypes.c_double, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.buffers = {"usual": mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)}
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self.buffers["huge"] = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self.buffers["huge"].madvise(mmap.MADV_HUGEPAGE)
        self.places = {pages: ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for pages, buffer in self.buffers.items()}
        for place in self.places.values():
            ctypes.memset(place, 1, SIZE)  # pages that nobody wrote are all one page of zeros

    def bandwidth(self, times: int = 4) -> dict[str, float]:
        """GB/s by kind of page, each the best of so many reads."""
        return {pages: SIZE / 1e9 / min(self._seconds(place) for _ in range(times)) for pages, place in self.places.items()}

    def _seconds(self, place: int) -> float:
        seconds = self.read(place, SIZE, os.cpu_count())
        if seconds < 0:
            raise RuntimeError("a thread did not start")
        return seconds


def read_bandwidth() -> float:
    """GB/s from pages of the usual size, the best of nine reads."""
    return Memory().bandwidth(9)["usual"]


if __name__ == "__main__":
    print(json.dumps({f"{pages} pages, GB/s": round(found, 1) for pages, found in Memory().bandwidth(9).items()}))
