"""The manifest of a checkpoint: what each file must be, written last, checked before a weight is used."""

import hashlib
import json
import os
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ...data.errors import UserError

MANIFEST = "manifest.json"
UNFINISHED = "manifest.unfinished.json"  # in a folder that is being written file by file: the names of what was and of what will be there
FORMAT = 1
# Text that a person may edit by hand (a sampling default, a template): a change is worth a warning, no more.
EDITABLE = {".json", ".jinja", ".md", ".txt", ".yaml", ".jsonl", ""}  # LICENSE and Ollama's Modelfile have no ending


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(text: str | Mapping[str, str] | None) -> str | None:
    """Sixteen hexadecimal digits that tell two texts (templates, several of them by their names too, data descriptions) apart."""
    return None if text is None else hashlib.sha256((text if isinstance(text, str) else repr(text)).encode()).hexdigest()[:16]


def fingerprint_of(lines: Iterable[str]) -> str:
    """The fingerprint of a text that is told line by line, of which no more is held."""
    told = hashlib.sha256()
    for number, line in enumerate(lines):
        told.update((f"\n{line}" if number else line).encode())
    return told.hexdigest()[:16]


def write_manifest(folder: Path, **facts: Any) -> None:
    """Write the manifest of everything in `folder`, after making each file readable and durable.

    `facts` (step, base, paradigm, template, data, ...) are kept beside the files' bytes and sha256. The manifest itself
    appears at once, under its final name: a folder that has one is complete.
    """
    partial = folder / (MANIFEST + ".partial")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST and p != partial)
    partial.write_text("", encoding="utf-8")
    mode = partial.stat().st_mode & 0o777  # what the umask gives a new file here
    for path in files:
        path.chmod(mode)  # safetensors' own is 0600: a server under another user could not read the weights
        flush_to_disk(path)
    listed = {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
    partial.write_text(json.dumps({"format": FORMAT, **facts, "files": listed}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    flush_to_disk(partial)
    partial.replace(folder / MANIFEST)
    flush_to_disk(folder)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of `folder`, or None where there is none (a checkpoint made elsewhere).

    Raises UserError for a folder whose writing was cut short, and for a manifest that cannot be read or names what does not lie in the folder.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / UNFINISHED).is_file():
            raise UserError(f"{folder} is half written, its writing was cut short: save into it again, or use a checkpoint")
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        _ = [(expected["bytes"], expected["sha256"]) for expected in manifest["files"].values()]  # they are there
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a manifest ({error}): restore it, or delete it to load the folder unchecked") from None
    for name in manifest["files"]:
        refuse_outside(folder, name)
    return manifest


def refuse_outside(folder: Path, name: str) -> None:
    """Raise UserError for a name in a folder's manifest that is absolute, leads up, or goes through a link: it would have files of others read and copied."""
    parts = PurePosixPath(name).parts
    outside = not parts or ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    if outside or any(folder.joinpath(*parts[: count + 1]).is_symlink() for count in range(len(parts))):
        raise UserError(f"{folder / MANIFEST} names {name!r}, which is not a file of this folder: copy the folder with its links followed, or use another checkpoint")


def warn_of_other_template(folder: Path, template: str | Mapping[str, str] | None) -> None:
    """Warn where a chat template is not the one by which the model of a folder was trained, as the fingerprint in its manifest tells."""
    trained = (read_manifest(folder) or {}).get("template") if folder.is_dir() else None
    if trained is not None and template is not None and (now := fingerprint(template)) != trained:
        warnings.warn(
            f"{folder} was trained by another chat template than the one in use (fingerprints {trained} and {now}): prompts are not what they were in training; "
            "leave --chat_template out, or restore the folder's own", stacklevel=3,
        )  # fmt: skip


def verify(folder: Path, by_size: Collection[str] = ()) -> dict[str, Any] | None:
    """Check `folder` against its manifest and return it; None where there is none.

    A missing file, or a changed one that is not text, raises UserError naming the file; a text edited by hand
    warns. Files that the manifest does not list are ignored; of those named in `by_size` the size alone is compared.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items() if manifest else ():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing, though {MANIFEST} lists it: restore the file or use another checkpoint")
        if path.stat().st_size == expected["bytes"] and (name in by_size or sha256(path) == expected["sha256"]):
            continue
        if path.suffix in EDITABLE and not name.endswith(".index.json"):
            warnings.warn(f"{path} was edited after the checkpoint was saved", stacklevel=2)
        else:
            raise UserError(
                f"{path} is damaged: its sha256 or size differs from {MANIFEST}; restore the file or use another checkpoint"
            )
    return manifest


def flush_to_disk(path: Path) -> None:
    """Have the system put on the disk what a file holds, or which files a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
