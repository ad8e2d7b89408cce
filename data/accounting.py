"""What became of the records: each that was read is kept or dropped, once."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import UserError

UNUSABLE = ("drop", "error")
EMPTY, NOTHING = "empty answer", "nothing to learn"


def check_unusable(unusable: str) -> None:
    """Raise UserError for a way to treat unusable records that there is not."""
    if unusable not in UNUSABLE:
        raise UserError(f"unusable must be drop or error, got {unusable!r}")


NOTES = {  # what may have to be done for an answer: its name and its meaning in a line
    "boundary_merges": ("merges", "answers keep the token border that generation has"),
    "appended_eos": ("eos appended", "answers have no end in the template"),
    "thinking_dropped": ("thinking", "answers lost it to the template"),
}


def counted(name: str, count: int, meaning: str) -> str:
    """A line of the counts."""
    return f"{name:<16}{count:,} {meaning}"


@dataclass
class Accounting:
    """How many records were read, kept and dropped, and what of the kept ones was left out."""

    records: int = 0  # read: kept and dropped together
    kept: int = 0
    rows: int = 0  # of the records kept
    dropped: Counter = field(default_factory=Counter)  # reason -> records
    left_out: Counter = field(default_factory=Counter)  # reason -> answers of records that are kept
    tokens: int = 0  # of all rows
    truncated: int = 0  # rows whose context was cut on the left
    boundary_merges: int = 0  # answers whose first letters the tokenizer would have merged into the prompt
    appended_eos: int = 0  # answers that the template does not end
    thinking_dropped: int = 0  # answers whose thinking the template leaves out
    held_out: "Accounting | None" = None  # the same of the records that are not trained on

    def count_record(self, rows: Sequence[Any], reasons: Counter, unusable: str = "drop") -> None:
        """Count one record: kept with its rows, or else dropped for the first of the reasons why an answer of it was left out.

        Raises UserError instead of dropping it where `unusable` is "error".
        """
        self.records += 1
        if rows:
            self.kept += 1
            self.rows += len(rows)
            self.left_out.update(reasons)
            return
        reason = next(iter(reasons), NOTHING)
        if unusable == "error":
            raise UserError(f"{reason}: mend the record, or leave such records out with --unusable drop")
        self.dropped[reason] += 1

    def count_notes(self, notes: Iterable[str]) -> None:
        """Count what had to be done for one answer, by the names of `NOTES`."""
        for note in notes:
            setattr(self, note, getattr(self, note) + 1)

    def refuse_empty(self) -> None:
        """Raise UserError where no record was read, or none is kept."""
        if not self.records:
            raise UserError("the data has no records")
        if not self.kept:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.dropped.items())
            raise UserError(f"none of the {self.records} records can be used: {reasons}")

    def note_lines(self) -> list[str]:
        """What had to be done for answers, in lines, where it was."""
        return [counted(name, getattr(self, note), meaning) for note, (name, meaning) in NOTES.items() if getattr(self, note)]

    def records_line(self) -> str:
        """How many records were read and kept, in a line."""
        return f"records         {self.records:,} read, {self.kept:,} kept in {self.rows:,} rows"

    def lost_lines(self) -> list[str]:
        """What was dropped and left out, in lines; of held-out records too."""
        lines = [f"dropped         {count:,} x {reason}" for reason, count in sorted(self.dropped.items())]
        lines += [f"left out        {count:,} x {reason}, beside answers that are kept" for reason, count in sorted(self.left_out.items())]
        of_held = "" if self.held_out is None else f", of {self.held_out.records:,} records held out"
        return [*lines, *(f"{line}{of_held}" for line in (self.held_out.lost_lines() if self.held_out else ()))]
