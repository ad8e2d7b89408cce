"""One process at a time does what others can use: these wait, are told for whom, and not for ever."""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError

logger = logging.getLogger(__name__)
PATIENCE = 600.0  # seconds without a sign of the process that holds a lock
TOLD_AFTER = 3.0  # seconds, and then every half minute


@contextlib.contextmanager
def alone(path: Path, what: str, patience: float = PATIENCE) -> Iterator[Callable[[], None]]:
    """Wait until no other process holds the file's lock, and hold it; what is yielded is to be called from time to time, as a sign of life.

    The system takes the lock from a process that has ended, however it ended, so who waits takes it over. `what` is being done, in words. Raises
    UserError where the holder gives no sign for `patience` seconds, and OSError where the file cannot be opened. Where a file system has no locks
    all go on at once.
    """
    with path.open("a+b", buffering=0) as file:
        _wait(file, path, what, patience)
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
        last = time.monotonic()

        def sign() -> None:
            nonlocal last
            if time.monotonic() - last > 1:
                last = time.monotonic()
                os.utime(path)

        yield sign


def _wait(file: BinaryIO, path: Path, what: str, patience: float) -> None:
    began = heard = time.monotonic()
    told, mark = began + TOLD_AFTER - 30, None
    while not locked(file):
        now, seen = time.monotonic(), os.fstat(file.fileno()).st_mtime_ns
        if seen != mark:  # whose clock it is does not matter: it moves
            heard, mark = now, seen
        if now - heard >= patience:
            raise UserError(f"{what}: {_holder(path)} holds {path} and has given no sign for {patience:g} s: end it, and the same command goes on from what it left")
        if now - told >= 30:
            logger.warning(f"{what}: waiting for {_holder(path)}, which does it, {now - began:.0f} s so far")
            told = now
        time.sleep(min(0.2, patience / 10))


def locked(file: BinaryIO | int) -> bool:
    """Lock what is open, a file or its descriptor, until it is closed; False where another process has. Where there are no locks, none is in the way."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ModuleNotFoundError, OSError):  # Windows, or a file system without locks
        pass
    return True


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_bytes())
        return f"process {held['process']} on {held['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
