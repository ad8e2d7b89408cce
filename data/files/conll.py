"""Files of a token and its tag a line, as CoNLL's shared tasks have them: sentences to records of tokens and tags."""

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from ..errors import UserError
from .text_files import lines_of

TAG = re.compile(r"O|[BIESLU]-.+")
BORDER = "-DOCSTART-"  # which stands where a document begins, and is no token
LOOKED_AT = 50  # lines by which a file is told to be one

Sentence = dict[str, list[str]]


def conll_records(path: Path, encoding: str | None = None) -> Iterator[tuple[str, Sentence]]:
    """The sentences of a file, {tokens, tags}, each with its first line: the first column is the token, the last the tag; blank lines part sentences.

    Columns are separated by tabs, in a file without tabs by spaces. A line that begins with # and does not end in a tag is a comment. In a file of one column
    sentences have no tags. Raises UserError for a line with another number of columns than those before it.
    """
    lines = lines_of(path, encoding)
    first = list(islice(lines, LOOKED_AT))
    separator = "\t" if any("\t" in line for line in first) else None
    width, begun, rows = None, 0, []
    for number, line in enumerate(chain(first, lines, [""]), start=1):
        fields = line.rstrip("\r\n").split(separator)
        if not line.strip() or fields[0] == BORDER:
            if rows:
                yield f"{path.name} line {begun}", _sentence(rows)
            rows = []
            continue
        if line.startswith("#") and not TAG.fullmatch(fields[-1]):
            continue
        width = width or len(fields)
        if len(fields) != width:
            told = "tabs" if separator else "spaces"
            raise UserError(f"{path.name} line {number}: {len(fields)} columns, separated by {told}, where lines before it have {width}: mend the line")
        begun = begun if rows else number
        rows.append(fields)


def _sentence(rows: Sequence[Sequence[str]]) -> Sentence:
    tags = {"tags": [row[-1] for row in rows]} if len(rows[0]) > 1 else {}
    return {"tokens": [row[0] for row in rows], **tags}


def looks_like_conll(path: Path, encoding: str | None = None) -> bool:
    """Whether the first line of a file that is no comment is a token and a tag, rather than the names of a table's columns."""
    for line in islice(lines_of(path, encoding), LOOKED_AT):
        fields = line.rstrip("\r\n").split("\t")
        if len(fields) > 1 and TAG.fullmatch(fields[-1]):
            return True
        if line.strip() and not line.startswith(("#", BORDER)):
            return False
    return False
