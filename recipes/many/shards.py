"""Many prompts in shards: what of them is answered, and how their answers become one file.

While a run is under way, `answers.jsonl.shards` lies beside `answers.jsonl`:

    manifest.json         what the run was asked; written last, so that a folder which has it has all its prompts
    prompts-00007.jsonl   the prompts of a shard, as a worker gets them
    answers-00007.jsonl   their answers, all of them: written aside, and renamed
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from seodang.data.errors import UserError
from seodang.infer.checkpoint.manifest import flush_to_disk
from seodang.recipes.prompts.prompt_files import Asked, Prompts
from seodang.recipes.run.journal import lines_in, partial_of, writing
from seodang.recipes.run.same_run import PromptsFingerprint

FORMAT = "shards of seodang generate"
SAID = {"options": dict, "prompts": int, "fingerprint": str, "answers_each": int, "shard_rows": int, "references": int, "checked": bool}  # by a manifest


@dataclass
class Facts:
    """What is known of prompts once all of them have been read."""

    prompts: int = 0
    references: int = 0
    translated: bool = False
    fingerprint: str = ""


@dataclass(frozen=True)
class Shard:
    """Prompts that lie behind one another: the shard's number, the index of its first prompt among all, and how many there are."""

    number: int
    first: int
    count: int


