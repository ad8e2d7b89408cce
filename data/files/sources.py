"""Records read from files, folders and the hub, one source or several mixed by weight."""

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ..columns import Columns, Names, beside, check_keys, column_names, missing_hint
from ..errors import UserError
from ..formats import SHAPES, Dialogue, Shapes, Text, recognise, to_examples
from ..hub import check_hub_name
from ..preferences import PromptExample, RankedPreference, UnpairedPreference
from ..sample_data import setup_hint
from ..surrogates import refuse_surrogates
from .conll import conll_records
from .json_files import json_lines_records, json_records
from .tables import table_records, text_table
from .text_files import COMPRESSED, checked_encoding, lines_of

Item = TypeVar("Item")
logger = logging.getLogger(__name__)

Located = tuple[str, Any]  # where a record stands, and the record
Example = Dialogue | Text | RankedPreference | UnpairedPreference | PromptExample


def read(
    sources: str | os.PathLike | Sequence[str | os.PathLike],
    weights: Sequence[float] | None = None,
    shape: str | None = None,
    streaming: bool = False,
    split: str = "train",
    shapes: Shapes | None = None,
    encoding: str | None = None,
    columns: Mapping[str, str] | None = None,
    lazy: bool = False,
) -> Iterable[Example]:
    """Examples of one source or of several, each knowing its file and line: a list, or with `lazy` or `streaming` an iterable that holds none.

    The iterable can be read any number of times, from its beginning; with `streaming` a dataset on the hub is not downloaded before. A source is a file (JSON, JSON Lines, CSV, TSV, CoNLL, all of these as .gz or .zst,
    Excel, Parquet), a folder of such or a pattern (`data/*.csv`), a sheet (`book.xlsx#Sheet2`), or a name on the hub (`owner/name` or
    `owner/name:subset`, of which `split` is read). Text is UTF-8, or what its byte order mark says, or else `encoding`. `columns` says which
    column holds what a shape reads ({"instruction": "question"}). Several sources without weights follow one another; with weights see `mix`.
    All records of a source have one shape, of the family `shapes` (by default those for teaching; `preferences` has the others), and a record may
    give several examples. Raises UserError for unknown files, a source without records, and a record that cannot be read, naming its line.
    """
    names = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    if not names:
        raise UserError("no data given: name a file, a folder or a dataset on the hub")
    if encoding is not None:
        checked_encoding(encoding)
    named = dict(columns or {})
    check_keys(named, SHAPES if shapes is None else shapes)
    wanted = {key: () for key in named}
    parts = [Source(str(name), shape, split, streaming, shapes, encoding, named, wanted) for name in names]
    lazy |= streaming
    if not lazy:
        parts = [list(part) for part in parts]
    if weights is not None:
        _check(weights, len(parts))

    def examples() -> Iterator[Example]:
        yield from (example for part in parts for example in part) if weights is None else mix(parts, weights)
        Columns(named, (), wanted).refuse_absent()

    return Lazy(examples) if lazy else list(examples())


