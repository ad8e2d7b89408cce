"""Columns of other names: those that the user names, those whose meaning is certain, and numbers as texts."""

import difflib
import math
import shlex
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from typing import Any

from .errors import UserError

Names = dict[str, str]  # the key that a shape reads -> the column that holds it

_TALK = ("system", "tools")
KEYS = {  # what each shape reads
    "messages": ("messages", "tools"), "sharegpt": ("conversations", *_TALK), "text": ("text",),
    "triplet": ("instruction", "input", "output", "history", "system"), "prompt_completion": ("prompt", "completion", *_TALK),
    "trees": ("message_tree_id", "prompt"), "preference": ("prompt", "chosen", "rejected", "margin", *_TALK), "rejected_only": ("rejected",),
    "ranked": ("prompt", "responses", "ranks", "scores", *_TALK), "ultrafeedback": ("instruction", "completions", *_TALK),
    "judged": ("prompt", "completion", "label", *_TALK),
    "prompt": ("prompt", "answer", *_TALK), "question": ("question", "answer", *_TALK),
    "instruction": ("instruction", "input", "output", "answer", *_TALK),
    "source_target": ("source", "target"), "translation": ("translation",), "tasks": ("input", "tasks", "system"),
}  # fmt: skip
NEEDS = {  # without these it cannot be read
    "messages": {"messages"}, "sharegpt": {"conversations"}, "text": {"text"}, "triplet": {"instruction", "output"},
    "prompt_completion": {"prompt", "completion"}, "trees": {"message_tree_id", "prompt"}, "preference": {"chosen", "rejected"},
    "ranked": {"responses"}, "ultrafeedback": {"instruction", "completions"}, "judged": {"prompt", "completion", "label"},
    "source_target": {"source", "target"}, "translation": {"translation"}, "tasks": {"input", "tasks"},
}  # fmt: skip
PLANS = 1024  # ways in which the keys of records differ that are remembered
PROMPTS_ALONE = ("prompt", "question", "instruction")
TEXTS = ("instruction", "input", "output", "prompt", "completion", "text", "question", "chosen", "rejected", "system", "source", "target")  # keys that hold what is said

# What columns are called that hold a question, its answer, or what belongs to the question.
QUESTIONS = ("prompt", "question", "query", "instruction", "질문", "지시", "지시문", "명령")
ANSWERS = ("completion", "answer", "response", "output", "답변", "대답", "응답", "출력")
INPUTS = ("input", "입력")
# Beside one of these a question and an answer may be half of what is meant: more of the question, or what is thought of the answer.
CONTEXTS = ("context", "passage", "document", "choices", "options", "문맥", "지문", "본문", "보기", "선택지")
JUDGEMENTS = ("label", "rating", "score", "chosen", "rejected")
SYSTEMS = ("system_prompt",)  # OpenOrca's


def columns_by_option(words: Iterable[str] | None, options: Mapping[str, tuple[str, str | None]], reads: str) -> Names:
    """The columns of some keys, each named by its own option, {key: (option, column)}, or by KEY=COLUMN; `reads` says who reads which keys, for an error.

    Raises UserError as `parse_columns` does, for a key that is named in both ways, and for other keys.
    """
    named = parse_columns(words)
    for key, (option, given) in options.items():
        if given is not None and key in named:
            raise UserError(f"{option} {given} and --columns {key}={named[key]} name one thing twice: drop one of them")
        if given is not None:
            named[key] = given
    if unknown := next((key for key in named if key not in options), None):
        raise UserError(f"columns {unknown}={named[unknown]}: {reads} and no {unknown!r}")
    return named


def parse_columns(words: Iterable[str] | None) -> Names:
    """`instruction=question` and its like as names. Raises UserError for what is no pair, and for a key or a column that is named twice."""
    names: Names = {}
    for word in words or ():
        key, equals, column = word.partition("=")
        if not (key and equals and column):
            raise UserError(f"columns takes KEY=COLUMN, as instruction=question, got {word!r}")
        if key in names:
            raise UserError(f"columns names {key} twice: {names[key]!r} and {column!r}")
        if column in names.values():
            raise UserError(f"columns gives {column!r} to two keys, {next(each for each in names if names[each] == column)} and {key}")
        names[key] = column
    return names


