"""Records made rows in a folder: shard by shard, by several processes, once for all who ask."""

import hashlib
import logging
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..accounting import DOUBLED
from ..errors import UserError
from ..files.lock import alone
from ..files.sources import Example
from ..formats import to_examples
from ..labels import Counts
from .key import rows_key
from .rows import FACTS, PACKED, PreparedRows, doubled, flaw, pack_on_disk, write_dataset_files
from .shard import FORMAT, Facts, Maker, counts_as_json, counts_of_json, damage, read_facts, shard_name, write_facts
from .workers import Workers, cores

logger = logging.getLogger(__name__)
MOST = 1 << 12  # records of a shard


def prepared_rows(
    examples: Iterable[Example | Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    packing: bool = False,
    processes: int | None = None,
    known: bool = False,
    told: Callable[[], Sequence[str]] = list,
    advance: Callable[[int], object] = lambda count: None,
    **labelling: Any,
) -> tuple[PreparedRows, bool]:
    """The rows that `prepare` makes of records or examples, with `packing` those that `pack` makes of these, on disk; and whether all were there already.

    They lie in `folder` as shards. One that is there and whole, and made of the same records, is used; one that is damaged is made again, and said.
    So a run that was killed goes on where it stopped, and of a stream of which a part has changed that part alone is made anew. Where `known`, the folder
    is named by what its rows hang on (`rows_key`, `source_key`), and a complete one is used without reading the records. The settings of `labelling` are
    those of `prepare`; shards made with others, or by another tokenizer or template, are made anew. Shards are made by so many `processes`, one a core by default, and one process prepares
    while others wait. Memory does not grow with the records but by some 80 bytes each at the end. `told` says more of the records once they are read;
    `advance` is called with how many records each shard had.

    Raises UserError for what `prepare` refuses, for the first such record; where nothing can be written; and where the process that others wait for gives
    no sign for ten minutes.
    """
    folder = Path(os.path.expanduser(folder))
    if processes is not None and processes < 1:
        raise UserError(f"num_proc must be at least 1, got {processes}")
    if known and not flaw(folder, packing):  # also where nothing may be written, and no lock laid
        return PreparedRows(folder, packing), True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = _sealed_at(folder)
        with alone(folder.with_name(f"{folder.name}.lock"), "preparing rows") as sign:
            anew = not known and _sealed_at(folder) == before  # of a stream, what another process made while this one waited is new enough
            if wrong := flaw(folder) or anew:
                if before is not None and not anew:
                    logger.warning(f"{folder}: {wrong}: prepared again")
                maker = Maker(folder, tokenizer, {"unusable": "drop", **labelling}, sign)
                _prepare(maker, _examples(examples), processes or cores(), told, advance)
            if packing and flaw(folder, packing):
                pack_on_disk(folder, labelling["max_length"])
    except OSError as error:
        raise UserError(f"rows cannot be written in {folder} ({error.strerror or error}): make room, or name another folder, --row_cache; shards that are whole are kept") from None
    return PreparedRows(folder, packing), not wrong


def _sealed_at(folder: Path) -> int | None:
    """When a folder was completed; None where it is not."""
    return (folder / FACTS).stat().st_mtime_ns if (folder / FACTS).exists() else None


def _prepare(maker: Maker, examples: Iterator[Example], processes: int, told: Callable[[], Sequence[str]], advance: Callable[[int], object]) -> None:
    """Make every shard of a folder that is not there yet, then what is known of all of them."""
    folder = maker.folder
    for stale in (FACTS, PACKED):
        (folder / stale).unlink(missing_ok=True)
    for left in folder.glob("*.partial"):  # by a process that was killed
        left.unlink(missing_ok=True)
    summary = _Summary()
    with Workers(maker, processes) as workers:
        waiting: deque[tuple[int, Callable[[], Facts]]] = deque()

        def finish() -> None:
            count, facts = waiting.popleft()
            summary.add(facts())
            maker.alive()
            advance(count)

        settings, refused = rows_key(maker.tokenizer, **maker.labelling).encode(), []
        for number, some in enumerate(_up_to_error(shards(examples), refused)):
            pickled = pickle.dumps(some, protocol=5)
            records = hashlib.sha256(settings + pickled).hexdigest()
            found = _found(folder, number, records)
            waiting.append((len(some), (lambda facts=found: facts) if found else workers.submit(number, records, pickled)))
            if len(waiting) > processes:
                finish()
        while waiting:
            finish()
        if refused:  # what records before it are refused for comes first
            raise refused[0]
    summary.counts.refuse_empty()
    _seal(folder, summary, told())


def _found(folder: Path, number: int, records: str) -> Facts | None:
    """The facts of a shard that is there, whole and of these records; one that was and is damaged is told of."""
    facts = read_facts(folder / f"{shard_name(number)}.json")
    if facts is None or facts["format"] != FORMAT or facts["records"] != records:
        return None
    if wrong := damage(folder, facts["files"]):
        logger.warning(f"{folder}: {wrong}: its {facts['counts']['records']:,} records are prepared again")
        return None
    return facts


class _Summary:
    """What the shards come to together."""

    def __init__(self) -> None:
        self.counts, self.files = Counts(remembers=None), {}
        self.shards = self.longest = self.highest = 0

    def add(self, facts: Facts) -> None:
        self.counts.merge(counts_of_json(facts["counts"]))
        self.files |= facts["files"]
        self.shards += 1
        self.longest, self.highest = max(self.longest, facts["longest"]), max(self.highest, facts["highest"])


def _seal(folder: Path, summary: _Summary, told: Sequence[str]) -> None:
    """Write what all shards come to; with this the folder is complete. What lies behind the last shard goes."""
    for stale in folder.glob("rows-*"):
        number = stale.name[len("rows-") :].partition(".")[0]
        if number.isdecimal() and int(number) >= summary.shards:
            stale.unlink()
    for stale in folder.glob("*-rows.json"), folder.glob("*-packed.json"):
        for kept in stale:
            kept.unlink()
    if same := doubled(folder, summary.shards):
        summary.counts.warned[DOUBLED] += same
    content = hashlib.sha256("".join(seal["sha256"] for seal in summary.files.values()).encode()).hexdigest()[:16]
    described = write_dataset_files(folder, [name for name in summary.files if name.endswith(".arrow")], content)
    write_facts(folder / FACTS, {
        "format": FORMAT, "shards": summary.shards, "longest": summary.longest, "highest": summary.highest, "counts": counts_as_json(summary.counts),
        "told": list(told), "files": summary.files | described,
    })  # fmt: skip


def shards(examples: Iterator[Example]) -> Iterator[list[Example]]:
    """The examples of each shard: few in the first ones, so that little work is shared evenly, and more the more there are, so that shards do not become too many."""
    number, some = 0, []
    try:
        for example in examples:
            some.append(example)
            if len(some) == shard_records(number):
                yield some
                number, some = number + 1, []
    except UserError:
        if some:  # those before the one that cannot be read
            yield some
        raise
    if some:
        yield some


def _up_to_error(parts: Iterator[list[Example]], refused: list[UserError]) -> Iterator[list[Example]]:
    """The parts, and in `refused` the error that they end in."""
    try:
        yield from parts
    except UserError as error:
        refused.append(error)


def shard_records(number: int) -> int:
    """How many records a shard has: 1,024 the first 16, twice as many the next 16, up to MOST."""
    return min(1024 << number // 16, MOST)


def _examples(records: Iterable[Example | Mapping[str, Any]]) -> Iterator[Example]:
    for number, record in enumerate(records, 1):
        if isinstance(record, Mapping):
            yield from to_examples(record, where=f"record {number}")
        else:
            yield record
