"""Records of texts that belong together: an anchor, what belongs to it, perhaps texts that do not, perhaps how much it does."""

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..accounting import Accounting, counted
from ..classification.encoding import TextEncoder
from ..columns import parse_columns
from ..errors import UserError
from ..files.sources import at_a_time, records_of
from ..surrogates import refuse_surrogates

# Columns by what they hold, the usual name first; of several in a record, the one that comes first here.
ANCHORS = ("anchor", "query", "question", "sentence1", "text1")
POSITIVES = ("positive", "document", "passage", "answer", "sentence2", "text2")
NEGATIVES = ("negative", "negatives", "hard_negatives")  # and negative_1, negative_2, ...: a text or a list of them
KEYS = {"anchor": ANCHORS, "positive": POSITIVES, "negative": NEGATIVES, "score": ("score", "similarity_score", "similarity")}
SAME, EMPTY, UNLIKE = "anchor and positive are one text", "empty text", "score below min_score"
BATCH = 512  # texts encoded at a time
Row = dict[str, Any]  # input_ids of all its texts end to end, lengths of each (anchor, positive, negatives), where, perhaps score


@dataclass(frozen=True)
class TextPair:
    """A record as it stands in its file."""

    where: str
    anchor: str
    positive: str
    negatives: tuple[str, ...] = ()
    score: float | None = None


@dataclass
class PairCounts(Accounting):
    """The counts of pairs; `max_length` is how many tokens of a text are read."""

    max_length: int | None = None
    texts: int = 0
    negatives: int = 0
    scored: int = 0

    def lines(self) -> list[str]:
        """The counts for people: what there is always, what had to be done only where it was."""
        lines = [f"{self.records_line()}, {self.texts:,} texts of {self.tokens:,} tokens", *self.lost_lines()]
        if self.negatives:
            lines.append(counted("negatives", self.negatives, "texts that records say do not belong to theirs"))
        if self.truncated:
            lines.append(counted("truncated", self.truncated, f"texts longer than {self.max_length} tokens lost their end"))
        return lines


def pair_columns(words: Sequence[str] | None) -> dict[str, str]:
    """KEY=COLUMN as names of columns. Raises UserError for a key that a pair does not have."""
    named = parse_columns(words)
    if unknown := [key for key in named if key not in KEYS]:
        raise UserError(f"columns {unknown[0]}={named[unknown[0]]}: a pair has {', '.join(KEYS)} and no {unknown[0]!r}")
    return named


def text_pairs(
    sources: Sequence[str], columns: Mapping[str, str] | None = None, encoding: str | None = None, split: str = "train"
) -> Iterator[TextPair]:
    """The pairs of files, folders or datasets on the hub, read one after the other; `columns` says which column holds what, where it has no usual name.

    >>> pair_of({"query": "a cat", "document": "it purrs", "negative": ["it barks", "it rusts"]}, "line 1")
    TextPair(where='line 1', anchor='a cat', positive='it purrs', negatives=('it barks', 'it rusts'), score=None)

    Raises UserError, naming the place, for a record without an anchor or what belongs to it, for what is no text, and for a score that is no number.
    """
    known, empty = {name for names in KEYS.values() for name in names} | set((columns or {}).values()), True
    for name in sources:
        for where, record in records_of(name, encoding, known, split):
            if not isinstance(record, Mapping):
                raise UserError(f"{where}: a record must be an object with an anchor and a positive, got {record!r:.60}")
            refuse_surrogates(record, where)
            empty = False
            yield pair_of(record, where, columns)
    if empty:
        raise UserError(f"{', '.join(sources)} has no records")


def pair_of(record: Mapping[str, Any], where: str, columns: Mapping[str, str] | None = None) -> TextPair:
    """A record as a pair; raises UserError as `text_pairs` does."""
    columns = columns or {}
    anchor, positive = (_column(record, key, columns, where) for key in ("anchor", "positive"))
    named = columns.get("negative")
    names = [named] if named else [name for name in record if name in NEGATIVES or str(name).startswith("negative_")]
    if named and named not in record:
        raise UserError(f"{where}: there is no column {named!r} among {', '.join(map(str, record))}")
    negatives = [text for name in names for text in _texts(record[name], name, where)]
    score = next((name for name in ((columns["score"],) if "score" in columns else KEYS["score"]) if record.get(name) is not None), None)
    return TextPair(where, _text(record[anchor], anchor, where), _text(record[positive], positive, where), tuple(negatives), score and _number(record[score], score, where))


