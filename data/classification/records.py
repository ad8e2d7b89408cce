"""Records with a text, perhaps a second one, and a label: which columns these are."""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..columns import columns_by_option
from ..errors import UserError
from ..files.sources import records_of
from ..surrogates import refuse_surrogates

KEYS = ("text", "text_pair", "label")
OPTIONS = {"text": "--text_column", "text_pair": "--pair_column", "label": "--label_column"}
# What such columns are called elsewhere: a mistake is answered with the one that is there.
LIKELY = {
    "text": ("sentence", "sentence1", "document", "review", "content", "comment", "body", "question", "premise", "문장", "본문", "리뷰", "내용"),
    "text_pair": ("pair", "sentence2", "text2", "hypothesis", "answer", "passage", "문장2"),
    "label": ("labels", "class", "category", "target", "sentiment", "score", "rating", "stars", "intent", "topic", "gold_label", "라벨", "분류", "평점"),
}


@dataclass(frozen=True)
class TextColumns:
    """Which columns hold the text, the second text of a pair (None: `text_pair`, where there is one) and the label (None: nobody asks for it)."""

    text: str = "text"
    text_pair: str | None = None
    label: str | None = "label"
    text_option: str = OPTIONS["text"]  # by which a command names the column of the text

    @classmethod
    def of(cls, text: str | None, pair: str | None, label: str | None, columns: Sequence[str] | None = None) -> "TextColumns":
        """The columns that options name, each by its own or by KEY=COLUMN. Raises UserError for one that is named in both ways, and for other keys."""
        given = {key: (OPTIONS[key], column) for key, column in zip(KEYS, (text, pair, label), strict=True)}
        return cls(**columns_by_option(columns, given, f"a classifier reads {', '.join(KEYS)}"))


@dataclass(frozen=True)
class TextRecord:
    """A record as it stands in its file; `label` is whatever its column holds."""

    where: str
    text: str
    text_pair: str | None = None
    label: Any = None


def text_records(
    sources: str | Sequence[str], columns: TextColumns = TextColumns(), encoding: str | None = None, split: str = "train", *, streaming: bool = False
) -> Iterator[TextRecord]:
    """The records of files, folders or datasets on the hub, read one after the other.

    Whether a record has a second text is said by the first record. Raises UserError, naming the place, for a record without one of the columns, and
    for a text that is none.
    """
    known, paired, empty = {column for column in (columns.text, columns.text_pair, columns.label) if column}, None, True
    for name in [sources] if isinstance(sources, str) else sources:
        for where, record in records_of(name, encoding, known, split, streaming=streaming):
            if not isinstance(record, Mapping):
                raise UserError(f"{where}: a record must be an object with a column {columns.text!r}, got {record!r:.60}")
            refuse_surrogates(record, where)
            if paired is None:
                paired = columns.text_pair or ("text_pair" if "text_pair" in record else "")
            elif not paired and "text_pair" in record:
                raise UserError(f"{where}: this record has a text_pair, and the first one has none: give all of them one, or none")
            empty = False
            pair = text_in(record, "text_pair", paired, where, columns) if paired else None
            label = value_in(record, "label", columns.label, where, columns) if columns.label else None
            yield TextRecord(where, text_in(record, "text", columns.text, where, columns), pair, label)
    if empty:
        raise UserError(f"{', '.join([sources] if isinstance(sources, str) else sources)} has no records")


def value_in(record: Mapping[str, Any], key: str, column: str, where: str, columns: TextColumns) -> Any:
    """What a column of a record holds. Raises UserError, with the column that may be meant, where the record has none of that name."""
    if column not in record:
        others = list(map(str, record))
        near = likely_column(key, column, [other for other in others if other not in (columns.text, columns.text_pair, columns.label)])
        option = columns.text_option if key == "text" else OPTIONS[key]
        remedy = f"did you mean {option} {near}?" if near else f"name it, as {option} COLUMN"
        raise UserError(f"{where}: there is no column {column!r} among {', '.join(others[:12])}: {remedy}")
    return record[column]


def text_in(record: Mapping[str, Any], key: str, column: str, where: str, columns: TextColumns) -> str:
    """The text in a column; nothing written there is an empty one. Raises UserError for anything else."""
    value = value_in(record, key, column, where, columns)
    if value is None:
        return ""
    if not isinstance(value, str):
        option = columns.text_option if key == "text" else OPTIONS[key]
        raise UserError(f"{where}: {column} must be a text, got {value!r:.60}: write it in quotes, or name another column by {option}")
    return value


def likely_column(key: str, asked: str, columns: Collection[str]) -> str | None:
    """The column that may be meant by one that is not there."""
    folded: dict[str, str] = {column.strip().casefold(): column for column in columns}
    near: Iterable[str] = difflib.get_close_matches(asked.casefold(), folded, n=1)
    return next((folded[name] for name in (*near, *LIKELY[key]) if name in folded), None)
