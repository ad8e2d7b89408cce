"""Checkpoints that survive a kill at any moment: written aside, sealed, renamed, and only then the old ones go."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.errors import UserError
from ...infer.checkpoint.manifest import MANIFEST, UNFINISHED, fingerprint, read_manifest, refuse_outside, verify, write_manifest

STAGING = ".saving"  # what is being written; never looked at when resuming, cleared by the next save
SPARE = "(or lower --save_total_limit) and resume, the previous checkpoint is intact"  # the remedy for a full disk in training
_STEP = re.compile(r"checkpoint-(\d+)")


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name, -1 where it is not one."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else -1


def complete_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run whose manifest stands, oldest first."""
    found = [p for p in run.glob("checkpoint-*") if step_of(p) >= 0 and (p / MANIFEST).is_file()] if run.is_dir() else []
    return sorted(found, key=step_of)


def find_resume(run: Path, resume: str) -> Path | None:
    """The checkpoint to resume from, checked against its manifest; None to start anew.

    `resume` is "auto" (the newest complete one, if any), "never" or a checkpoint's folder. A damaged checkpoint raises UserError
    naming the file: going back to an older one is the user's decision.
    """
    if resume == "never":
        return None
    finish_rename(run if resume == "auto" else Path(resume).parent)
    if resume == "auto":
        found = complete_checkpoints(run)
        if not found:
            return None
        folder = found[-1]
    else:
        folder = Path(resume)
        if not (folder / MANIFEST).is_file():
            raise UserError(f"--resume {resume}: no complete checkpoint there (no {MANIFEST}); use auto, never or a checkpoint-N folder")
    try:
        verify(folder)
    except UserError as error:
        older = [str(p) for p in complete_checkpoints(folder.parent) if step_of(p) < step_of(folder)]
        remedy = f"--resume {older[-1]} goes back to the one before" if older else "--resume never starts anew"
        raise UserError(f"{error}; {remedy}") from None
    return folder


def rotate(run: Path, limit: int | None, keep: str | None) -> None:
    """Delete the oldest complete checkpoints beyond `limit`; the newest and `keep` (the best) always stay."""
    found = complete_checkpoints(run)
    spare = [p for p in found[:-1] if keep is None or p.resolve() != Path(keep).resolve()]
    surplus = len(found) - limit if limit and limit > 0 else 0
    for folder in spare[: max(surplus, 0)]:
        (folder / MANIFEST).unlink()  # a deletion cut short must not look like a checkpoint
        shutil.rmtree(folder, ignore_errors=True)


def start_staging(run: Path) -> Path:
    """An empty folder beside the checkpoints to write the next one in."""
    finish_rename(run)
    aside = run / STAGING
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def publish(written: Path, final: Path, **facts) -> None:
    """Seal a written checkpoint and give it its name, in one rename; killed before, it gets it from `finish_rename`."""
    write_manifest(written, **facts)
    if final.exists():  # a checkpoint of the same step from before a resume
        final.replace(written.parent / "former")
    written.replace(final)
    shutil.rmtree(written.parent, ignore_errors=True)


def finish_rename(run: Path) -> None:
    """Give a checkpoint that was sealed aside its name, where the process was killed between the two. All processes may do so at once."""
    for folder in (run / STAGING).glob("checkpoint-*"):
        final = run / folder.name
        if (folder / MANIFEST).is_file() and not (final / MANIFEST).is_file():
            with suppress(OSError):  # another process was faster, or half a checkpoint has the name
                folder.replace(final)


def publish_into(written: Path, final: Path, **facts) -> None:
    """Seal what was written aside and move it into a folder that holds other things too (logs, checkpoints).

    What was published there before goes first, all of it; the manifest comes last. In between the folder is marked as half written.
    """
    write_manifest(written, **facts)
    final.mkdir(parents=True, exist_ok=True)
    names = sorted((p.relative_to(written).as_posix() for p in written.rglob("*") if p.is_file()), key=lambda name: name == MANIFEST)
    former = _published(final)
    write_atomically(final / UNFINISHED, json.dumps(sorted({*former, *names} - {MANIFEST})))
    for name in (MANIFEST, *former):
        (final / name).unlink(missing_ok=True)
    for name in names:
        (final / name).parent.mkdir(parents=True, exist_ok=True)
        (written / name).replace(final / name)
    (final / UNFINISHED).unlink()
    shutil.rmtree(written.parent, ignore_errors=True)


def _published(folder: Path) -> list[str]:
    """The names of what was published into a folder, were it half."""
    unfinished = folder / UNFINISHED
    if (folder / MANIFEST).is_file() or not unfinished.is_file():
        return list((read_manifest(folder) or {"files": ()})["files"])
    names = json.loads(unfinished.read_text(encoding="utf-8"))
    for name in names:
        refuse_outside(folder, name)
    return names


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def reserve_space(needed: int, run: Path, remedy: str = SPARE) -> Iterator[None]:
    """Refuse, before and while writing, to save where the disk has no room; what was begun is removed.

    `needed` is in bytes; `remedy` says what to do instead of freeing some room. The previous checkpoint is not touched.
    """
    require_space(needed, run, remedy)
    with explain_full_disk(needed, run, remedy):
        yield


def require_space(needed: int, run: Path, remedy: str = SPARE) -> None:
    """Refuse to save `needed` bytes where the disk has no room."""
    run.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(run).free
    if free < needed:
        raise UserError(_no_room(run, needed, free, remedy))


@contextmanager
def explain_full_disk(needed: int, run: Path, remedy: str = SPARE) -> Iterator[None]:
    """Raise a UserError in place of the error of a disk that fills up; what was begun is removed."""
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _says_full(error)
        if not full:
            raise
        shutil.rmtree(run / STAGING, ignore_errors=True)
        raise UserError(_no_room(run, needed, shutil.disk_usage(run).free, remedy)) from error


def _says_full(error: Exception) -> bool:
    """torch and safetensors report a full disk in words of their own."""
    chain = " ".join(str(e) for e in (error, error.__cause__, error.__context__) if e is not None)
    return any(sign in chain for sign in (os.strerror(errno.ENOSPC), "os error 28", "StorageFull", "unexpected pos", "file write failed"))


def _no_room(run: Path, needed: int, free: int, remedy: str) -> str:
    return f"the disk is full: a checkpoint needs {needed:,} bytes and {run} has {free:,} free; free some room {remedy}"


# Whole models put in their place at once


def copy_model(source: Path, target: Path) -> None:
    """Copy a sealed checkpoint into a folder that may hold other things; its manifest comes last."""
    made = verify(source)
    with reserve_space(sum(each["bytes"] for each in made["files"].values()), target):
        written = start_staging(target) / "final"
        for name in made["files"]:
            (written / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, written / name)
        publish_into(written, target, **{name: value for name, value in made.items() if name not in ("format", "files")})


def save_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path, **facts: Any) -> None:
    """Save a model with its adapter merged into its weights as a whole checkpoint; the model is changed."""
    generation = model.generation_config
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    merged.generation_config = generation
    with reserve_space(sum(p.numel() * p.element_size() for p in merged.parameters()), target):
        written = start_staging(target) / "final"
        merged.save_pretrained(written)
        tokenizer.save_pretrained(written)
        publish_into(written, target, paradigm="causal", template=fingerprint(tokenizer.chat_template), **facts)
