"""The preview as one self-contained page."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from .accounting import Accounting
from .html_template import html_template
from .preview import Piece, Row, histogram, parts, summary

TEMPLATE = Path(__file__).with_name("preview_page.html.jinja")
Stretch = tuple[bool, list[Piece]]  # whether it is trained; neighbours that are share a mark, so that a screen reader meets it once


def to_html(
    records: Sequence[tuple[str, Sequence[Row]]],
    tokenizer: PreTrainedTokenizerBase,
    counts: Accounting,
    lengths: Sequence[int],
    title: str = "Preview",
) -> str:
    """A page with the totals and the rows of some records; trained text is underlined and tinted, each token tells its id on hover.

    It loads nothing, follows the reader's light or dark theme, and everything from the data is escaped.
    """
    spans = histogram(lengths) if lengths else []
    sections = [section(where, rows, number, tokenizer) for where, rows in records for number in range(max(len(rows), 1))]
    return html_template(TEMPLATE).render(
        title=title, counts=counts.lines(), spans=spans, most=max((count for _, _, count in spans), default=1), sections=sections
    )


@dataclass(frozen=True)
class Section:
    """One row of a record: where it stands, how long it is, and its parts, each with its title."""

    where: str
    summary: str
    parts: list[tuple[str, list[Stretch]]]


def section(where: str, rows: Sequence[Row], number: int, tokenizer: PreTrainedTokenizerBase) -> Section:
    """What the page shows of a record's row of this number; of a record without rows, that it was dropped."""
    if not rows:
        return Section(where, "dropped", [])
    which = f", row {number + 1} of {len(rows)}" if len(rows) > 1 else ""
    shown = [
        (part.title, [(trained, list(some)) for trained, some in groupby(part.pieces, key=lambda piece: piece.trained)])
        for part in parts(rows[number], tokenizer)
    ]
    return Section(where + which, summary(rows[number]), shown)
