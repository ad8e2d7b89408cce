"""A shard: the rows of some records in an Arrow file, and beside it what is known of them."""

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
from transformers import PreTrainedTokenizerBase

from ..accounting import digest_of, short_digest
from ..files.sources import Example, at_a_time
from ..labels import Counts, Labeller, Row
from ..template import unchanged

FORMAT = 1  # of the files, and of how records become rows: where either changes it is raised, and all is prepared anew
AT_A_TIME = 500  # rows that are held before they are written
SCHEMA = pyarrow.schema([("input_ids", pyarrow.list_(pyarrow.int32())), ("labels", pyarrow.list_(pyarrow.int32()))])
Facts = dict[str, Any]  # of a shard, as its JSON file holds them


@dataclass
class ShardCounts(Counts):
    """Counts that also say of each record that is kept which rows it has and where it stands, so that doubled ones are found among all shards."""

    digests: array = field(default_factory=lambda: array("q"), repr=False, compare=False)  # of the rows and of the place of each, in turn

    def read_before(self, rows: Sequence[Mapping[str, Any]], where: str) -> bool:
        self.digests.extend((digest_of(rows), place_digest(where)))
        return False


@dataclass(frozen=True)
class Maker:
    """What makes shards of records in a folder; the settings are those of `Labeller`."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    labelling: Mapping[str, Any]
    alive: Callable[[], None] = lambda: None  # called from time to time

    def make(self, number: int, records: str, examples: Sequence[Example]) -> Facts:
        """Write a shard's files, its facts last, and return these; `records` is the digest of the examples.

        Raises UserError for a record that is refused, OSError where nothing can be written. Until all is written the shard is not there.
        """
        labeller, counts = Labeller(self.tokenizer, **self.labelling), ShardCounts()
        name = shard_name(number)
        longest = highest = 0
        with Aside(self.folder / f"{name}.arrow") as aside, unchanged(self.tokenizer):
            with aside.path.open("wb") as file, pyarrow.ipc.new_stream(file, SCHEMA) as writer:
                rows = (row for example in examples for row in labeller.rows(example, counts))
                for some in at_a_time(rows, AT_A_TIME):
                    self.alive()
                    longest = max(longest, *(len(row["input_ids"]) for row in some))
                    highest = max(highest, *(max(row["input_ids"]) for row in some))
                    writer.write_batch(_batch(some))
        with Aside(self.folder / f"{name}.seen") as aside:
            aside.path.write_bytes(counts.digests.tobytes())
        facts = {
            "format": FORMAT, "records": records, "longest": longest, "highest": highest, "counts": counts_as_json(counts),
            "files": {each: sealed(self.folder / each) for each in (f"{name}.arrow", f"{name}.seen")},
        }  # fmt: skip
        write_facts(self.folder / f"{name}.json", facts)
        return facts


class Aside:
    """A file's place until it is whole: written under another name, and at the end of the block made durable and named as it is called."""

    def __init__(self, path: Path):
        self.final, self.path = path, path.with_name(f"{path.name}.{os.getpid()}.partial")

    def __enter__(self) -> "Aside":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            self.path.unlink(missing_ok=True)
            return
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(self.final)


def _batch(rows: Sequence[Row]) -> pyarrow.RecordBatch:
    return pyarrow.record_batch([_lists([row[name] for row in rows]) for name in SCHEMA.names], schema=SCHEMA)


def _lists(values: Sequence[Sequence[int]]) -> pyarrow.Array:
    """Lists as Arrow has them, from their bytes: `pyarrow.array` would import pandas, and take three times as long."""
    flat, ends = array("i"), array("i", [0])
    for each in values:
        flat.extend(each)
        ends.append(len(flat))
    inner = pyarrow.Array.from_buffers(pyarrow.int32(), len(flat), [None, pyarrow.py_buffer(flat)])
    return pyarrow.Array.from_buffers(pyarrow.list_(pyarrow.int32()), len(values), [None, pyarrow.py_buffer(ends)], children=[inner])


def shard_name(number: int) -> str:
    return f"rows-{number:05}"


def place_digest(where: str) -> int:
    """The digest of where a record stands."""
    return short_digest(where.encode(errors="surrogatepass"))


def write_json(path: Path, value: Any) -> None:
    """Write a file of JSON, whole or not at all."""
    with Aside(path) as aside:
        aside.path.write_text(json.dumps(value), encoding="utf-8")


def read_json(path: Path) -> Any:
    """What a file of JSON says; None where it is not there, or says nothing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_facts(path: Path, facts: Any) -> None:
    """Write a file of JSON with its own digest, whole or not at all."""
    write_json(path, {"sha256": _digest(facts), "facts": facts})


def read_facts(path: Path) -> Any:
    """What such a file says; None where it is not there, or says something else than was written."""
    found = read_json(path)
    whole = isinstance(found, dict) and found.keys() == {"sha256", "facts"} and found["sha256"] == _digest(found["facts"])
    return found["facts"] if whole else None


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def sealed(path: Path) -> dict[str, Any]:
    """A file's bytes and its sha256, by which it is known to be whole."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def damage(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str:
    """What is wrong with the first of some files that is not as it was sealed, in words; nothing where all are whole."""
    for name, seal in files.items():
        try:
            if (size := (folder / name).stat().st_size) != seal["bytes"]:
                return f"{name} has {size:,} bytes instead of {seal['bytes']:,}"
            if sealed(folder / name) != dict(seal):
                return f"{name} has other bytes than were written (its hash differs)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return ""


def counts_as_json(counts: Counts) -> dict[str, Any]:
    """Counts without what is only remembered."""
    known = {name: getattr(counts, name) for name in COUNTED}
    return {name: [*count.items()] if isinstance(count, Counter) else count for name, count in known.items()}


def counts_of_json(told: Mapping[str, Any]) -> Counts:
    """The counts that `counts_as_json` told of."""
    counts = Counts()
    for name, count in told.items():
        pairs = isinstance(count, list)
        setattr(counts, name, Counter({tuple(key) if isinstance(key, list) else key: number for key, number in count}) if pairs else count)
    return counts


COUNTED = [name for name, value in asdict(Counts(remembers=None)).items() if isinstance(value, Counter | int)]
