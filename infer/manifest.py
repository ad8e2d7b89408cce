"""The manifest of a checkpoint: what each file must be, written last, checked before a weight is used."""

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

from ..data.refusal import UserError

MANIFEST = "manifest.json"
FORMAT = 1
# Text that a person may edit by hand (a sampling default, a template): a change is worth a warning, no more.
EDITABLE = {".json", ".jinja", ".md", ".txt", ".yaml", ".jsonl"}


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(text: str | None) -> str | None:
    """Sixteen hexadecimal digits that tell two texts (templates, data descriptions) apart."""
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]


def seal(folder: Path, **facts: Any) -> None:
    """Write the manifest of everything in `folder`, after making each file readable and durable.

    `facts` (step, base, paradigm, template, data, ...) are kept beside the files' bytes and sha256. The manifest itself
    appears at once, under its final name: a folder that has one is complete.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    for path in files:
        _give_default_mode(path)
        _flush_to_disk(path)
    listed = {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(json.dumps({"format": FORMAT, **facts, "files": listed}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _flush_to_disk(partial)
    partial.replace(folder / MANIFEST)
    _flush_to_disk(folder)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of `folder`, or None where there is none (a checkpoint made elsewhere)."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a manifest ({error}): restore it, or delete it to load the folder unchecked") from None
    return manifest


def verify(folder: Path) -> dict[str, Any] | None:
    """Check `folder` against its manifest and return it; None where there is none.

    A missing file, or a changed one that is not text, raises UserError naming the file; a text edited by hand
    warns. Files that the manifest does not list are ignored.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items() if manifest else ():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing, though {MANIFEST} lists it: restore the file or use another checkpoint")
        if path.stat().st_size == expected["bytes"] and sha256(path) == expected["sha256"]:
            continue
        if path.suffix in EDITABLE and not name.endswith(".index.json"):
            warnings.warn(f"{path} was edited after the checkpoint was saved", stacklevel=2)
        else:
            raise UserError(
                f"{path} is damaged: its sha256 or size differs from {MANIFEST}; restore the file or use another checkpoint"
            )
    return manifest


def _give_default_mode(path: Path) -> None:
    """Undo safetensors' mode 0600, so that a server under another user can read the weights."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
