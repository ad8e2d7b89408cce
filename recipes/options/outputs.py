"""Where a command is to write: refused at once where it cannot, before anything is loaded, read or imported for it."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seodang.data.errors import UserError

FOLDERS = ("output_dir",)
FILES = ("output", "html")
OUTPUTS = FOLDERS + FILES  # the options that name what is written


def check_outputs(values: Mapping[str, Any]) -> None:
    """Raise UserError for the first of the outputs among the values of options that cannot be written. Nothing is left behind.

    A folder is made with its parents, a file's folder must be there.
    """
    for name in OUTPUTS:
        if values.get(name):
            (_check_folder if name in FOLDERS else _check_file)(f"--{name} {values[name]}", Path(values[name]).expanduser())


def _check_folder(given: str, path: Path) -> None:
    place = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if not place.is_dir():
        raise UserError(f"{given}: {place} is not a folder, name another")
    _try_to_write(given, place)


def _check_file(given: str, path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{given} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise UserError(f"{given}: there is no folder {path.parent}, make it or name another")
    if not path.exists():
        _try_to_write(given, path.parent)
    elif path.is_file():
        try:
            path.open("ab").close()
        except OSError as error:
            raise UserError(f"{given} cannot be written ({error.strerror}): name another file") from None


def _try_to_write(given: str, folder: Path) -> None:
    """Make and delete a file: permissions do not tell what a file system, or root, may do."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{given}: nothing can be written in {folder} ({error.strerror}), name another folder") from None
