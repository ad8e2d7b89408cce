"""Make ready what other commands read: the embedded default model in the cache folder, the rows of records, or records of several tasks out of triplets, and back.

seodang prepare
seodang prepare --data triplets.jsonl --packing
seodang prepare --tasks_from triplets.jsonl --output tasks.jsonl
seodang prepare --triplets_from tasks.jsonl --output triplets.jsonl
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from seodang.data.columns import Columns
from seodang.data.errors import UserError
from seodang.data.files.sources import records_of
from seodang.data.surrogates import refuse_surrogates
from seodang.data.tasks.triplets import group_triplets, task_triplets
from seodang.infer.checkpoint.default_model import default_model
from seodang.recipes.options.outputs import empty, open_output
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.record import NEVER
from seodang.recipes.preparing.command import RowsToPrepare, prepare_rows


@dataclass
class PrepareOptions(RowsToPrepare):
    """What is made of what, and where it goes."""

    tasks_from: list[str] | None = field(default=None, metadata={"help": "Triplets {instruction, input, output, name}: those of an input become one record."})
    triplets_from: list[str] | None = field(default=None, metadata={"help": "Records {input, tasks}: each task becomes a triplet."})
    output: str | None = field(default=None, metadata={"help": "JSON Lines file of the records that are made."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data and (self.tasks_from or self.triplets_from or self.output):
            raise UserError("data is prepared in the cache folder, or --row_cache: leave out --output, --tasks_from and --triplets_from")
        if self.data and self.row_cache == NEVER:
            raise UserError("row_cache never keeps no rows, and --data prepares them on disk: name a folder, or leave it out")
        if self.tasks_from and self.triplets_from:
            raise UserError("tasks_from and triplets_from turn records into one another: give one of them")
        if bool(self.output) != bool(self.tasks_from or self.triplets_from):
            raise UserError("give --output, the file of the records that are made" if not self.output else "output is of records: give --tasks_from or --triplets_from too")


@command
def main(argv: list[str] | None = None) -> int:
    (options,) = parse(argv, PrepareOptions, prog="seodang prepare", description=__doc__)
    if options.data:
        return prepare_rows(options)
    if options.output is None:
        print(default_model())
        return 0
    if options.tasks_from:
        found = group_triplets(located(options.tasks_from, "triplet", options))
        records, told = found.records, found.lines()
    else:
        read = [*located(options.triplets_from, "tasks", options)]
        records = [triplet for where, record in read for triplet in triplets_at(where, record)]
        told = [f"records         {len(read):,} with {len(records):,} tasks"]
    if not records:
        raise UserError(f"{', '.join(options.tasks_from or options.triplets_from)}: there are no records")
    with open_output(options.output) as output:
        empty(output)
        output.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    print(*told, f"written         {len(records):,} records to {options.output}", sep="\n")
    return 0


def located(sources: Iterable[str], shape: str, options: PrepareOptions) -> Iterable[tuple[str, Any]]:
    """The records of all sources, each with its place, the columns under the keys of their shape."""
    how = options.reading()
    columns = Columns(dict(how["columns"]), (shape,), dict.fromkeys(how["columns"], ()))
    for source in sources:
        for where, record in records_of(source, how["encoding"], columns.named.values()):
            refuse_surrogates(record, where)
            yield where, columns.taken(record)[0] if isinstance(record, Mapping) else record
    columns.refuse_absent()


def triplets_at(where: str, record: Any) -> list[dict[str, Any]]:
    """The triplets of a record. Raises UserError with its place."""
    try:
        if not isinstance(record, Mapping):
            raise UserError(f"a record must be an object of keys and values, got {type(record).__name__}")
        return [*task_triplets(record)]
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
