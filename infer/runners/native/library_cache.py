"""Compiled libraries, kept from one process to the next where nobody else can have written them."""

import hashlib
import logging
import os
import platform
import tempfile
from pathlib import Path

from ....data.files.cache_folder import cache_folder

KEPT = 8  # files of the folder, the newest; an update of Seodang, a compiler or a CPU leaves old ones behind
SUFFIX = ".dll" if platform.system() == "Windows" else ".so"

logger = logging.getLogger(__name__)


def open_cache() -> Path | None:
    """Return the folder of compiled libraries, made where it is not there, or None where it cannot be made or others may write to it."""
    try:
        folder = cache_folder() / "native"
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if is_ours(folder):
            return folder
        logger.debug("%s is not used: another user owns it, or may write to it", folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home
        logger.debug("no cache of compiled libraries: %s", error)
    return None


def is_ours(path: Path) -> bool:
    """Whether this user owns the path and nobody else may write to it; where a platform has no owners, always."""
    if os.name != "posix":
        return True
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def find(folder: Path, key: str) -> Path | None:
    """Return the folder's library of that key, whole and written by this user, or None."""
    for path in folder.glob(f"{key}-*{SUFFIX}"):
        try:
            if is_ours(path) and path.name == file_name(key, path.read_bytes()):
                return path
            logger.debug("%s is not used: another user wrote it, or it is not what was written", path)
        except OSError as error:  # another process has just removed it
            logger.debug("%s is not used: %s", path, error)
    return None


def file_name(key: str, content: bytes) -> str:
    """The name of a library with that content, which tells half a file before it is loaded: a process that loads one dies of a bus error."""
    return f"{key}-{hashlib.sha256(content).hexdigest()[:16]}{SUFFIX}"


def keep(folder: Path, name: str, content: bytes) -> Path | None:
    """Write a library at once whole under that name and drop the oldest files; return its path, or None where the folder cannot be written."""
    partial = None
    try:
        handle, partial = tempfile.mkstemp(prefix=f"{name}.", dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(partial, folder / name)
    except OSError as error:
        logger.debug("%s cannot be kept in %s: %s", name, folder, error)
        remove(Path(partial) if partial else None)
        return None
    drop_oldest(folder)
    return folder / name


def drop_oldest(folder: Path) -> None:
    """Remove all but the newest files; those that another process removes meanwhile are no matter."""
    dated = []
    for path in folder.iterdir():
        try:
            dated.append((path.stat().st_mtime_ns, path))
        except OSError:
            continue
    for _, path in sorted(dated)[:-KEPT]:
        remove(path)


def remove(path: Path | None) -> None:
    """Remove a file where there is one and it may be removed: Windows keeps what a process has loaded."""
    try:
        if path is not None:
            path.unlink(missing_ok=True)
    except OSError as error:
        logger.debug("%s cannot be removed: %s", path, error)