def pair_rows(pairs: Iterable[TextPair], encoder: TextEncoder, unusable: str = "drop", min_score: float | None = None, *, learned: bool = True) -> tuple[list[Row], PairCounts]:
    """Pairs as rows, each text's ids behind the others', and the counts of what became of them.

    With `min_score`, pairs of a lower score are left out of what is `learned`; without, a score among those is refused, for a pair of a low one does
    not belong together. Raises UserError where no pair is left, and with `unusable` "error" for one that cannot be used.
    """
    rows: list[Row] = []
    counts = PairCounts(max_length=encoder.max_length, remembers=None)
    for some in at_a_time(pairs, BATCH):
        texts = [text for pair in some for text in (pair.anchor, pair.positive, *pair.negatives)]
        encoded = iter(encoder(texts))
        for pair in some:
            found = [next(encoded) for _ in range(2 + len(pair.negatives))]
            if learned and pair.score is not None and min_score is None:
                raise UserError(f"{pair.where} has a score, {pair.score:g}: say from which one on two texts belong together, --min_score 4 where 5 is the highest")
            reasons = Counter(_unusable(pair, min_score, learned))
            made = [] if reasons else [_row(pair, [each.input_ids for each in found])]
            try:
                counts.count_record(made, reasons, "drop" if UNLIKE in reasons else unusable, where=pair.where)
            except UserError as error:
                raise UserError(f"{pair.where}: {error}") from None
            if made:
                counts.texts += len(found)
                counts.tokens += sum(len(each.input_ids) for each in found)
                counts.truncated += sum(each.truncated for each in found)
                counts.negatives += len(pair.negatives)
                counts.scored += pair.score is not None
            rows += made
    counts.refuse_empty()
    return rows, counts


def hold_out_by_anchor(pairs: Sequence[TextPair], fraction: float, seed: int) -> tuple[list[TextPair], list[TextPair]]:
    """Hold a share of the pairs out, those of one anchor together; the same for the same seed. Raises UserError where nothing would be left."""
    groups: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        groups.setdefault(pair.anchor, []).append(place)
    wanted, held = max(1, round(len(pairs) * fraction)), set()
    for anchor in random.Random(seed).sample(list(groups), len(groups)):
        if len(held) < wanted:
            held |= {*groups[anchor]}
    if len(held) == len(pairs):
        raise UserError(f"eval_fraction {fraction} leaves nothing to train on of {len(pairs)} pairs of {len(groups)} anchors: lower it, or give --eval_data")
    return [pair for place, pair in enumerate(pairs) if place not in held], [pairs[place] for place in sorted(held)]


def texts_of(row: Row) -> list[tuple[int, ...]]:
    """The ids of a row's anchor, of its positive and of each of its negatives."""
    ids, ends = row["input_ids"], 0
    return [tuple(ids[(begin := ends) : (ends := begin + length)]) for length in row["lengths"]]


def _row(pair: TextPair, ids: Sequence[list[int]]) -> Row:
    scored = {} if pair.score is None else {"score": pair.score}
    return {"input_ids": [id for each in ids for id in each], "lengths": [len(each) for each in ids], **scored, "where": pair.where}


def _unusable(pair: TextPair, min_score: float | None, learned: bool) -> list[str]:
    if not all(text.strip() for text in (pair.anchor, pair.positive, *pair.negatives)):
        return [EMPTY]
    if learned and pair.score is not None and min_score is not None and pair.score < min_score:
        return [UNLIKE]
    return [SAME] if learned and pair.anchor == pair.positive else []


def _column(record: Mapping[str, Any], key: str, columns: Mapping[str, str], where: str) -> str:
    names = (columns[key],) if key in columns else KEYS[key]
    found = next((name for name in names if name in record), None)
    if found is None:
        wanted = repr(columns[key]) if key in columns else f"{', '.join(names[:-1])} or {names[-1]}"
        raise UserError(f"{where}: there is no column {wanted} among {', '.join(map(str, record))}: say which is the {key}, --columns {key}=COLUMN")
    return found


def _text(value: Any, name: str, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {name} must be a text, got {value!r:.60}: name another column by --columns")
    return value or ""


def _texts(value: Any, name: str, where: str) -> list[str]:
    if value is None:
        return []
    return [_text(each, name, where) for each in value] if isinstance(value, (list, tuple)) else [_text(value, name, where)]


def _number(value: Any, name: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise UserError(f"{where}: {name} must be a number, got {value!r:.60}")
    return number
