"""What became of plain text: documents, characters, tokens, and the rows that they went into."""

from dataclasses import dataclass, fields

from ..accounting import counted
from ..errors import UserError


@dataclass
class TextCounts:
    """How many documents were read, and how much is in those that are kept."""

    documents: int = 0  # read
    empty: int = 0  # of them, nothing but blanks in them
    doubled: int = 0  # read before, word for word, and kept all the same
    in_parts: int = 0  # so long that they were encoded part by part
    characters: int = 0  # of those that are kept, as what follows
    bytes: int = 0  # in UTF-8
    tokens: int = 0
    unknown: int = 0  # tokens that stand for what the tokenizer cannot say

    @property
    def kept(self) -> int:
        """Documents with a text."""
        return self.documents - self.empty

    def refuse_empty(self, names: str) -> None:
        """Raise UserError where no document has a text."""
        if not self.kept:
            raise UserError(f"{names}: there is no text, none of the documents ({self.documents:,}) has anything but blanks in it")

    def lines(self) -> list[str]:
        """The counts for people."""
        some = [
            ("empty", self.empty, "documents have no tokens, nothing but blanks is in them"),
            ("warning", self.doubled, "documents were read before, word for word, kept all the same"),
            ("in parts", self.in_parts, "documents are so long that they were encoded part by part"),
            ("unknown", self.unknown, f"tokens stand for what the tokenizer cannot say ({self.unknown / max(self.tokens, 1):.2%})"),
        ]
        return [
            f"documents       {self.documents:,} read, {self.kept:,} kept",
            f"text            {self.characters:,} characters, {self.bytes:,} bytes, {self.tokens:,} tokens "
            f"({self.bytes / max(self.tokens, 1):.2f} bytes a token)",
            *(counted(*each) for each in some if each[1]),
        ]

    def as_dict(self) -> dict[str, int]:
        """The numbers by their names."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass
class RowCounts:
    """How documents went into rows."""

    max_length: int
    documents: int = 0
    pieces: int = 0
    rows: int = 0
    tokens: int = 0  # in rows, with what the tokenizer puts around a text
    split: int = 0  # documents longer than a row, in several pieces
    split_pieces: int = 0  # theirs

    def lines(self) -> list[str]:
        """The counts for people."""
        filled = self.tokens / max(self.rows * self.max_length, 1)
        lines = [f"packed          {self.documents:,} documents in {self.rows:,} rows of at most {self.max_length:,} tokens, {filled:.1%} full"]
        return [*lines, counted("split", self.split, f"documents are longer than a row, in {self.split_pieces:,} pieces")] if self.split else lines
