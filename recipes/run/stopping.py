"""Ctrl-C and SIGTERM: they end a command where it stands, but never within what must be whole."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopping:
    """While it is entered, Ctrl-C raises KeyboardInterrupt and SIGTERM SystemExit(143); within `whole()` they wait until its end.

    A signal that is ignored stays so, as Ctrl-C for what a shell has put into the background.
    """

    def __init__(self) -> None:
        self._heard: int | None = None
        self._busy = False

    def __enter__(self) -> "Stopping":
        main = threading.current_thread() is threading.main_thread()  # no other may set what a signal does
        heeded = [number for number in (signal.SIGINT, signal.SIGTERM) if main and signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._hear) for number in heeded}
        return self

    def __exit__(self, kind: object, error: BaseException | None, *trace: object) -> None:
        if isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:
            print("terminated", file=sys.stderr)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None was not set by Python

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Let what is done within end before a signal does what it says."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
        self._stop()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard = number
        if not self._busy:
            self._stop()

    def _stop(self) -> None:
        number, self._heard = self._heard, None
        if number is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
