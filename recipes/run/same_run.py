"""Whether a file's answers are those that are asked for now: the same prompts, of the same model, by the same settings."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seodang.data.errors import UserError
from seodang.infer.checkpoint.manifest import MANIFEST, fingerprint, sha256
from seodang.recipes.prompts.prompt_files import Prompts

SHOWN = 100  # characters of a value
ANEW = "use the same, name another --output, or begin anew, over them, with --resume false"


def header_of(identity: Mapping[str, Any], asked: Prompts, each: int) -> dict[str, Any]:
    """What a run is known by: the options that decide its answers, and its prompts."""
    return header_with(identity, len(asked.prompts), prompts_fingerprint(asked, len(asked.prompts)), each)


def header_with(identity: Mapping[str, Any], prompts: int, fingerprint: str, each: int) -> dict[str, Any]:
    """The same, of so many prompts of that fingerprint."""
    options = json.loads(json.dumps(identity, ensure_ascii=False, default=str))
    return {"options": options, "prompts": prompts, "fingerprint": fingerprint, "answers_each": each}


def prompts_fingerprint(asked: Prompts, count: int) -> str:
    """What tells so many first prompts, and their numbers, from others."""
    found = PromptsFingerprint()
    for index, (number, prompt) in enumerate(zip(asked.numbers[:count], asked.prompts[:count])):
        found.add(number, prompt, asked.prefixes.get(index, ""))
    return found.told()


class PromptsFingerprint:
    """The fingerprint of prompts that come one by one."""

    def __init__(self) -> None:
        self._found = hashlib.sha256()

    def add(self, number: int, prompt: Any, prefix: str) -> None:
        self._found.update(json.dumps([number, prompt, *([prefix] if prefix else [])]).encode() + b"\n")

    def told(self) -> str:
        return self._found.hexdigest()[:16]


def refuse_other_run(path: Path, then: Mapping[str, Any], now: Mapping[str, Any], asked: Prompts) -> None:
    """Raise UserError, naming what differs, where a file's answers were asked in another way. There may be further prompts behind those of then."""
    refuse_other_options(path, then, now)
    count = then.get("prompts") or 0
    if count > now["prompts"]:
        raise UserError(f"{path} has answers to {count} prompts, and now there are {now['prompts']}: {ANEW}")
    if then.get("fingerprint") != prompts_fingerprint(asked, count):
        raise UserError(f"{path} has answers to other prompts than those of now: {ANEW}")


def refuse_other_options(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """The same of the options alone, and of how many answers a prompt has."""
    before, after = then.get("options") or {}, now["options"]
    if different := [name for name in {**before, **after} if before.get(name) != after.get(name)]:
        told = "; ".join(f"{name if ' ' in name else f'--{name}'} {shown(before.get(name))}, now {shown(after.get(name))}" for name in different)
        raise UserError(f"{path} has answers to {told}: {ANEW}")
    if then.get("answers_each") != now["answers_each"]:
        raise UserError(f"{path} has {then.get('answers_each')} answers to each prompt, now {now['answers_each']}: {ANEW}")


def shown(value: Any) -> str:
    """A value in an error."""
    if value is None:
        return "not given"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def contents_of(name: str) -> str | None:
    """A fingerprint of a file, or of a checkpoint's folder: of its manifest where it has one, else of its files' sizes and times; None for a name of neither."""
    place = Path(os.path.expanduser(name))
    if os.path.isfile(place):
        return sha256(place)[:16]
    if not os.path.isdir(place):
        return None
    if (place / MANIFEST).is_file():
        return fingerprint((place / MANIFEST).read_text(encoding="utf-8"))
    return fingerprint(json.dumps([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(place.iterdir()) if path.is_file()]))
