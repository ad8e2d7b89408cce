"""The preview as one self-contained page."""

from collections.abc import Sequence
from html import escape

from transformers import PreTrainedTokenizerBase

from .labels import Counts
from .preference_rows import PreferenceCounts
from .preview import Piece, Row, histogram, parts, summary

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1b1b1b; --masked: #5c5c5c; --trained: #0b5d1e; --tint: #dff3e3; --line: #c9c9c9; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16181b; --ink: #eee; --masked: #a3a3a3; --trained: #9fe3ae; --tint: #1d3a25; --line: #3d4045; }
}
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--ground); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }
table { border-collapse: collapse; } th, td { padding: .15rem .8rem .15rem 0; text-align: left; font-weight: normal; white-space: nowrap; }
td.bar span { display: inline-block; height: .8em; background: var(--trained); }
section { margin: 1.2rem 0; border: 1px solid var(--line); border-radius: .5rem; padding: .2rem 1rem 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1rem; } h2 small { color: var(--masked); font-weight: normal; }
h3 { margin: .8rem 0 .2rem; font-size: .95rem; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: .95rem/1.7 ui-monospace, monospace; color: var(--masked); }
mark { background: var(--tint); color: var(--trained); text-decoration: underline; text-underline-offset: .35em; }
pre span:hover { outline: 1px solid var(--line); }
"""


def to_html(
    records: Sequence[tuple[str, Sequence[Row]]],
    tokenizer: PreTrainedTokenizerBase,
    counts: Counts | PreferenceCounts,
    lengths: Sequence[int],
    title: str = "Preview",
) -> str:
    """A page with the totals and the rows of some records; trained text is underlined and tinted, each token tells its id on hover.

    It loads nothing, follows the reader's light or dark theme, and everything from the data is escaped.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            "<p><mark>Underlined text is trained</mark>; the rest is context and masked.</p>",
            f"<pre>{escape(chr(10).join(counts.lines()))}</pre>",
            _lengths(lengths),
            *(_section(where, rows, number, tokenizer) for where, rows in records for number in range(max(len(rows), 1))),
            "</body></html>",
            "",
        ]
    )


def _lengths(lengths: Sequence[int]) -> str:
    if not lengths:
        return ""
    spans = histogram(lengths)
    most = max(count for _, _, count in spans)
    lines = [
        f'<tr><th scope="row">{start} to {end}</th><td>{count}</td><td class="bar"><span style="width:calc(min(16rem, 40vw) * {count / most:.3f})"></span></td></tr>'
        for start, end, count in spans
    ]
    return f"<h2>Tokens a row</h2><table><tr><th scope='col'>tokens</th><th scope='col'>rows</th><th></th></tr>{''.join(lines)}</table>"


def _section(where: str, rows: Sequence[Row], number: int, tokenizer: PreTrainedTokenizerBase) -> str:
    if not rows:
        return f"<section><h2>{escape(where)} <small>dropped</small></h2></section>"
    which = f", row {number + 1} of {len(rows)}" if len(rows) > 1 else ""
    heading = f"<h2>{escape(where + which)} <small>{summary(rows[number])}</small></h2>"
    bodies = (f"{f'<h3>{escape(part.title)}</h3>' if part.title else ''}<pre>{_body(part.pieces)}</pre>" for part in parts(rows[number], tokenizer))
    return f"<section>{heading}{''.join(bodies)}</section>"


def _body(pieces: Sequence[Piece]) -> str:
    """Spans of whole characters; neighbours that are trained share a mark, so that a screen reader meets it once."""
    html, marked = [], False
    for piece in pieces:
        if piece.trained != marked:
            html.append("<mark>" if piece.trained else "</mark>")
            marked = piece.trained
        html.append(f'<span title="{" ".join(map(str, piece.ids))}">{escape(piece.text)}</span>')
    return "".join([*html, "</mark>" if marked else ""])
