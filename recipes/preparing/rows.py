"""The rows of a command's data as they lie on disk, made there if they are not."""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from seodang.data.errors import UserError
from seodang.data.files.cache_folder import cache_folder
from seodang.data.files.sources import Example, read, source_files
from seodang.data.formats import SHAPES, Shapes
from seodang.data.prepared.key import bytes_of, rows_key, source_key, state_of
from seodang.data.prepared.rows import FACTS, PreparedRows
from seodang.data.prepared.shard import place_digest
from seodang.data.prepared.store import prepared_rows
from seodang.recipes.options.record import AUTO, NEVER, RowOptions
from seodang.recipes.options.tasks import task_lines
from seodang.recipes.options.training import drawn, record_of

LARGE = 32 << 20  # bytes of files whose rows lie on disk unless it is said otherwise: of some 80,000 triplets, which as lists take a gigabyte


def lie_on_disk(data: RowOptions) -> bool:
    """Whether a command's rows are prepared on disk: where a folder is named, or the files are large."""
    return data.row_cache not in (AUTO, NEVER) or data.row_cache == AUTO and bytes_of(data.data) >= LARGE


def rows_on_disk(
    data: RowOptions, tokenizer: PreTrainedTokenizerBase, shapes: Shapes, *, packing: bool, streaming: bool = False, eval_fraction: float = 0.0, seed: int = 0
) -> "Prepared":
    """The rows to train on, the examples that are held out of them, and in lines what was done.

    The rows are those that would be made in memory. Raises UserError for what `prepared_rows` refuses, and where a file changes while it is read.
    """
    how = {"weights": data.weights, "shape": data.shape, "split": data.split, **data.reading()}
    examples: Iterable[Example] = read(data.data, streaming=streaming, lazy=True, shapes=shapes, **how)
    known, before = all(map(source_files, data.data)), state_of(data.data)
    held: list[Example] = []
    settings = data.labelling() | how | {name: getattr(data, name) for name in ("tasks", "task_format", "task_language")}
    if eval_fraction:
        asked = read(data.data, lazy=True, shapes=data.shapes(SHAPES), **how)  # shapes count what they read
        is_held = held_out_of(asked, eval_fraction, seed)
        held = [example for number, example in enumerate(asked) if is_held(number, example)]
        examples = Without(examples, is_held)
        settings |= {"eval_fraction": eval_fraction, "seed": seed}
    cache = cache_folder() / "rows" if data.row_cache in (AUTO, NEVER) else Path(os.path.expanduser(data.row_cache))
    folder = cache / f"{rows_key(tokenizer, **settings)}-{source_key(data.data)}"
    began = time.monotonic()
    with tqdm(desc="preparing rows", unit=" records", delay=1, leave=False) as bar:  # who waits for another process shows none
        rows, were_there = prepared_rows(
            examples, tokenizer, folder, packing=packing, processes=data.num_proc, known=known,
            told=lambda: task_lines(shapes), advance=bar.update, **data.labelling(),
        )  # fmt: skip
    if state_of(data.data) != before:
        (folder / FACTS).unlink(missing_ok=True)
        raise UserError(f"{', '.join(data.data)}: changed while it was read: begin again once it is written")
    seconds = time.monotonic() - began
    how_fast = f"{rows.counts.records:,} records in {seconds:.0f} s, {rows.counts.records / seconds:,.0f} a second"
    return Prepared(rows, held, [f"prepared        {folder}, {rows.bytes / 2**20:,.1f} MiB, {'as an earlier run left it' if were_there else how_fast}"])


class Prepared(NamedTuple):
    """What lies on disk, what was held out of it, and what there is to say."""

    rows: PreparedRows
    held: list[Example]
    lines: list[str]


Held = Callable[[int, Example], bool]  # whether an example, and its number among all, is held out


class Without:
    """Examples but for those that are held out; read anew each time."""

    def __init__(self, examples: Iterable[Example], is_held: Held):
        self.examples, self.is_held = examples, is_held

    def __iter__(self) -> Iterator[Example]:
        return (example for number, example in enumerate(self.examples) if not self.is_held(number, example))


def held_out_of(examples: Iterable[Example], fraction: float, seed: int) -> Held:
    """Which examples `hold_out` holds out, found with eight bytes an example. Raises UserError where nothing would be left."""
    record = lambda number, example: place_digest(str(record_of(example, number)))
    found = np.fromiter(itertools.starmap(record, enumerate(examples)), dtype=np.int64)
    records = found[np.sort(np.unique(found, return_index=True)[1])]  # each once, in their order
    chosen = {int(records[at]) for at in drawn(len(records), fraction, seed)}
    return lambda number, example: record(number, example) in chosen
