"""Records read from files, folders and the hub, one source or several mixed by weight."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError
from .formats import Dialogue, Shapes, Text, recognise, to_examples
from .hub import check_hub_name
from .preferences import PromptExample, RankedPreference, UnpairedPreference

Located = tuple[str, Any]  # where a record stands, and the record
Example = Dialogue | Text | RankedPreference | UnpairedPreference | PromptExample


def read(
    sources: str | os.PathLike | Sequence[str | os.PathLike],
    weights: Sequence[float] | None = None,
    shape: str | None = None,
    streaming: bool = False,
    split: str = "train",
    shapes: Shapes | None = None,
) -> Iterable[Example]:
    """Examples of one source or of several, each knowing its file and line: a list, or with `streaming` a lazy iterable.

    The lazy one can be read any number of times, from its beginning. A source is a JSON, JSON Lines, CSV or Parquet file, a folder of
    such, or a name on the hub (`owner/name` or `owner/name:subset`, of which `split` is read). Several without weights follow one
    another; with weights see `mix`. All records of a source have one shape, of the family `shapes` (by default those for teaching;
    `preferences` has the others), and a record may give several examples. Raises UserError for unknown files, a source without records, and
    a record that cannot be read, naming its line.
    """
    names = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    if not names:
        raise UserError("no data given: name a file, a folder or a dataset on the hub")
    parts = [Source(str(name), shape, split, streaming, shapes) for name in names]
    if not streaming:
        parts = [list(part) for part in parts]
    if weights is None:
        return Lazy(lambda: (example for part in parts for example in part)) if streaming else [example for part in parts for example in part]
    _check(weights, len(parts))
    return Lazy(lambda: mix(parts, weights)) if streaming else list(mix(parts, weights))


class Lazy:
    """An iterable that starts anew every time it is read."""

    def __init__(self, start: Callable[[], Iterator[Example]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[Example]:
        return self._start()


class Source(Lazy):
    """One file, folder or dataset; every record must have the shape of the first."""

    def __init__(self, name: str, shape: str | None = None, split: str = "train", streaming: bool = False, shapes: Shapes | None = None) -> None:
        self.name, self.shape, self.shapes = name, shape, shapes
        self.records = _reader(name, split, streaming)  # an unknown name is refused here, before anything is read
        super().__init__(self._examples)

    def _examples(self) -> Iterator[Example]:
        shape = first = None
        for where, record in self.records():
            if first is None:
                first, shape = where, self.shape or self._recognised(record, where)
            elif self.shape is None and (found := self._recognised(record, where)) != shape:
                remedy = "keep one shape a source, or name it with --shape"
                raise UserError(f"{where}: this record has the shape {found}, but {first} has {shape}: {remedy}")
            yield from to_examples(record, shape, where, self.shapes)
        if first is None:
            raise UserError(f"{self.name} has no records")

    def _recognised(self, record: Any, where: str) -> str | None:
        try:
            return recognise(record, self.shapes) if isinstance(record, Mapping) else None
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def mix(parts: Sequence[Iterable[Example]], weights: Sequence[float]) -> Iterator[Example]:
    """Interleave sources so that each has its share, the same way every time: next comes the source that is furthest behind its weight.

    Weights are proportions of the examples drawn. A source that ends begins again, until every source has been read through once.
    Raises UserError for a source without an example. By hand, as datasets' `interleave_datasets` draws sources at random: here no share is ever off by
    as much as an example.

    >>> list(mix(["aaaa", "bc"], [1, 1]))
    ['a', 'b', 'a', 'c', 'a', 'b', 'a']
    """
    total, iterators = sum(weights), [iter(part) for part in parts]
    ahead = [next(iterator, None) for iterator in iterators]
    if None in ahead:
        raise UserError(f"source {ahead.index(None) + 1} of {len(parts)} to be mixed has no example: leave it out")
    drawn, finished = [0] * len(parts), [False] * len(parts)
    while not all(finished):
        deficits = [weight / total * (sum(drawn) + 1) - count for weight, count in zip(weights, drawn, strict=True)]
        index = deficits.index(max(deficits))
        yield ahead[index]
        drawn[index] += 1
        ahead[index] = next(iterators[index], None)
        if ahead[index] is None:
            finished[index] = True
            iterators[index] = iter(parts[index])
            ahead[index] = next(iterators[index])


def _check(weights: Sequence[float], count: int) -> None:
    if len(weights) != count:
        raise UserError(f"give one weight a source: {count} sources, {len(weights)} weights")
    if bad := [weight for weight in weights if not weight > 0]:
        raise UserError(f"weights must be above zero, got {bad[0]}")


def check_source(name: str) -> None:
    """Raise UserError for a source that is not there, without reading one that is."""
    _reader(name, "train", streaming=True)


def _reader(name: str, split: str, streaming: bool) -> Callable[[], Iterator[Located]]:
    """What reads the records of a source, again at each call."""
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in READERS and file.is_file())
        if not files:
            raise UserError(f"the folder {name} holds no {', '.join(READERS)} file")
        return lambda: (located for file in files for located in READERS[file.suffix.lower()](file))
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise UserError(f"{name}: cannot read {path.suffix or 'a file without a suffix'}, only {', '.join(READERS)}")
        return lambda: READERS[path.suffix.lower()](path)
    if path.suffix.lower() in READERS or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"there is no file or folder {name}")
    check_hub_name(name.partition(":")[0], "dataset")
    return lambda: _hub(name, split, streaming)


def _json_lines(path: Path) -> Iterator[Located]:
    with _opened(path) as lines:
        for number, line in enumerate(_decoded(lines, path), start=1):
            if line.strip():
                where = f"{path.name} line {number}"
                yield where, _parsed(line, where)


def _json(path: Path) -> Iterator[Located]:
    with _opened(path) as file:
        text = "".join(_decoded(file, path))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON Lines under the name of JSON
            yield from _json_lines(path)
            return
        raise UserError(f"{path.name} line {error.lineno}: not JSON: {error.msg}") from None
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    elif isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise UserError(f"{path.name} must hold a list of records, got {type(value).__name__}")
    for number, record in enumerate(value, start=1):
        yield f"{path.name} record {number}", record


def _csv(path: Path) -> Iterator[Located]:
    with _opened(path) as file:
        reader = csv.DictReader(_decoded(file, path))
        while True:
            started = reader.line_num + 1  # a quoted field may run over several lines; the record is named by its first
            try:
                with _fields_of_any_size():
                    record = next(reader, None)
            except csv.Error as error:
                raise UserError(f"{path.name} line {reader.line_num}: not CSV: {error}") from None
            if record is None:
                return
            where = f"{path.name} line {max(started, 2)}"
            if None in record:
                raise UserError(f"{where}: more fields than the header has")
            record.pop("", None)  # a column without a name, as a spreadsheet's numbers of rows, is nobody's
            yield where, record


@contextmanager
def _fields_of_any_size() -> Iterator[None]:
    """csv's limit is the whole process's: it is put back for whoever relies on it."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> Iterator[Located]:
    import pyarrow.parquet  # takes a while, and few need it
    from pyarrow.lib import ArrowException

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path.name} record {number}", record
    except ArrowException as error:
        raise UserError(f"{path.name} is not a Parquet file: {' '.join(str(error).split())}") from None


READERS: dict[str, Callable[[Path], Iterator[Located]]] = {
    ".json": _json, ".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _csv, ".parquet": _parquet,
}  # fmt: skip


def _hub(name: str, split: str, streaming: bool) -> Iterator[Located]:
    import datasets  # a second of importing that local files do not need

    path, _, subset = name.partition(":")
    try:
        records = datasets.load_dataset(path, subset or None, split=split, streaming=streaming)
    except Exception as error:  # every kind of network, hub and format error comes out of here
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} is no file here, and the hub does not give a dataset of that name: {reason:.200}") from error
    for number, record in enumerate(records, start=1):
        yield f"{name} record {number}", record


def _opened(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8-sig", newline="" if path.suffix.lower() == ".csv" else None)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _decoded(lines: Iterable[str], path: Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 text (byte {error.start}): convert it first") from None


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg} at character {error.colno}") from None
