"""Texts with entities to rows that a tagger is trained on, and the counts of what became of them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..accounting import Accounting, counted
from ..errors import UserError
from ..files.sources import at_a_time
from ..labels import IGNORE_INDEX
from .encoding import Place, TagEncoder, TagEncoding
from .records import TaggedText
from .schemes import Span, label_set, tags_of

Row = dict[str, Any]  # windows: [{input_ids, perhaps token_type_ids, labels, where}], units, entities, where
NO_TAGS, NO_TEXT = "no tags", "empty text"
BATCH = 512  # texts encoded at a time
SHOWN = 12  # labels named in a line


@dataclass
class TagCounts(Accounting):
    """The counts of texts with entities."""

    max_length: int | None = None
    windowed: int = 0  # texts of several windows
    snapped: int = 0  # entities of which a border falls inside what gets one tag
    lost: int = 0  # entities of which no tag tells
    entities: Counter = field(default_factory=Counter)  # label -> entities of the records kept
    plain: int = 0  # records kept without an entity

    def lines(self) -> list[str]:
        """The counts for people: what there is always, what had to be done only where it was."""
        lines = [f"{self.records_line()}, {self.tokens:,} tokens", *self.lost_lines()]
        if self.windowed:
            lines.append(counted("windows", self.windowed, f"texts longer than {self.max_length} tokens are read in several"))
        if self.entities:
            more = f" and {len(self.entities) - SHOWN} more" if len(self.entities) > SHOWN else ""
            named = ", ".join(f"{label} {count:,}" for label, count in sorted(self.entities.items())[:SHOWN])
            lines.append(f"entities        {self.entities.total():,}: {named}{more}; {self.plain:,} texts without")
        for counts, of in ((self, ""), (self.held_out, ", of those held out")):
            if counts is not None and counts.snapped:
                lines.append(counted("snapped", counts.snapped, f"entities end inside a token: learned as the whole token, measured as they are{of}"))
            if counts is not None and counts.lost:
                lines.append(counted("unread", counts.lost, f"entities have no token of their own: they are not learned, and count as missed{of}"))
        return lines


def usable(examples: Iterable[TaggedText]) -> list[TaggedText]:
    """The texts that can be learned from."""
    return [each for each in examples if each.entities is not None and each.text.strip()]


def entity_labels(examples: Iterable[TaggedText]) -> list[str]:
    """The labels of the entities in some texts, by the alphabet."""
    return sorted({span.label for each in examples for span in each.entities or ()})


def tagging_rows(examples: Sequence[TaggedText], encoder: TagEncoder, names: Sequence[str], unusable: str = "drop") -> tuple[list[Row], TagCounts]:
    """The texts as rows, and the counts; `names` are the tags in their order.

    A row has `windows`, what the model reads, each with the place of a name in `labels` or -100; the `units` that get a tag, the `entities` as
    they are, both in characters, and `where`. Raises UserError for a label that is not among the names, where no record is left, and with `unusable` "error" for a
    record without a text or tags.
    """
    rows, counts = [], TagCounts(max_length=encoder.max_length)
    place = {name: number for number, name in enumerate(names)}
    for some in at_a_time(examples, BATCH):
        for each, found in zip(some, encoder([each.text for each in some], [each.words for each in some]), strict=True):
            reasons = Counter([NO_TAGS] if each.entities is None else [] if each.text.strip() and found.units else [NO_TEXT])
            made = [] if reasons else [_row(each, found, place, counts)]
            try:
                counts.count_record([window for row in made for window in row["windows"]], reasons, unusable, where=each.where)
            except UserError as error:
                raise UserError(f"{each.where}: {error}") from None
            rows += made
    counts.refuse_empty()
    return rows, counts


def _row(each: TaggedText, found: TagEncoding, place: dict[str, int], counts: TagCounts) -> Row:
    if unknown := next((span.label for span in each.entities if f"B-{span.label}" not in place), None):
        known = label_set(place)
        told = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
        raise UserError(f"{each.where}: the label {unknown!r} is none of those trained on ({told}): mend the record, or add such records to the training data")
    spans, snapped, lost = spans_over(found.units, each.entities)
    counts.snapped, counts.lost, counts.plain = counts.snapped + snapped, counts.lost + lost, counts.plain + (not each.entities)
    counts.windowed, counts.tokens = counts.windowed + (len(found.windows) > 1), counts.tokens + found.tokens
    counts.entities.update(span.label for span in each.entities)
    tags, windows = iter(tags_of(spans, len(found.units))), []
    for window in found.windows:
        labels = [IGNORE_INDEX] * len(window.input_ids)
        for at in window.asked:
            labels[at] = place[next(tags)]
        kinds = {} if window.token_type_ids is None else {"token_type_ids": window.token_type_ids}
        if window.asked:
            windows.append({"input_ids": window.input_ids, **kinds, "labels": labels, "where": each.where})
    return {"windows": windows, "units": [list(unit) for unit in found.units], "entities": [list(span) for span in each.entities], "where": each.where}


def spans_over(units: Sequence[Place], entities: Sequence[Span]) -> tuple[list[Span], int, int]:
    """Entities by the parts of a text that get a tag each, as [start, end) of these; and how many have a border inside such a part, and how many none of their own.

    Both are in the order of the text. A part in which two entities lie belongs to the first of them.

    >>> spans_over([(0, 2), (2, 4), (5, 6)], [Span(0, 1, "PER"), Span(2, 6, "LOC")])
    ([Span(start=0, end=1, label='PER'), Span(start=1, end=3, label='LOC')], 1, 0)
    """
    spans, snapped, lost, unit = [], 0, 0, 0
    for start, end, label in entities:
        while unit < len(units) and units[unit][1] <= start:
            unit += 1
        first = unit
        while unit < len(units) and units[unit][0] < end:
            unit += 1
        if unit == first:
            lost += 1
            continue
        taken = first > 0 and units[first - 1][1] > start  # by the entity before
        snapped += taken or units[first][0] < start or units[unit - 1][1] > end
        spans.append(Span(first, unit, label))
    return spans, snapped, lost


def entities_from(spans: Iterable[Span], units: Sequence[Place]) -> list[Span]:
    """Entities counted in parts of a text as they lie in the text."""
    return [Span(units[start][0], units[end - 1][1], label) for start, end, label in spans]