class Shards:
    """The folder of a run's shards, of so many rows each."""

    def __init__(self, folder: Path, rows: int):
        self.folder, self.rows = folder, rows

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What the run was asked; None where there is none whose prompts are all here. Raises UserError for a file that is something else."""
        path = self._at("manifest.json")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.pop("format") != FORMAT or {name: type(value) for name, value in found.items()} != SAID:
                raise ValueError
            return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{path} is no manifest of shards: move {self.folder} away, or begin anew, over it, with --resume false") from None

    def begin(self, prompts: Iterable[tuple[int, Asked]], manifest: Callable[[Facts], Mapping[str, Any]]) -> Facts:
        """Take the prompts, each with its number, into the folder, where there are no others then; the manifest is made of what they turn out to be."""
        self.clear()
        facts = Facts()
        for path, data in self._parts(prompts, facts):
            self._write(path, data)
        self.say(manifest(facts))
        return facts

    def found(self, prompts: Iterable[tuple[int, Asked]]) -> tuple[Facts, Path | None]:
        """What prompts are, and the first file of the folder that does not hold them as they are, if any."""
        facts, other = Facts(), None
        for path, data in self._parts(prompts, facts):
            if other is None and not holds(path, data):
                other = path
        return facts, other

    def _parts(self, prompts: Iterable[tuple[int, Asked]], facts: Facts) -> Iterator[tuple[Path, bytes]]:
        """The file of each shard's prompts with what it holds, while the facts of all are gathered."""
        rows = counted(prompts, facts)
        for number in range(1 << 31):
            if not (data := b"".join(as_line(*row) for row in islice(rows, self.rows))):
                return
            yield self._prompts(number), data

    def say(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest."""
        self._write(self._at("manifest.json"), json.dumps({"format": FORMAT, **manifest}, ensure_ascii=False, indent=1).encode() + b"\n")

    def clear(self) -> None:
        """Take out what runs have put into the folder, the manifest first."""
        with writing(self.folder):
            for path in [self._at("manifest.json"), *self.folder.glob("prompts-*.jsonl*"), *self.folder.glob("answers-*.jsonl*"), self._at("joined")]:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Take the folder away: its answers are elsewhere, or there are none."""
        self.clear()
        with suppress(OSError):  # it holds what is somebody else's
            self.folder.rmdir()

    def of(self, prompts: int) -> list[Shard]:
        """The shards of so many prompts."""
        return [Shard(number, first, min(self.rows, prompts - first)) for number, first in enumerate(range(0, prompts, self.rows))]

    def is_answered(self, shard: Shard) -> bool:
        return self._answers(shard.number).exists()

    def has_answers(self) -> bool:
        """Whether any shard is answered."""
        return next(self.folder.glob("answers-*.jsonl"), None) is not None

    def prompts(self, shard: Shard) -> bytes:
        """The prompts of a shard, a line each."""
        return self._prompts(shard.number).read_bytes()

    def numbers(self, shard: Shard) -> list[int]:
        """The numbers by which whoever gave the prompts of a shard finds them."""
        return [json.loads(line)["number"] for line in self.prompts(shard).splitlines()]

    def answered(self, shard: Shard, lines: bytes) -> None:
        """Keep the answers of a shard, all of them."""
        self._write(self._answers(shard.number), lines)

    def take_over(self, path: Path, shards: Iterable[Shard], each: int, unit: str) -> None:
        """Keep what a joined file has of these shards, with `each` answers a prompt; not those of which a prompt ended in an error."""
        with open(path, "rb") as joined:
            lines = (line for _, line in lines_in(joined))
            for shard in shards:
                own = [*islice(lines, shard.count * each)]
                told = self._told(own, shard, each, unit)
                if told is not None and all(line["error"] is None for line in told):
                    self.answered(shard, b"".join(own))

    def join(self, path: Path, shards: Iterable[Shard], each: int, unit: str) -> int:
        """Write the answers of all shards into a file, as one step; return how many prompts ended in an error.

        `unit` is the key of a prompt's number in an answer. Raises UserError for a shard that has not `each` answers to each of its prompts, in their order.
        """
        partial, failed = self._at("joined"), 0
        with writing(path):
            with partial.open("wb") as joined:
                for shard in shards:
                    data = self._answers(shard.number).read_bytes()
                    told = self._told(data.splitlines(keepends=True), shard, each, unit)
                    if told is None:
                        raise UserError(f"{self._answers(shard.number)} is not what was written there: delete it, and give the same command again")
                    failed += len({line[unit] for line in told if line["error"] is not None})
                    joined.write(data)
                joined.flush()
                os.fsync(joined.fileno())
            place = Path(os.path.realpath(path))  # a link stays one
            partial.replace(place)
            flush_to_disk(place.parent)
        return failed

    def _told(self, lines: list[bytes], shard: Shard, each: int, unit: str) -> list[dict[str, Any]] | None:
        """What lines say, where they are the answers of a shard, all of them in their order; None where they are not."""
        places = [(number, choice) for number in self.numbers(shard) for choice in range(each)]
        try:
            told = [json.loads(line) for line in lines]
            found = [(line[unit], line["choice"]) for line in told if "error" in line]
        except (ValueError, KeyError, TypeError):
            return None
        return told if found == places and lines[-1].endswith(b"\n") else None

    def _at(self, name: str) -> Path:
        return self.folder / name

    def _prompts(self, number: int) -> Path:
        return self._at(f"prompts-{number:05d}.jsonl")

    def _answers(self, number: int) -> Path:
        return self._at(f"answers-{number:05d}.jsonl")

    def _write(self, path: Path, data: bytes) -> None:
        """Write a file as one step: whole, or not there."""
        partial = partial_of(path)
        with writing(path):
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            flush_to_disk(self.folder)


def holds(path: Path, data: bytes) -> bool:
    """Whether a file is there and has these bytes."""
    try:
        return path.read_bytes() == data
    except OSError:
        return False


def counted(prompts: Iterable[tuple[int, Asked]], facts: Facts) -> Iterator[tuple[int, Asked]]:
    """The same prompts, counted as they pass."""
    found = PromptsFingerprint()
    for number, asked in prompts:
        found.add(number, asked.prompt, asked.prefix)
        facts.prompts += 1
        facts.references += asked.reference is not None
        facts.translated |= asked.translated
        yield number, asked
    facts.fingerprint = found.told()


def as_line(number: int, asked: Asked) -> bytes:
    """A prompt in a shard's file."""
    told = {name: value for name, value in asdict(asked).items() if value or name == "prompt"}  # choices are of `eval`
    return json.dumps({"number": number, **told}, ensure_ascii=False).encode() + b"\n"


def prompts_in(lines: bytes, unit: str) -> Prompts:
    """The prompts of a shard's file, by numbers of what `unit` says."""
    records = [json.loads(line) for line in lines.splitlines()]
    numbers = [record.pop("number") for record in records]
    return Prompts.of([Asked(**record) for record in records], numbers, unit, [])
