"""What became of the records: each that was read is kept or dropped, once."""

import hashlib
import marshal
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import UserError

UNUSABLE = ("drop", "error")
EMPTY, NOTHING = "empty answer", "nothing to learn"
EMPTY_QUESTION, DOUBLED = "empty question", "read before, word for word"
SHOWN = 3  # ways in which columns were taken; records of one file may have some columns and not others
LOST = "U+FFFD in it, which stands for a character that was lost when the file was converted"
REMEMBERED = 65_536  # records of a stream among which doubled ones are found


def check_unusable(unusable: str) -> None:
    """Raise UserError for a way to treat unusable records that there is not."""
    if unusable not in UNUSABLE:
        raise UserError(f"unusable must be drop or error, got {unusable!r}")


NOTES = {  # what may have to be done for an answer: its name and its meaning in a line
    "boundary_merges": ("merges", "answers keep the token border that generation has"),
    "appended_eos": ("eos appended", "answers have no end in the template"),
    "thinking_dropped": ("thinking", "answers lost it to the template"),
    "text_dropped": ("text beside", "tool calls was lost to the template"),
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
    text_dropped: int = 0  # answers with tool calls whose text the template leaves out
    roles: Counter = field(default_factory=Counter)  # (as the record writes it, as it is read) -> messages of records that are kept
    taken: Counter = field(default_factory=Counter)  # which columns of a file were taken as what, in words -> records kept
    warned: Counter = field(default_factory=Counter)  # what is doubtful -> records that are kept all the same
    told: list[str] = field(default_factory=list, compare=False)  # what else there is to say of the records, in lines
    made: list[str] = field(default_factory=list, compare=False)  # where rows lie on disk, and how fast they were made, in lines: it says nothing of the records
    held_out: "Accounting | None" = None  # the same of the records that are not trained on
    remembers: int | None = field(default=REMEMBERED, compare=False)  # among how many records doubled ones are found; None: among all
    seen: dict[int, str] = field(default_factory=dict, repr=False, compare=False)  # a digest of a kept record's rows -> where it stands

    def count_record(
        self,
        rows: Sequence[Mapping[str, Any]],
        reasons: Counter,
        unusable: str = "drop",
        *,
        asked: Sequence[Mapping] = (),
        where: str = "",
        taken: str = "",
    ) -> None:
        """Count one record: kept with its rows, or else dropped for the first of the reasons why an answer of it was left out.

        `asked` are its messages, `where` is where it stands: what is doubtful about a record that is kept is counted too, and which columns were
        `taken` as what. Raises UserError instead of dropping it where `unusable` is "error".
        """
        self.records += 1
        if rows:
            self.kept += 1
            self.rows += len(rows)
            roles = [message.get("role") for message in asked]
            self.roles.update((role.written, str(role)) for role in roles if getattr(role, "written", ""))
            self.left_out.update(reasons)
            self.taken.update([taken] if taken else [])
            self.warned.update([EMPTY_QUESTION] * asks_nothing(asked) + [DOUBLED] * self.read_before(rows, where) + [LOST] * lost_characters(asked))
            return
        reason = next(iter(reasons), NOTHING)
        if unusable == "error":
            raise UserError(f"{reason}: mend the record, or leave such records out with --unusable drop")
        self.dropped[reason] += 1

    def read_before(self, rows: Sequence[Mapping[str, Any]], where: str) -> bool:
        """Whether another record had the same rows; one that a mix of sources draws again stands where it stood."""
        held = digest_of(rows)
        if held in self.seen:
            return not where or self.seen[held] != where
        self.seen[held] = where
        if self.remembers is not None and len(self.seen) > self.remembers:
            del self.seen[next(iter(self.seen))]
        return False

    def merge(self, more: "Accounting") -> None:
        """Count what was counted elsewhere of further records too; doubled ones of both are not looked for."""
        for each in fields(self):
            count = getattr(more, each.name)
            if isinstance(count, Counter):
                getattr(self, each.name).update(count)
            elif each.name != "remembers" and isinstance(count, int):
                setattr(self, each.name, getattr(self, each.name) + count)

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
        """What had to be done for messages and answers, in lines, where it was."""
        roles = [counted("roles", count, f"messages of {written!r} are read as {role}") for (written, role), count in sorted(self.roles.items())]
        return [*roles, *(counted(name, getattr(self, note), meaning) for note, (name, meaning) in NOTES.items() if getattr(self, note))]

    def records_line(self) -> str:
        """How many records were read and kept, in a line."""
        return f"records         {self.records:,} read, {self.kept:,} kept in {self.rows:,} rows"

    def lost_lines(self) -> list[str]:
        """Which columns were taken as what, and what was dropped and left out, in lines; of held-out records too."""
        lines = [*self.told]
        lines += [f"columns         {names}, in {count:,} records" for names, count in self.taken.most_common(SHOWN)]
        lines += [f"dropped         {count:,} x {reason}" for reason, count in sorted(self.dropped.items())]
        lines += [f"left out        {count:,} x {reason}, beside answers that are kept" for reason, count in sorted(self.left_out.items())]
        lines += [f"warning         {count:,} x {doubt}, kept all the same" for doubt, count in sorted(self.warned.items())]
        if self.held_out is None:
            return lines
        lines += [f"{line}, of {self.held_out.records:,} records held out" for line in self.held_out.lost_lines()]
        leaked = sum(held in self.seen for held in self.held_out.seen)
        return [*lines, f"warning         {leaked:,} x held out and trained on, word for word: it is no measure"] if leaked else lines


def digest_of(rows: Sequence[Mapping[str, Any]]) -> int:
    """The digest of rows, wherever they stand."""
    held = [{name: value for name, value in row.items() if name != "where"} for row in rows]
    try:
        told = marshal.dumps(held, 0)  # in a tenth of the time of `repr`
    except ValueError:  # what is none of Python's own types
        told = repr(held).encode(errors="surrogatepass")
    return short_digest(told)


def short_digest(data: bytes) -> int:
    """Sixty-four bits that tell bytes from others."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def asks_nothing(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a user says nothing, or nothing but blanks, in one of the messages."""
    said = [message.get("content") for message in messages if message.get("role") == "user"]
    return any(not (content.strip() if isinstance(content, str) else content) for content in said)


def lost_characters(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a text in the messages holds the character that stands for one that could not be decoded."""
    return any("\ufffd" in message["content"] for message in messages if isinstance(message.get("content"), str))
