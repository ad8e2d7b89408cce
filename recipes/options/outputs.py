"""Where a command is to write: refused at once where it cannot, before anything is loaded, read or imported for it."""

import errno
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from seodang.data.errors import UserError

FOLDERS = ("output_dir", "examples")
FILES = ("output", "html", "png", "plan_file", "dropped")
OUTPUTS = FOLDERS + FILES  # the options that name what is written
READ = ("data", "eval_data", "prompts", "config", "tasks_from", "triplets_from", "personas", "launch_file")  # those that name what is read, and must not be written over


def check_outputs(values: Mapping[str, Any]) -> None:
    """Raise UserError for the first of the outputs among the values of options that cannot be written. Nothing is left behind.

    A folder is made with its parents, a file's folder must be there, and no file may be one that is read, or another of the outputs.
    """
    for name in OUTPUTS:
        if (value := values.get(name)) is None:
            continue
        if not isinstance(value, str) or not value:
            raise UserError(f"--{name} must be the name of one {'folder' if name in FOLDERS else 'file'}, got {value!r}")
        given, path = f"--{name} {value}", Path(os.path.expanduser(value))
        refuse_long_name(path, given)
        if name in FOLDERS:
            _check_folder(given, path)
        else:
            _check_file(given, path)
            _refuse_what_is_read(given, path, values)
            _refuse_twice(name, given, path, values)


def open_output(path: str) -> TextIO:
    """Open a file that `check_outputs` has passed, before anything is computed; what it holds stays until `empty`."""
    return open(path, "a", encoding="utf-8")


def empty(output: TextIO) -> None:
    """Take away what a file held before: now it is certain that something will be written. A pipe or a device holds nothing."""
    if stat.S_ISREG(os.fstat(output.fileno()).st_mode):
        output.truncate(0)


def refuse_long_name(path: Path, given: str) -> None:
    """Raise UserError for a path of which a name is longer than the file system's can be, whether its folders are there or not."""
    place = next(each for each in path.absolute().parents if os.path.isdir(each))
    for each in (path, *(place / part for part in path.absolute().relative_to(place).parts)):
        try:
            os.lstat(each)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise UserError(f"{given} is a name too long for the file system: choose a shorter one") from None


def _check_folder(given: str, path: Path) -> None:
    place = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if not place.is_dir():
        raise UserError(f"{given}: {place} is not a folder, name another")
    _try_to_write(given, place)


def _check_file(given: str, path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{given} is a folder: name a file in it")
    place = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
    if not place.is_dir():
        raise UserError(f"{given}: there is no folder {place}, make it or name another")
    if not path.exists():
        _try_to_write(given, place)
    elif path.is_file():
        try:
            path.open("ab").close()
        except OSError as error:
            raise UserError(f"{given} cannot be written ({error.strerror}): name another file") from None


def _refuse_what_is_read(given: str, path: Path, values: Mapping[str, Any]) -> None:
    for name in READ:
        value = values.get(name) or []
        for source in [value] if isinstance(value, str) else value:
            source = os.path.expanduser(source)
            if os.path.isfile(source) and path.is_file() and os.path.samefile(source, path):
                raise UserError(f"{given} is what --{name} reads: name another file")


def _refuse_twice(name: str, given: str, path: Path, values: Mapping[str, Any]) -> None:
    if path.exists() and not path.is_file():
        return  # a pipe or a device takes the lines of several
    for before in FILES[: FILES.index(name)]:
        other = values.get(before)
        if other is not None and os.path.realpath(os.path.expanduser(other)) == os.path.realpath(path):
            raise UserError(f"{given} is what --{before} writes: name another file")


def _try_to_write(given: str, folder: Path) -> None:
    """Make and delete a file: permissions do not tell what a file system, or root, may do."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{given}: nothing can be written in {folder} ({error.strerror}), name another folder") from None