def check_keys(names: Names, shapes: Collection[str]) -> None:
    """Raise UserError for a key that none of the shapes reads.

    Any may be a reward's where there are prompts alone, and one that a shape of the caller's own reads.
    """
    known = sorted({*beside(shapes), *(key for shape in shapes for key in KEYS.get(shape, ()))})
    for key in names if KEYS.keys() >= set(shapes) and not alone(shapes) else ():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            guess = f"{names[key]}={key}" if names[key] in known else near[0] if near else None  # the column stands behind the sign
            remedy = f", only {', '.join(known)}" if guess is None else f": did you mean {guess}?"
            raise UserError(f"columns {key}={names[key]}: no shape has a key {key!r}{remedy}")


def beside(shapes: Collection[str]) -> tuple[str, ...]:
    """The keys that a record of any shape of a family may have beside its own."""
    return getattr(shapes, "beside", ())


def alone(shapes: Iterable[str]) -> bool:
    """Whether the shapes are those of prompts without answers, whose other columns go to rewards."""
    return set(shapes) <= {*PROMPTS_ALONE, "messages"}


@dataclass
class Columns:
    """The columns of one source: `named` is what the user says, `shapes` are those that its records may have.

    `wanted` holds the keys whose column no record has had yet, nor the key itself, each with the columns of a record; sources that are read
    together share it.
    """

    named: Names
    shapes: tuple[str, ...]
    wanted: dict[str, tuple[str, ...]]
    beside: tuple[str, ...] = ()  # keys that a record of any of them may have too
    kinds: dict[str, tuple[bool, str, Any]] = field(default_factory=dict)  # by key: whether it is a number in the first record that has it, and that
    plans: dict[tuple, tuple[Names, Names, str]] = field(default_factory=dict)  # what `_plan` gives, by a record's keys: most of a file have the same

    def taken(self, record: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        """A record with its columns under the keys that shapes read, and which were taken as what, in words."""
        there = tuple([key for key, value in record.items() if value is not None])
        sides = "preference" in self.shapes and _plain_sides(record)
        known = (there, None if len(there) == len(record) else tuple(record), sides)
        if known not in self.plans:
            if len(self.plans) == PLANS:
                self.plans.clear()
            self.plans[known] = self._plan(record, sides)
        here, certain, told = self.plans[known]
        return _renamed(_renamed(record, here), certain), told

    def _plan(self, record: Mapping[str, Any], sides: bool) -> tuple[Names, Names, str]:
        """Which columns the user's names mean in a record with such keys, which others are certain, and both in words."""
        here = {key: column for key, name in self.named.items() if (column := _column(record, name)) is not None}
        for key in list(self.wanted):
            if key in here or key in record:
                del self.wanted[key]
            else:
                self.wanted[key] = tuple(map(str, record))
        for key, column in here.items():
            if record.get(key) is not None and key not in here.values():
                raise UserError(f"--columns {key}={column}, but there is a column {key!r} as well: rename or delete one of them")
        record = _renamed(record, here)
        there = tuple(key for key, value in record.items() if value is not None)
        try:
            certain = certain_names(there, self.shapes, sides) or certain_names(tuple(record), self.shapes, sides)
        except Uncertain as error:
            likely = {key: here.get(column, column) for key, column in error.likely.items()}
            rest = {key: column for key, column in self.named.items() if key not in likely and here.get(key) not in likely.values()}
            pairs = _quoted(f"{key}={column}" for key, column in {**likely, **rest}.items() if key != column or key in rest)
            raise UserError(f"{error}: say which is which, as --columns {pairs}") from None
        told = [f"{column if column == column.strip() else repr(column)} as {key}" for key, column in {**here, **certain}.items()]
        return here, certain, ", ".join(told)

    def in_texts(self, record: Mapping[str, Any], shape: str, where: str) -> Mapping[str, Any]:
        """The record with numbers as texts where its shape reads texts, in columns that are numbers throughout.

        Raises UserError for a number in a column of texts, and for a text in one of numbers.
        """
        for key in _text_keys(shape):
            value = record.get(key)
            if value is None or isinstance(value, bool):
                continue
            number = not isinstance(value, str) and isinstance(value, (int, float, Decimal))
            before, first, example = self.kinds.get(key) or self.kinds.setdefault(key, (number, where, value))
            if before != number:
                remedy = "write all of them as texts, in quotes"
                raise UserError(f"{key} is {_described(value)}, but in {first} it is {_described(example)}: {remedy}")
            if number and math.isfinite(value):
                record = {**record, key: str(value)}
        return record

    def unread(self, record: Mapping[str, Any], shape: str) -> str:
        """Which columns a shape does not read, in words; of prompts alone nothing, as rewards may."""
        others = [str(column) for column in record if column not in (*KEYS[shape], *self.beside)] if shape in NEEDS else []
        return f" (not read: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''})" if others else ""

    def refuse_absent(self) -> None:
        """Raise UserError for a column that the user names and no record has had."""
        for key, columns in self.wanted.items():
            near = difflib.get_close_matches(self.named[key], columns, n=1)
            remedy = f": did you mean {key}={near[0]}?" if near else ""
            raise UserError(f"--columns {key}={self.named[key]}: there is no column {self.named[key]!r} among {', '.join(columns)}{remedy}")


class Uncertain(UserError):
    """Columns that can be meant in several ways, and by key how they may be."""

    def __init__(self, columns: Sequence[str], likely: Names) -> None:
        text = " (--shape text takes the text alone)" if "text" in columns else ""
        super().__init__(f"the columns {', '.join(columns)} can be meant in several ways{text}")
        self.likely = likely


@cache
def _text_keys(shape: str) -> tuple[str, ...]:
    """The keys of a shape that hold what is said."""
    return tuple(key for key in KEYS.get(shape, ()) if key in TEXTS and not (key == "output" and shape in PROMPTS_ALONE))


def certain_names(columns: tuple[str, ...], shapes: tuple[str, ...], plain_sides: bool = False) -> Names:
    """The columns whose meaning is certain though no shape calls them so, by key; `plain_sides` says that chosen and rejected are texts alone.

    So are a key with other letter cases or with spaces around it, and one column that holds a question beside one that holds an answer.
    Raises Uncertain where both are there and it is not certain what else belongs to them.
    """
    folded = _folded(columns, shapes)
    own = {column: key for key, column in folded.items()}
    found = _pair(tuple(own.get(column, column) for column in columns), shapes, plain_sides)  # from keys to keys
    found = {key: folded.get(column, column) for key, column in found.items()}
    rest = {key: column for key, column in folded.items() if column not in found.values()}
    systems = [column for column in columns if _plain(column) in SYSTEMS]
    if len(systems) == 1 and "system" not in (*columns, *folded) and "messages" not in columns and not alone(shapes):
        rest["system"] = systems[0]
    return {**rest, **{key: column for key, column in found.items() if key != column}}


def _folded(columns: tuple[str, ...], shapes: tuple[str, ...]) -> Names:
    """The known keys that a column is called but for letter cases and spaces, where one column is and none exactly."""
    if alone(shapes) and any(key in columns for key in (*PROMPTS_ALONE, "messages")):
        return {}  # a reward may read the others as they are called
    known = {key for shape in shapes for key in KEYS.get(shape, ())}
    called: dict[str, list[str]] = {}
    for column in columns:
        called.setdefault(_plain(column), []).append(column)
    return {key: same[0] for key, same in called.items() if key in known and key not in same and len(same) == 1}


def _pair(keys: tuple[str, ...], shapes: tuple[str, ...], plain_sides: bool) -> Names:
    """Which of the keys hold what the shapes need and none of them has by its name. Raises Uncertain where several may."""
    kinds = (QUESTIONS, ANSWERS, INPUTS, CONTEXTS, JUDGEMENTS, ("history",), ("text",))
    asks, says, inputs, contexts, judged, history, texts = ([key for key in keys if _plain(key) in names] for names in kinds)
    if "preference" in shapes and (paired := {"chosen", "rejected"} <= {*keys}) | ("responses" in keys):
        if "prompt" in keys or len(asks) != 1 or paired and not plain_sides:
            return {}
        if more := inputs + contexts + history:
            raise Uncertain([*asks, *more], {"prompt": asks[0]})
        return {"prompt": asks[0]}
    if alone(shapes):
        return {"prompt": asks[0]} if "prompt" in shapes and len(asks) == 1 and asks[0] not in shapes else {}
    fitting = [shape for shape in shapes if NEEDS.get(shape, {""}) <= {*keys}]
    if fitting and not (fitting == ["text"] and asks and says):
        return {}
    pair = {key: key if key in among else among[0] for key, among in (("prompt", asks), ("completion", says)) if among}
    one_each, beside = len(asks) == len(says) == 1, contexts + judged + history + texts
    if "judged" in shapes and "label" in keys and one_each:
        if more := inputs + contexts + history:
            raise Uncertain([*asks, *more, *says], pair)
        return pair
    if not (asks and says and {"prompt_completion", "triplet"} & {*shapes}):
        return {}
    if one_each and not beside and not inputs and "prompt_completion" in shapes:
        return pair
    asked, said = ("instruction" if "instruction" in asks else asks[0]), ("output" if "output" in says else says[0])
    more = [*inputs, *contexts, *(key for key in asks if key != asked)][:1]
    triplet = {"instruction": asked, **{"input": column for column in more}, "output": said}
    if one_each and not beside and len(inputs) < 2 and "triplet" in shapes:
        return triplet
    likely = triplet if "triplet" in shapes and (more or "prompt_completion" not in shapes) else pair
    raise Uncertain([*asks, *inputs, *beside, *says], likely)


def column_names(shapes: Iterable[str]) -> set[str]:
    """Names that columns of such records may have."""
    return {*QUESTIONS, *ANSWERS, *INPUTS, *CONTEXTS, *SYSTEMS, *JUDGEMENTS, *(key for shape in shapes for key in KEYS.get(shape, ()))}


class Row(dict):
    """A record of a table: what its keys are stands in the first row."""


def columns_hint(record: Mapping[str, Any], shapes: Collection[str]) -> str:
    """How to name the columns of a record that no shape fits, for the end of an error."""
    columns = [str(column) for column in record]
    if isinstance(record, Row) and not any(_plain(column) in column_names(shapes) for column in columns):
        return "; the first row must name the columns: where it is a record already, put one above it; then, if need be, " + _which(columns, shapes)
    return f", or {_which(columns, shapes)}"


def _which(columns: Sequence[str], shapes: Collection[str]) -> str:
    if "prompt_completion" in shapes and len(columns) == 2:
        asks, says = sorted(columns, key=lambda column: (_plain(column) in ANSWERS) - (_plain(column) in QUESTIONS))
        pairs = [f"prompt={asks}", f"completion={says}"]
    elif "prompt_completion" in shapes:
        pairs = ["prompt=COLUMN", "completion=COLUMN"]
    else:
        pairs = ["prompt=COLUMN", *(("chosen=COLUMN", "rejected=COLUMN") if "preference" in shapes else ())]
    return f"say which column is which: --columns {_quoted(pairs)}"


def missing_hint(record: Mapping[str, Any], shape: str | None) -> str:
    """How to name the column of the one key that a record's shape needs and it lacks; nothing where it has no other column."""
    lacking = NEEDS.get(shape or "", set()) - {key for key, value in record.items() if value is not None}
    others = [str(column) for column in record if column not in KEYS.get(shape or "", ())]
    if len(lacking) != 1 or not others:
        return ""
    column = others[0] if len(others) == 1 else "COLUMN"
    return f"; if another column holds it, say which: --columns {_quoted([f'{lacking.pop()}={column}'])}"


def _column(record: Mapping[str, Any], name: str) -> str | None:
    """The column that is called so, spaces around the name not counted where it is the only one; None without."""
    if name in record:
        return name
    same = [column for column in record if isinstance(column, str) and _spelled(column) == _spelled(name)]
    return same[0] if len(same) == 1 else None


def _spelled(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()  # a Mac may write 한 as ㅎㅏㄴ


def _renamed(record: Mapping[str, Any], names: Names) -> Mapping[str, Any]:
    if not names:
        return record
    keys = {column: key for key, column in names.items()}
    return {keys.get(column, column): value for column, value in record.items() if column in keys or column not in names}


def _plain_sides(record: Mapping[str, Any]) -> bool:
    sides = (record.get("chosen"), record.get("rejected"))
    return all(isinstance(side, str) and not side.lstrip().startswith(("[{", "Human:")) for side in sides)


def _plain(column: Any) -> str:
    return unicodedata.normalize("NFKC", str(column)).strip().casefold()


def _quoted(pairs: Iterable[str]) -> str:
    """Words as a shell takes them."""
    return " ".join(pair if all(letter.isalnum() or letter in "_-=.:," for letter in pair) else shlex.quote(pair) for pair in pairs)


def _described(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return f"the number {value}" if isinstance(value, (int, float, Decimal)) else f"{value!r:.40}"
