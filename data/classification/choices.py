"""Questions with answers to choose from, of which one is right."""

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..json_text import parsed

LISTS = ("choices", "options", "endings", "보기", "선택지")  # what the column of the answers is called
RIGHT = ("answer", "label", "answerKey", "answer_idx", "answer_index", "gold", "정답")  # and that which says which is right


@dataclass(frozen=True)
class Choices:
    """Answers to choose from, and the number of the right one, counted from 0."""

    texts: tuple[str, ...]
    right: int


def choices_of(record: Mapping[str, Any], named: Mapping[str, str]) -> tuple[Choices, dict[str, Any]] | None:
    """The answers that a record has to choose from, and the record without them and what says which is right; None for a record without.

    They are a list of texts, or {"text": [...], "label": [...]}. What is right is a number from 0, the text of a choice, its label, or its letter; in
    this order, where it could be several. `named` says which columns hold `choices` and `answer` where they are called otherwise.
    Raises UserError where it is not said which is right, or that is none of the choices.

    >>> choices_of({"question": "1+1?", "choices": ["3", "2"], "answer": "B"}, {})
    (Choices(texts=('3', '2'), right=1), {'question': '1+1?'})
    """
    column = next((name for name in (named.get("choices"), *LISTS) if name is not None and record.get(name) is not None), None)
    texts, labels = _texts(record[column]) if column is not None else ((), ())
    if not texts:
        if column is not None and column == named.get("choices", "choices"):
            raise UserError(f"{column} must be a list of two texts or more, got {record[column]!r:.80}")
        return None
    names = [named["answer"]] if "answer" in named else [name for name in RIGHT if record.get(name) is not None]
    if len(names) != 1 or record.get(names[0]) is None:
        told = f"{' and '.join(names)} may both say" if len(names) > 1 else f"nothing says ({', '.join(RIGHT)})"
        raise UserError(f"{column} are answers to choose from, and {told} which is right: name the column, --columns answer=COLUMN")
    right = _place(record[names[0]], texts, labels)
    if right is None:
        raise UserError(f"{names[0]} {record[names[0]]!r:.80} is none of the {len(texts)} {column}: give a number from 0, a text, a label or a letter")
    return Choices(texts, right), {key: value for key, value in record.items() if key not in (column, names[0])}


def _texts(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of a list of choices and their labels; nothing where it is none."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):  # a table's column
        try:
            value = parsed(value)
        except json.JSONDecodeError:
            return (), ()
    labels = value.get("label", ()) if isinstance(value, Mapping) else ()
    texts = value.get("text", ()) if isinstance(value, Mapping) else value
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        return (), ()
    return tuple(texts), tuple(map(str, labels))


def _place(right: Any, texts: tuple[str, ...], labels: tuple[str, ...]) -> int | None:
    if isinstance(right, bool) or not isinstance(right, int | str):
        return None
    if isinstance(right, int):
        return right if right in range(len(texts)) and str(right) not in labels else labels.index(str(right)) if str(right) in labels else None
    for names in (texts, labels):
        if right in names:
            return names.index(right)
    text = right.strip()
    place = int(text) if text.isdecimal() else string.ascii_uppercase.find(text.upper()) if len(text) == 1 else -1
    return place if place in range(len(texts)) else None
