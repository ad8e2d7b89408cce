"""Documents of plain text, read from files, tables and the hub one after the other: no more than a part of one is held."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..files.sources import READERS, REMEDIES, each_once, files_in, is_source_file, kind_of, records_of, refuse_unread
from ..files.text_files import checked_encoding, lines_of
from ..sample_data import setup_hint
from ..surrogates import refuse_surrogates

FILE, LINE, PARAGRAPH = DOCUMENTS = ("file", "line", "paragraph")  # what a document is in a file of plain text
PART = 1 << 18  # characters of a document that are held at a time


class Part(NamedTuple):
    """A document, or a part of one so long that it is read in several: where it stands, its text, and whether more of it follows."""

    where: str
    text: str
    goes_on: bool = False


def read_documents(
    sources: Sequence[str], *, documents: str = FILE, columns: Mapping[str, str] | None = None, encoding: str | None = None, split: str = "train"
) -> Iterator[Part]:
    """The documents of files of plain text, of the records of other files, of folders and patterns of both, and of datasets on the hub.

    In plain text a document is a whole file, a line, or a paragraph (blank lines stand between), by `documents`; in records it is what the column
    "text" holds, or by `columns` ({"text": "review"}) another, or several joined by line breaks ({"text": "prompt+completion"}). A file that is
    named and whose ending no reader knows is plain text. A document longer than PART characters comes in parts, cut behind a line, a blank, or
    where there is neither behind any character. Raises UserError for what is no text, a record without the column, and a name that is no source.
    """
    column = check_documents(documents, columns)
    if encoding is not None:
        checked_encoding(encoding)
    for name in sources:
        for file in text_files(name) or [name]:
            if isinstance(file, Path) and _is_plain(file):
                yield from _plain(file, documents, encoding)
            else:
                yield from _of_records(str(file), column, encoding, split)


def check_documents(documents: str, columns: Mapping[str, str] | None = None) -> str:
    """The name of the column that holds the text. Raises UserError for a way to part documents, or a key of columns, that there is not."""
    if documents not in DOCUMENTS:
        raise UserError(f"documents must be {', '.join(DOCUMENTS[:-1])} or {DOCUMENTS[-1]}, got {documents!r}")
    if other := next((key for key in columns or () if key != "text"), None):
        raise UserError(f"columns {other}={columns[other]}: plain text has the key text alone, as text={columns[other]}")
    return (columns or {}).get("text", "text")


def check_text_source(name: str, encoding: str | None = None) -> None:
    """Raise UserError for a source of text that is not there, and for a file whose beginning is no text; no more is read of it."""
    for file in text_files(name) or ():
        if kind_of(file) not in (".xlsx", ".xlsm", ".parquet"):
            next(lines_of(file, encoding), None)
            return


def text_files(name: str) -> list[Path]:
    """The files behind a name, in order; nothing where it is a workbook's sheet or a dataset on the hub. Raises UserError where there are none."""
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        found = each_once(files_in(path, ".txt"))
        if not found:
            raise UserError(f"the folder {name} holds no {', '.join(['.txt', *READERS])} file")
    elif os.path.isfile(path):
        found = [path]
    elif is_source_file(name):
        return []
    elif any(letter in name for letter in "*?["):
        found = each_once(file for each in glob(str(path), recursive=True) if (file := Path(each)).is_file())
        if not found:
            raise UserError(f"no file matches {name}")
    elif path.suffix or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"there is no file or folder {name}{setup_hint(name)}")
    else:
        return []
    for file in found:
        if kind_of(file) in REMEDIES and kind_of(file) != ".txt":
            refuse_unread(file, name if file == path else f"{name}: {file.name}")
    return found


def _is_plain(file: Path) -> bool:
    return kind_of(file) not in READERS


def _plain(file: Path, documents: str, encoding: str | None) -> Iterator[Part]:
    lines = _whole_lines(file, encoding)
    if documents == FILE:
        yield from _parts(file.name, lines)
        return
    begun, paragraph = 0, []
    for number, line in enumerate(chain(lines, [""]), start=1):  # what is empty ends the last paragraph
        if documents == LINE:
            if line:
                yield from _parts(f"{file.name} line {number}", [line.rstrip("\n")])
        elif line.strip():
            begun = begun if paragraph else number
            paragraph.append(line)
        elif paragraph:
            paragraph[-1] = paragraph[-1].rstrip("\n")
            yield from _parts(f"{file.name} line {begun}", paragraph)
            paragraph = []


def _whole_lines(file: Path, encoding: str | None) -> Iterator[str]:
    for number, line in enumerate(lines_of(file, encoding), start=1):
        if "\0" in line:
            raise UserError(f"{file.name} line {number} holds a NUL byte, which no text has: it is damaged, or no text file")
        yield line


def _of_records(name: str, column: str, encoding: str | None, split: str) -> Iterator[Part]:
    for where, record in records_of(name, encoding, (column,), split):
        refuse_surrogates(record, where)
        yield from _parts(where, [_text_of(record, column, where)])


def _text_of(record: Any, column: str, where: str) -> str:
    if isinstance(record, str):
        return record
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: a record must be a text or hold one, got {type(record).__name__}")
    names = [column] if column in record else column.split("+")
    if missing := next((each for each in names if each not in record), None):
        there = max(record, key=lambda key: len(record[key]) if isinstance(record[key], str) else 0, default="COLUMN")  # a table's numbers are texts too
        raise UserError(f"{where} has no column {missing!r}, only {', '.join(map(str, record))}: name the one that holds the text, --columns text={there}")
    texts = [record[each] if record[each] is not None else "" for each in names]
    if wrong := next((each for each, text in zip(names, texts, strict=True) if not isinstance(text, str)), None):
        raise UserError(f"{where}: {wrong} holds {type(record[wrong]).__name__}, not a text: name another column, --columns text=COLUMN")
    return "\n".join(filter(None, texts))


def _parts(where: str, pieces: Iterable[str]) -> Iterator[Part]:
    """A document that is given in pieces, in parts of at most PART characters."""
    held: list[str] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size > PART:
            text = "".join(held)
            while len(text) > PART:
                cut = text.rfind("\n", 0, PART) + 1 or max(text.rfind(" ", 1, PART), 0) or PART
                yield Part(where, text[:cut], True)
                text = text[cut:]
            held, size = [text], len(text)
    yield Part(where, "".join(held))


# What tells a document's text from others


def new_digest() -> "hashlib._Hash":
    """What a document's parts in UTF-8 are handed to, one after the other."""
    return hashlib.blake2b(digest_size=8)


def digest_number(digest: "hashlib._Hash") -> int:
    """Sixty-four bits that tell a text from others."""
    return int.from_bytes(digest.digest(), "little", signed=True)
