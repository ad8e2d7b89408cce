"""Whether a file's answers are those that are asked for now: the same prompts, of the same model, by the same settings."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seodang.data.errors import UserError
from seodang.infer.checkpoint.manifest import MANIFEST, fingerprint, sha256
from seodang.recipes.prompts.prompt_files import Prompts

SHOWN = 100  # characters of a value


def header_of(identity: Mapping[str, Any], asked: Prompts, each: int) -> dict[str, Any]:
    """What a run is known by: the options that decide its answers, and its prompts."""
    options = json.loads(json.dumps(identity, ensure_ascii=False, default=str))
    return {"options": options, "prompts": len(asked.prompts), "fingerprint": prompts_fingerprint(asked, len(asked.prompts)), "answers_each": each}


def prompts_fingerprint(asked: Prompts, count: int) -> str:
    """What tells so many first prompts, and their numbers, from others."""
    found = hashlib.sha256()
    for index, (number, prompt) in enumerate(zip(asked.numbers[:count], asked.prompts[:count])):
        prefix = [asked.prefixes[index]] if index in asked.prefixes else []
        found.update(json.dumps([number, prompt, *prefix]).encode() + b"\n")
    return found.hexdigest()[:16]


def refuse_other_run(path: Path, then: Mapping[str, Any], now: Mapping[str, Any], asked: Prompts) -> None:
    """Raise UserError, naming what differs, where a file's answers were asked in another way. There may be further prompts behind those of then."""
    anew = "use the same, name another --output, or begin anew, over them, with --resume false"
    before, after = then.get("options") or {}, now["options"]
    if different := [name for name in {**before, **after} if before.get(name) != after.get(name)]:
        told = "; ".join(f"{name if ' ' in name else f'--{name}'} {shown(before.get(name))}, now {shown(after.get(name))}" for name in different)
        raise UserError(f"{path} has answers to {told}: {anew}")
    if then.get("answers_each") != now["answers_each"]:
        raise UserError(f"{path} has {then.get('answers_each')} answers to each prompt, now {now['answers_each']}: {anew}")
    count = then.get("prompts") or 0
    if count > now["prompts"]:
        raise UserError(f"{path} has answers to {count} prompts, and now there are {now['prompts']}: {anew}")
    if then.get("fingerprint") != prompts_fingerprint(asked, count):
        raise UserError(f"{path} has answers to other prompts than those of now: {anew}")


def shown(value: Any) -> str:
    """A value in an error."""
    if value is None:
        return "not given"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def contents_of(name: str) -> str | None:
    """A fingerprint of a file, or of a checkpoint's folder: of its manifest where it has one, else of its files' sizes and times; None for a name of neither."""
    place = Path(name).expanduser()
    if place.is_file():
        return sha256(place)[:16]
    if not place.is_dir():
        return None
    if (place / MANIFEST).is_file():
        return fingerprint((place / MANIFEST).read_text(encoding="utf-8"))
    return fingerprint(json.dumps([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(place.iterdir()) if path.is_file()]))
