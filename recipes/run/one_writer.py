"""A file or a folder that one process writes at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seodang.data.errors import UserError
from seodang.data.files.lock import locked


def refuse_second_writer(descriptor: int, path: Path, remedy: str) -> None:
    """Lock what is open, until it is closed. Raises UserError where another process has: wait for its end, or do what the `remedy` says."""
    if not locked(descriptor):
        raise UserError(f"{path} is being written by another process: wait for its end, or {remedy}")


def refuse_busy_folder(folder: Path, remedy: str) -> None:
    """Raise UserError where another process writes into a folder, as `only_writer` does; nothing is made."""
    if folder.is_dir():
        with only_writer(folder, remedy):
            pass


@contextmanager
def only_writer(folder: Path, remedy: str) -> Iterator[None]:
    """Keep other processes out of a folder, which is made where there is none. Raises UserError where one is in it, and where there can be no folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be a folder ({error.strerror}): move what is there away, or {remedy}") from None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        yield
        return
    try:
        refuse_second_writer(descriptor, folder, remedy)
        yield
    finally:
        os.close(descriptor)
