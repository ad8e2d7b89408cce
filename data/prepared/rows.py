"""Prepared rows as training has them: mapped from disk, packed where they are asked for."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..labels import Counts
from ..packing import Row, best_fit_order, joined
from .shard import FORMAT, Aside, counts_of_json, damage, read_facts, sealed, shard_name, write_facts, write_json

FACTS, PACKED = "prepared.json", "packed.json"
ORDER, ENDS = "packed-order.npy", "packed-ends.npy"


class PreparedRows(Sequence):
    """The rows of a folder that `prepared_rows` has made; `datasets.load_from_disk` reads it too, without packing.

    With `packing` a row is several of them, as `pack` joins all: it is made when it is asked for, and what is held of the whole is a few numbers
    a record. `counts` says what became of the records, `size` how long the longest is and which id the highest.
    """

    def __init__(self, folder: Path, packing: bool = False):
        import datasets  # half a second that processes which only write do not need

        self.folder, self.packing = folder, packing
        facts = read_facts(folder / FACTS)
        self.dataset = datasets.load_from_disk(str(folder), keep_in_memory=False)
        self.size: tuple[int, int] = (facts["longest"], facts["highest"])
        self.bytes: int = sum(seal["bytes"] for seal in facts["files"].values())
        self.counts: Counts = counts_of_json(facts["counts"])
        self.counts.seen = Seen(folder, facts["shards"])
        self.counts.told = list(facts["told"])
        self._order, self._ends = (np.load(folder / name, mmap_mode="r") for name in (ORDER, ENDS)) if packing else (None, None)

    def __len__(self) -> int:
        return len(self._ends) if self.packing else len(self.dataset)

    def __getitem__(self, number: int) -> Row:
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        number %= len(self)
        if not self.packing:
            return self.dataset[number]
        return joined(_rows(self.dataset[self._order[self._ends[number - 1] if number else 0 : self._ends[number]].tolist()]))

    def __iter__(self) -> Iterator[Row]:
        if self.packing:
            yield from map(self.__getitem__, range(len(self)))
            return
        for some in self.dataset.iter(batch_size=500):
            yield from _rows(some)

    def kept(self, name: str, make: Callable[[], str]) -> str:
        """A text about these rows that takes long to find: as it was found before, or else as `make` finds it, kept where the folder may be written."""
        path = self.folder / f"{name}-{'packed' if self.packing else 'rows'}.json"
        if (found := read_facts(path)) is None:
            found = make()
            try:
                write_facts(path, found)
            except OSError:  # another's folder: it is found again next time
                pass
        return found


class Seen:
    """The digests of all records' rows, looked at where someone asks whether one is among them."""

    def __init__(self, folder: Path, shards: int):
        self.folder, self.shards = folder, shards

    def __contains__(self, digest: int) -> bool:
        place = int(np.searchsorted(self._sorted, digest))
        return place < len(self._sorted) and int(self._sorted[place]) == digest

    @cached_property
    def _sorted(self) -> np.ndarray:
        return np.unique(digests(self.folder, self.shards)[:, 0])


def digests(folder: Path, shards: int) -> np.ndarray:
    """Of each record that is kept, by the shards, the digest of its rows and that of its place, [records, 2] int64."""
    return np.frombuffer(b"".join((folder / f"{shard_name(number)}.seen").read_bytes() for number in range(shards)), dtype=np.int64).reshape(-1, 2)


def doubled(folder: Path, shards: int) -> int:
    """How many records have the rows of one before them that stands elsewhere."""
    found = digests(folder, shards)
    _, first, which = np.unique(found[:, 0], return_index=True, return_inverse=True)
    return int((found[:, 1] != found[first[which], 1]).sum())


def _rows(columns: dict[str, list[Any]]) -> list[Row]:
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def flaw(folder: Path, packing: bool = False) -> str:
    """Why the rows in a folder cannot be used, in words; nothing where they can. Every byte is looked at."""
    if (facts := read_facts(folder / FACTS)) is None:
        return f"{FACTS} is not what was written" if (folder / FACTS).exists() else "not complete"
    if facts["format"] != FORMAT:
        return f"made in format {facts['format']} by another version, {FORMAT} is this one's"
    if wrong := damage(folder, facts["files"]):
        return wrong
    return "not packed" if packing and not is_packed(folder) else ""


def is_packed(folder: Path) -> bool:
    """Whether the whole order of packed rows lies in a folder."""
    found = read_facts(folder / PACKED)
    return found is not None and not damage(folder, found)


def pack_on_disk(folder: Path, capacity: int) -> None:
    """Write which of a folder's rows lie together in one of at most `capacity` tokens, as `pack` puts them."""
    chunks = PreparedRows(folder).dataset.data.column("input_ids").chunks
    lengths = np.concatenate([np.zeros(0, dtype=np.int64), *(np.diff(chunk.offsets.to_numpy()) for chunk in chunks)])
    for name, values in zip((ORDER, ENDS), best_fit_order(lengths, capacity), strict=True):
        with Aside(folder / name) as aside, aside.path.open("wb") as file:
            np.save(file, values)
    write_facts(folder / PACKED, {name: sealed(folder / name) for name in (ORDER, ENDS)})


def write_dataset_files(folder: Path, names: Sequence[str], fingerprint: str) -> dict[str, dict[str, Any]]:
    """Write what `datasets.load_from_disk` reads beside the Arrow files; return how these files are sealed."""
    column = {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"}
    write_json(folder / "dataset_info.json", {"features": dict.fromkeys(("input_ids", "labels"), column)})
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": fingerprint, "_format_columns": None, "_format_kwargs": {},
             "_format_type": None, "_output_all_columns": False, "_split": None}  # fmt: skip
    write_json(folder / "state.json", state)
    return {name: sealed(folder / name) for name in ("dataset_info.json", "state.json")}
