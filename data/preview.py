"""Rows as the model sees them: whole characters, trained tokens told from masked ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from .labels import IGNORE_INDEX, Counts, Row

TRAINED, MASKED = "bold green underline", "dim"
_LONGEST_CHARACTER = 8  # tokens that may have to be joined before they decode


@dataclass(frozen=True)
class Piece:
    """The fewest tokens that decode to whole characters; trained where one of them is."""

    text: str
    ids: tuple[int, ...]
    trained: bool


def pieces(row: Row, tokenizer: PreTrainedTokenizerBase) -> Iterator[Piece]:
    """A row's text, cut between tokens wherever that does not cut a character."""
    before: list[int] = []  # the piece before, for tokenizers whose tokens decode otherwise at the beginning
    group: list[int] = []
    trained = [label != IGNORE_INDEX for label in row["labels"]]
    for at, token in enumerate(row["input_ids"]):
        group.append(token)
        text = _decoded(tokenizer, before + group)[len(_decoded(tokenizer, before)) :]
        if not text.endswith("\ufffd") or len(group) == _LONGEST_CHARACTER or at + 1 == len(trained):
            yield Piece(text, tuple(group), any(trained[at + 1 - len(group) : at + 1]))
            before, group = group, []


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) if ids else ""


def preview(records: Sequence[tuple[str, Sequence[Row]]], tokenizer: PreTrainedTokenizerBase) -> RenderableType:
    """The rows of some records for the terminal; a record is the place where it stands, and its rows."""
    return Group(*(_panel(where, number, rows, tokenizer) for where, rows in records for number in range(max(len(rows), 1))))


def _panel(where: str, number: int, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> Panel:
    if not rows:
        return Panel(Text("dropped", style="red"), title=Text(where), title_align="left")
    body = Text()
    for piece in pieces(rows[number], tokenizer):
        body.append(piece.text, style=TRAINED if piece.trained else MASKED)
    which = f", row {number + 1} of {len(rows)}" if len(rows) > 1 else ""
    return Panel(body, title=Text(where + which), title_align="left", subtitle=Text(summary(rows[number])), subtitle_align="right")


def summary(row: Row) -> str:
    trained = sum(label != IGNORE_INDEX for label in row["labels"])
    return f"{len(row['input_ids'])} tokens, {trained} trained, {len(row['input_ids']) - trained} masked"


def totals(counts: Counts, lengths: Sequence[int]) -> list[str]:
    """The counts of all records, and how long their rows are."""
    return [*counts.lines(), *length_lines(lengths)]


def length_lines(lengths: Sequence[int], bins: int = 8) -> list[str]:
    """The lengths' smallest, middle and largest, and a bar for each of some equal spans.

    >>> length_lines([1, 2, 2, 8], bins=2)[1:]
    ['     1 to 4      ████████████████████████ 3', '     5 to 8      ████████ 1']
    """
    if not lengths:
        return []
    ordered = sorted(lengths)
    at = lambda share: ordered[min(int(share * len(ordered)), len(ordered) - 1)]  # noqa: E731
    lines = [f"lengths         {ordered[0]} to {ordered[-1]} tokens, half up to {at(0.5)}, nine in ten up to {at(0.9)}"]
    most = max(count for _, _, count in histogram(lengths, bins))
    for start, end, count in histogram(lengths, bins):
        bar = "█" * max(round(24 * count / most), 1 if count else 0)
        lines.append(f"{start:>6} to {end:<7} {bar} {count}")
    return lines


def histogram(lengths: Sequence[int], bins: int = 8) -> list[tuple[int, int, int]]:
    """(first, last, count) of equal spans that cover all lengths."""
    low, high = min(lengths), max(lengths)
    width = max(-(-(high - low + 1) // bins), 1)
    counts = [0] * -(-(high - low + 1) // width)
    for length in lengths:
        counts[(length - low) // width] += 1
    return [(low + width * index, low + width * (index + 1) - 1, count) for index, count in enumerate(counts)]
