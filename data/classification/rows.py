"""Labelled texts to rows that a classifier is trained on, and the counts of what became of them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ..accounting import Accounting, counted
from ..errors import UserError
from ..files.sources import at_a_time
from .encoding import TextEncoder
from .labels import MULTI, SINGLE, Label, label_counts, names_in, parse_label, to_target
from .records import TextRecord

Row = dict[str, Any]  # input_ids, perhaps token_type_ids, label, where
NO_LABEL, NO_TEXT = "no label", "empty text"
BATCH = 512  # texts encoded at a time
SHOWN = 12  # classes named in a line


@dataclass
class TextCounts(Accounting):
    """The counts of labelled texts; `cut` is the side on which the truncated ones were cut."""

    cut: str = "right"
    max_length: int | None = None
    classes: list[tuple[str, int]] = field(default_factory=list)  # of the records kept

    def lines(self) -> list[str]:
        """The counts for people: what there is always, what had to be done only where it was."""
        lines = [f"{self.records_line()}, {self.tokens:,} tokens", *self.lost_lines()]
        if self.truncated:
            where = {"right": "their end", "left": "their beginning", "middle": "their middle"}[self.cut]
            lines.append(counted("truncated", self.truncated, f"texts longer than {self.max_length} tokens lost {where}"))
        if self.classes:
            more = f" and {len(self.classes) - SHOWN} more" if len(self.classes) > SHOWN else ""
            lines.append("labels          " + ", ".join(f"{name} {count:,}" for name, count in self.classes[:SHOWN]) + more)
        folded = sorted((" ".join(name.split()).casefold(), name) for name, _ in self.classes)
        if alike := next(((one, other) for (key, one), (same, other) in pairwise(folded) if key == same), None):
            lines.append(f"warning         the labels {alike[0]!r} and {alike[1]!r} are two classes, and differ in spaces or capitals alone")
        return lines


@dataclass(frozen=True)
class Labelled:
    """A record with its label parsed, None where there is none."""

    record: TextRecord
    label: Label | None


def with_labels(records: Iterable[TextRecord], problem: str) -> list[Labelled]:
    """The records with their labels. Raises UserError for a label that is none of such a problem."""
    return [Labelled(record, parse_label(record.label, problem, record.where)) for record in records]


def usable_labels(examples: Iterable[Labelled]) -> list[Label]:
    """The labels of the records that can be learned from."""
    return [each.label for each in examples if each.label is not None and has_text(each.record)]


def has_text(record: TextRecord) -> bool:
    """Whether there is something to read: of a pair, in both texts."""
    return bool(record.text.strip()) and (record.text_pair is None or bool(record.text_pair.strip()))


def classification_rows(
    examples: Sequence[Labelled], encoder: TextEncoder, names: Sequence[str], problem: str, unusable: str = "drop"
) -> tuple[list[Row], TextCounts]:
    """The records as rows of `input_ids`, `label` and `where`, with `token_type_ids` where the tokenizer gives them, and the counts.

    Raises UserError for a label that is not among the names, where no record is left, and with `unusable` "error" for a record without a text or label.
    """
    if any(each.record.text_pair is not None for each in examples):
        encoder.check_pairs()
    rows, counts = [], TextCounts(cut=encoder.cut, max_length=encoder.max_length)
    for some in at_a_time(examples, BATCH):
        texts, pairs = [each.record.text for each in some], [each.record.text_pair for each in some]
        encoded = encoder(texts, None if pairs[0] is None else pairs)
        for each, found in zip(some, encoded, strict=True):
            reasons = Counter([NO_LABEL] if each.label is None else [] if has_text(each.record) else [NO_TEXT])
            made = []
            if not reasons:
                kinds = {} if found.token_type_ids is None else {"token_type_ids": found.token_type_ids}
                target = to_target(each.label, names, problem, each.record.where)
                made = [{"input_ids": found.input_ids, **kinds, "label": target, "where": each.record.where}]
                counts.tokens += len(found.input_ids)
                counts.truncated += found.truncated
            try:
                counts.count_record(made, reasons, unusable, where=each.record.where)
            except UserError as error:
                raise UserError(f"{each.record.where}: {error}") from None
            rows += made
    counts.refuse_empty()
    if problem in (SINGLE, MULTI):
        labels = usable_labels(examples)
        counts.classes = list(zip(names, label_counts(labels, names), strict=True))
    return rows, counts


def hold_out_by_label(examples: Sequence[Labelled], fraction: float, order: Sequence[int], problem: str) -> tuple[list[Labelled], list[Labelled]]:
    """Hold out a share of every class, in a given `order` of chance, but never the last record of one; of other problems of all records.

    Raises UserError where that leaves one side empty.
    """
    place = {index: rank for rank, index in enumerate(order)}
    keyed = sorted(range(len(examples)), key=lambda index: (str(examples[index].label) if problem == SINGLE else "", place[index]))
    left = Counter(name for each in examples if each.label is not None and has_text(each.record) for name in names_in(each.label))
    held, due, before = set(), 0.0, object()
    for index in keyed:
        label = examples[index].label if problem == SINGLE else None
        due += fraction
        names = names_in(examples[index].label) if problem == MULTI and examples[index].label is not None else ()
        if due >= 1 - 1e-9 and label == before and all(left[name] > 1 for name in names):
            held.add(index)
            left.subtract(names)
            due -= 1
        before = label
    if not held or len(held) == len(examples):
        raise UserError(f"eval_fraction {fraction} of {len(examples)} records leaves nothing {'held out' if not held else 'to train on'}: change it")
    return [each for index, each in enumerate(examples) if index not in held], [examples[index] for index in sorted(held)]
