"""Models in 8 or 4 bits that were made of a folder of floats once, kept for the next time they are loaded.

An entry is a folder as `few_bits_folder` writes it, under a name that holds the hash of all it was made of: what the weights are (the hashes in the
folder's manifest, without one each file's path, size and time), configuration, generation's settings, and the code that rounds. Entries are written
aside and renamed, so that processes may write at once and be killed; those used longest ago go where all take more than `SEODANG_CACHE_GIB` (8).
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from transformers import PreTrainedModel

from ...data.errors import UserError
from ...data.files.cache_folder import cache_folder
from .. import gguf
from ..kernels import four_bits, quantised_linear
from ..runners import native
from ..runners.native.grouped_linear import missing_kernels
from . import calibrate, few_bits_folder, quantise
from .few_bits_folder import read_few_bits, size_in_few_bits, write_few_bits
from .manifest import MANIFEST, read_manifest, verify, write_manifest

logger = logging.getLogger(__name__)

LIMIT = "SEODANG_CACHE_GIB"  # the environment variable: 0 keeps nothing
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
PARTIAL = ".partial."  # how the name of what is being written begins
STALE = 24 * 3600  # seconds after which what is still being written was left by a process that was killed


def converted(folder: Path, weights: str, floats: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Return the model of a folder in so many bits: from the cache where it is there, else made of what `floats` returns, and kept if that can be.

    Raises UserError as `quantise` and `floats` do, for a limit that is no number, and for files of the folder that are missing or changed.
    """
    return _kept(str(folder), lambda: key(folder, weights), lambda: _made(floats(), weights), lambda: _verify_unread(folder))


def in_packs(file: Path, read: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Return what `read` makes of a GGUF file, its blocks laid out for the kernels: from the cache where it is there, else read, and kept if that can be."""
    return _kept(str(file), lambda: file_key(file), read)


def _kept(name: str, key: Callable[[], str], make: Callable[[], PreTrainedModel], check: Callable[[], object] = lambda: None) -> PreTrainedModel:
    """A model from the entry of a key, once `check` has found what it was made of unchanged, else what `make` returns, kept if that can be."""
    most = limit()
    if most == 0 or missing_kernels() is not None:
        return make()
    try:
        entry = cache_folder() / "few-bits" / key()
    except RuntimeError:  # there is no home
        return make()
    found = _read(entry)
    if found is not None:
        check()
        found.config._name_or_path = name
        return found
    model = make()
    try:
        _keep(entry, model, most)
    except OSError as error:
        logger.info("%s is not kept for the next time: %s", name, error)
    return model


def limit() -> int:
    """How many bytes all entries may take. Raises UserError where the environment variable is no such number."""
    told = os.environ.get(LIMIT, "8")
    try:
        most = float(told) * 2**30
    except ValueError:
        most = -1
    if not 0 <= most < math.inf:
        raise UserError(f"{LIMIT} must be a number of GiB, 0 or more, got {told!r}")
    return int(most)


def key(folder: Path, weights: str) -> str:
    """The name of the entry of a folder in so many bits."""
    told = hashlib.sha256(rounding())
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json"):
        path = folder / name
        told.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None}\n".encode())
    listed = (read_manifest(folder) or {"files": {}})["files"]
    for path in sorted(each for each in folder.iterdir() if each.suffix in WEIGHTS and each.is_file()):
        if path.name in listed:
            told.update(f"{path.name} {listed[path.name]['sha256']}\n".encode())
        else:
            stat = path.stat()
            told.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return f"{weights}-{told.hexdigest()[:40]}"


def file_key(file: Path) -> str:
    """The name of the entry of a GGUF file in 4 bits: by its path, size and time."""
    stat = file.stat()
    told = hashlib.sha256(rounding() + f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    return f"int4-{told.hexdigest()[:40]}"


@cache
def rounding() -> bytes:
    """The hash of the code that says what levels, scales and packs a weight gets, and how they are laid out."""
    files = [Path(module.__file__) for module in (four_bits, quantised_linear, calibrate, quantise, few_bits_folder)]
    files += [path for package in (native, gguf) for path in sorted(Path(package.__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).digest()


def _made(model: PreTrainedModel, weights: str) -> PreTrainedModel:
    quantise.quantise(model, weights)
    return model


def _verify_unread(folder: Path) -> None:
    """Check a folder whose weights are not read by what its manifest says of its other files, and of weights where they may have changed since it was written."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        written = manifest.stat().st_mtime_ns  # it is written last
        verify(folder, [path.name for path in folder.iterdir() if path.suffix in WEIGHTS and path.stat().st_mtime_ns <= written])


def _read(entry: Path) -> PreTrainedModel | None:
    """The model of an entry, which counts as used; None where there is none, and where it is damaged, which a warning says: it is removed."""
    try:
        if not (entry / MANIFEST).is_file():
            return None
    except PermissionError:  # the folder is another user's
        return None
    try:
        model = read_few_bits(entry)
    except (UserError, OSError) as error:
        if (entry / MANIFEST).is_file():  # not removed by another process in the meantime
            logger.warning("what was kept in the cache cannot be used and is made anew (%s)", error)
        _remove(entry)
        return None
    try:
        os.utime(entry)
    except OSError:  # a folder that cannot be written
        pass
    return model


def _keep(entry: Path, model: PreTrainedModel, most: int) -> None:
    """Write an entry aside, give it its name, and make room for it. Raises OSError where the folder cannot be written, or is full."""
    size = size_in_few_bits(model)
    if size > most:
        raise OSError(f"it takes {size:,} bytes, and {LIMIT} allows {most:,}")
    entry.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(entry.parent).free < 2 * size:
        raise OSError(f"{entry.parent} is nearly full")
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=entry.parent))
    try:
        write_few_bits(partial, model, entry.name.partition("-")[0])
        write_manifest(partial)
        if entry.exists() and not (entry / MANIFEST).is_file():
            _remove(entry)  # once more: its removal was cut short
        partial.replace(entry)
    except OSError:
        if not (entry / MANIFEST).is_file():  # else another process finished the same work first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _make_room(entry, most)


def _make_room(entry: Path, most: int) -> None:
    """Remove the entries used longest ago, never `entry`, until all together take no more than `most` bytes, and what killed processes left."""
    used = {}
    for folder in entry.parent.iterdir():
        try:
            used[folder] = folder.stat().st_mtime, sum(path.stat().st_size for path in folder.iterdir())
        except OSError:  # another process removes it
            continue
        if folder.name.startswith(PARTIAL):
            began, _ = used.pop(folder)
            if began < time.time() - STALE:
                shutil.rmtree(folder, ignore_errors=True)
    total = sum(size for _, size in used.values())
    for folder in sorted(used.keys() - {entry}, key=lambda folder: used[folder]):
        if total <= most:
            break
        total -= used[folder][1]
        _remove(folder)


def _remove(entry: Path) -> None:
    """Remove an entry; what a process has mapped of it stays for that."""
    try:
        (entry / MANIFEST).unlink(missing_ok=True)  # cut short, it is none
    except OSError:
        return
    shutil.rmtree(entry, ignore_errors=True)
