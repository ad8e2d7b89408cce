"""Tables to records: the first row names the columns; and text separated by commas, semicolons, tabs or bars, told by its first row."""

import csv
import sys
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..columns import Row
from ..errors import UserError
from .text_files import lines_of

Rows = Iterable[tuple[str, list[str]]]  # where a row stands, and its fields
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LOOKED_AT = 50  # lines from which the delimiter is told


def table_records(rows: Rows, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows below the first as records whose keys the first row names; rows in which nothing stands are none.

    Raises UserError for two columns of one name, for what stands in a column without one (but numbers of rows), for a row that names the
    columns once more, and for one with fewer or more fields than there are columns: a comma or a line break in a text that is not in quotes
    tears it so.
    """
    filled = ((where, fields, whole) for where, fields in rows if (whole := "".join(fields)).strip())
    where, header, _ = next(filled, ("", [], ""))
    header = [column.strip("\ufeff") for column in header]
    if doubled := next((column for place, column in enumerate(header) if column.strip() and column in header[:place]), None):
        raise UserError(f"{where}: two columns are called {doubled!r}: rename or delete one of them")
    while header and not header[-1].strip():
        header.pop()
    unnamed = [place for place, column in enumerate(header) if not column.strip()]
    for where, fields, whole in filled:
        if "\0" in whole:
            raise UserError(f"{where}: it holds a NUL byte, which no text has: {name} is damaged")
        if fields[0].startswith("\ufeff") or len(header) > 1 and fields[: len(header)] == header:
            remedy = "delete that line, or keep each in a file of its own"
            raise UserError(f"{where}: another table begins here, with {', '.join(fields)!r:.60}: {remedy}")
        if len(fields) > len(header) and (extra := next((field for field in fields[len(header) :] if field.strip()), "")):
            torn = "put a text that holds the delimiter in quotes, or name the column in the first row"
            raise UserError(f"{where}: more fields than the header has, such as {extra!r:.40}: {torn}")
        if len(fields) < len(header):
            torn = "put a text that holds a line break in quotes, or write the empty fields too"
            raise UserError(f"{where}: only {len(fields)} of the {len(header)} fields that the header names ({', '.join(header)}): {torn}")
        record = Row(zip(header, fields, strict=False))
        for place in unnamed:
            if fields[place].strip() and not fields[place].strip().isdecimal():
                remedy = "give it one in the first row, or delete it"
                raise UserError(f"{where}: column {place + 1} holds {fields[place]!r:.40} and has no name: {remedy}")
            record.pop(header[place], None)
        yield where, record


def text_table(path: Path, encoding: str | None = None, known: Collection[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """The records of a file of separated values; `known` names of columns help to tell its delimiter."""
    return table_records(_rows(path, encoding, known), path.name)


def _rows(path: Path, encoding: str | None, known: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    lines = lines_of(path, encoding, newline="")
    first = list(islice(lines, LOOKED_AT))
    skipped = 0
    if first and first[0].lower().startswith("sep=") and len(first[0].strip()) == 5:  # Excel's own way to say it
        delimiter, first, skipped = first[0][4], first[1:], 1
    else:
        delimiter = delimiter_of(first, path.name, known)
    for number, fields in _parsed(chain(first, lines), delimiter, path.name, _spaced(first, delimiter)):
        yield f"{path.name} line {number + skipped}", fields


def delimiter_of(lines: list[str], name: str, known: Collection[str] = ()) -> str:
    """What separates the columns of a table that begins with these lines.

    It is what parts the first row; where several do, the one that yields known names, or else fits the rows below. Raises UserError where that is
    not one.
    """
    tables = {delimiter: _whole_rows(lines, delimiter) for delimiter in DELIMITERS}
    parting = [delimiter for delimiter, rows in tables.items() if rows and len(rows[0]) > 1]
    if len(parting) < 2:
        return parting[0] if parting else "\t" if name.lower().split(".")[-1] in ("tsv", "tab") else ","
    names = {column.casefold() for column in known}
    naming = [delimiter for delimiter in parting if any(column.strip().casefold() in names for column in tables[delimiter][0])]
    fitting = [delimiter for delimiter in naming or parting if all(len(row) == len(tables[delimiter][0]) for row in tables[delimiter] if row)]
    if len(fitting) != 1 and len(naming) != 1:
        either = " or ".join(DELIMITERS[delimiter] for delimiter in parting)
        raise UserError(f"{name}: its first row can be parted at {either}: put names that hold one of them in quotes, or rename these columns")
    return (fitting if len(fitting) == 1 else naming)[0]


def _whole_rows(lines: list[str], delimiter: str) -> list[list[str]]:
    """The rows of a table's beginning, but the last, which may be cut; of one that cannot be read those before."""
    rows, limit = [], csv.field_size_limit(sys.maxsize)  # the whole process's: it is put back for whoever relies on it
    try:
        for row in csv.reader(lines, delimiter=delimiter):
            rows.append(row)
    except csv.Error:
        pass
    finally:
        csv.field_size_limit(limit)
    return rows[:-1] if len(lines) == LOOKED_AT and len(rows) > 1 else rows


def _spaced(lines: list[str], delimiter: str) -> bool:
    """Whether a space stands behind each delimiter of the first row: it separates too, and a quote behind it opens a quoted text."""
    names = next(iter(_whole_rows(lines, delimiter)), [])[1:]
    return bool(names) and all(name.startswith(" ") for name in names)


def _parsed(lines: Iterable[str], delimiter: str, name: str, spaced: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Each row's fields with the number of its first line: a quoted field may run over several."""
    reader: Any = csv.reader(lines, delimiter=delimiter, skipinitialspace=spaced, strict=True)
    while True:
        started, limit = reader.line_num + 1, csv.field_size_limit(sys.maxsize)
        try:
            fields = next(reader, None)
        except csv.Error as error:
            remedy = 'close each quoted text, and write a quote inside one twice: "say ""hi"""'
            raise UserError(f"{name} line {started}: not a table of {DELIMITERS.get(delimiter, repr(delimiter))}: {error}: {remedy}") from None
        finally:
            csv.field_size_limit(limit)
        if fields is None:
            return
        yield started, fields