class Lazy:
    """An iterable that starts anew every time it is read."""

    def __init__(self, start: Callable[[], Iterator[Example]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[Example]:
        return self._start()


class Source(Lazy):
    """One file, folder or dataset; every record must have the shape of the first."""

    def __init__(
        self,
        name: str,
        shape: str | None = None,
        split: str = "train",
        streaming: bool = False,
        shapes: Shapes | None = None,
        encoding: str | None = None,
        named: Names | None = None,
        wanted: dict[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.name, self.shape, self.shapes = name, shape, SHAPES if shapes is None else shapes
        self.named, self.wanted = named or {}, wanted or {}
        known = {*column_names(self.shapes), *self.named.values()}
        self.records = _reader(name, split, streaming, encoding, known)  # an unknown name is refused here, before anything is read
        super().__init__(self._examples)

    def _examples(self) -> Iterator[Example]:
        shape = first = None
        columns = Columns(self.named, tuple(self.shapes) if self.shape is None else (self.shape,), self.wanted, beside(self.shapes))
        for where, record in self.records():
            taken, found, mapping = "", self.shape, isinstance(record, Mapping)
            try:
                if mapping:
                    record, taken = columns.taken(record)
                    found = self.shape or recognise(record, self.shapes)
                if first is None:
                    first, shape = where, found
                elif found != shape:
                    remedy = "keep one shape a source, or name it with --shape"
                    raise UserError(f"this record has the shape {found}, but {first} has {shape}: {remedy}")
                if mapping and shape in self.shapes:
                    record = columns.in_texts(record, shape, where)
                    taken += columns.unread(record, shape) if taken else ""
                examples = to_examples(record, shape, where, self.shapes)
            except UserError as error:
                refuse_surrogates(record, where)  # first: what names one cannot be printed
                columns.refuse_absent()
                told = str(error) if str(error).startswith(f"{where}: ") else f"{where}: {error}"
                hint = missing_hint(record, found) if mapping else ""
                raise UserError(told + (f" ({taken})" if taken else "") + hint) from None
            for example in examples:
                example.taken = taken
                yield example
        if first is None:
            raise UserError(f"{self.name} has no records")


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
    if bad := [weight for weight in weights if not 0 < weight < float("inf")]:
        raise UserError(f"weights must be numbers above zero, got {bad[0]}")


def check_source(name: str, encoding: str | None = None) -> None:
    """Raise UserError for a source that is not there, and for a file whose beginning is not in its encoding; no more is read of one that is."""
    _reader(name, "train", streaming=True)
    if os.path.isfile(path := Path(os.path.expanduser(name))) and kind_of(path) not in (*WORKBOOKS, ".parquet"):
        next(lines_of(path, encoding), None)


def is_source_file(name: str) -> bool:
    """Whether a name is that of a file, or of a workbook's sheet, whose records can be read."""
    book, mark, _ = name.rpartition("#")
    path = Path(os.path.expanduser(name))  # os.path takes any text, where Path.expanduser and Path.is_file raise for one that can be no name
    return kind_of(path) in READERS and os.path.isfile(path) or bool(mark) and Path(book).suffix.lower() in WORKBOOKS and os.path.isfile(os.path.expanduser(book))


def records_of(
    name: str, encoding: str | None = None, known: Collection[str] = (), split: str = "train", streaming: bool = False
) -> Iterator[Located]:
    """The records of a source as they stand there, each with its place; `known` names of columns help to tell what separates them."""
    return _reader(name, split, streaming, encoding, {*column_names(SHAPES), *known})()


def _reader(name: str, split: str, streaming: bool, encoding: str | None = None, known: Collection[str] = ()) -> Callable[[], Iterator[Located]]:
    """What reads the records of a source, again at each call."""
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path):
        refuse_unread(path, name)
        return lambda: READERS[kind_of(path)](path, encoding, known)
    book, mark, sheet = name.rpartition("#")
    if mark and Path(book).suffix.lower() in WORKBOOKS and os.path.isfile(os.path.expanduser(book)):
        return lambda: _workbook(Path(os.path.expanduser(book)), sheet)
    if os.path.isdir(path) or _is_pattern(name):
        pattern, files = not os.path.isdir(path), source_files(name)
        for file in files:
            if pattern or kind_of(file) in REMEDIES:
                refuse_unread(file, f"{name}: {file.name}")
        if not files:
            raise UserError(f"no file matches {name}" if pattern else f"the folder {name} holds no {', '.join(READERS)} file")
        return lambda: (located for file in files for located in READERS[kind_of(file)](file, encoding, known))
    if kind_of(path) in (*READERS, *REMEDIES) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"there is no file or folder {name}{setup_hint(name)}")
    check_hub_name(name.partition(":")[0], "dataset")
    return lambda: _hub(name, split, streaming)


def source_files(name: str) -> list[Path]:
    """The files that a source is read from, in their order; none of a dataset on the hub."""
    path, book = Path(os.path.expanduser(name)), Path(os.path.expanduser(name.rpartition("#")[0]))
    if os.path.isdir(path):
        return each_once(files_in(path))
    if os.path.isfile(path) or not os.path.isfile(book):
        return [path] if os.path.isfile(path) else each_once(Path(file) for file in glob(str(path), recursive=True) if _is_pattern(name) and os.path.isfile(file))
    return [book]


def _is_pattern(name: str) -> bool:
    return any(letter in name for letter in "*?[")


def files_in(folder: Path, *further: str) -> list[Path]:
    """The files of a folder that hold records, or could as another kind of workbook, and those of further endings.

    Not those that are hidden or lie in a hidden folder (Jupyter keeps copies in one), nor what Excel leaves beside an open workbook.
    """
    wanted = {*READERS, *further, *(kind for kind, remedy in REMEDIES.items() if ".xlsx" in remedy)}
    hidden = lambda file: any(part.startswith((".", "~$")) for part in file.relative_to(folder).parts)
    return [file for file in folder.rglob("*") if kind_of(file) in wanted and file.is_file() and not hidden(file)]


def each_once(files: Iterable[Path]) -> list[Path]:
    """Files in order of their names, one to which links lead once: a link to a folder above would give it forty times."""
    found: dict[str, Path] = {}
    for file in sorted(files):
        found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def kind_of(path: Path) -> str:
    """The ending of a file's name that says what it holds; behind it may stand how that is compressed."""
    ending = path.suffix.lower()
    inner = path.with_suffix("").suffix.lower() if ending in COMPRESSED else ""
    return inner if inner in (*READERS, ".txt") and inner not in (*WORKBOOKS, ".parquet") else ending


def refuse_unread(path: Path, name: str) -> None:
    kind = kind_of(path)
    if kind not in READERS:
        remedy = f": {REMEDIES[kind]}" if kind in REMEDIES else ""
        text = f"only {', '.join(READERS)}, and those of text as {' or '.join(COMPRESSED)} too"
        raise UserError(f"{name}: cannot read {path.suffix or 'a file without a suffix'}{remedy or ', ' + text}")


def _workbook(path: Path, sheet: str | None = None) -> Iterator[Located]:
    from .spreadsheet import sheet_rows

    rows, others = sheet_rows(path, sheet)
    if others:
        _warn_once(f"{path.name}: its first sheet alone is read, not {', '.join(others)}; another is named as {path.name}#{others[0]}")
    return table_records(rows, path.name)


@cache
def _warn_once(text: str) -> None:
    logger.warning(text)


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


# By the ending of a file's name: what reads its records, given its encoding and names that its columns may have.
READERS: dict[str, Callable[[Path, str | None, Collection[str]], Iterator[Located]]] = {
    ".json": lambda path, encoding, _: json_records(path, encoding),
    ".jsonl": lambda path, encoding, _: json_lines_records(path, encoding),
    ".ndjson": lambda path, encoding, _: json_lines_records(path, encoding),
    ".csv": text_table, ".tsv": text_table,
    ".xlsx": lambda path, *_: _workbook(path), ".xlsm": lambda path, *_: _workbook(path),
    ".parquet": lambda path, *_: _parquet(path),
    **dict.fromkeys((".conll", ".bio", ".iob"), lambda path, encoding, _: conll_records(path, encoding)),
}  # fmt: skip
WORKBOOKS = (".xlsx", ".xlsm")
REMEDIES = {  # files of data that are not read, and how they can be
    **dict.fromkeys((".xls", ".xlsb", ".ods", ".numbers"), "save it as .xlsx, or as CSV UTF-8"),
    ".txt": "name it .tsv or .csv if it is a table (Excel's Unicode Text is .tsv), .jsonl if each line is JSON, .conll if it is a token and its tag",
    ".zip": "take the files out of it", ".bz2": "pack it by gzip or zstd instead", ".xz": "pack it by gzip or zstd instead",
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


def at_a_time(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    """The items, so many together; none is read before it is wanted.

    >>> list(at_a_time("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    rest = iter(items)
    while some := list(islice(rest, count)):
        yield some
