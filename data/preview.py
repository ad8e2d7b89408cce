"""Rows as the model sees them: whole characters, trained tokens told from masked ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from .accounting import Accounting
from .labels import IGNORE_INDEX
from .literal import literal_text

TRAINED, MASKED, TITLE = "bold green underline", "dim", "bold reverse"
BRACKETS = ("【", "】")  # which the encodings of Korean Windows have too
_LONGEST_CHARACTER = 8  # tokens that may have to be joined before they decode

# of labels.prepare, of preference_rows.prepare_preferences, prepare_unpaired or prepare_prompts, or of seq2seq.rows.seq2seq_rows with one first id
Row = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """The fewest tokens that decode to whole characters; trained where one of them is."""

    text: str
    ids: tuple[int, ...]
    trained: bool


@dataclass(frozen=True)
class Part:
    """A stretch of a row under its title: a whole dialogue, the prompt or the source (no title), or one answer."""

    title: str
    pieces: list[Piece]


def parts(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[Part]:
    """What is shown of a row: a dialogue whole; a prompt once, then each of its answers, the best first; a source, then its target."""
    if "decoder_input_ids" in row:
        source = {"input_ids": row["input_ids"], "labels": [IGNORE_INDEX] * len(row["input_ids"])}
        target = {"input_ids": target_ids(row), "labels": row["labels"]}
        return [Part(title, list(pieces(side, tokenizer))) for title, side in (("", source), ("target", target))]
    if "labels" in row:
        return [Part("", list(pieces(row, tokenizer)))]
    prompt = row["prompt_ids"]
    masked = [IGNORE_INDEX] * len(prompt)
    shown = [Part("", list(pieces({"input_ids": prompt, "labels": masked}, tokenizer)))]
    for title, answer in answers(row):
        behind = pieces({"input_ids": prompt + answer, "labels": masked + answer}, tokenizer)
        shown.append(Part(title, [piece for piece in behind if piece.trained]))
    return shown


def target_ids(row: Row) -> list[int]:
    """The ids of a target, those that are given too: behind its first id the decoder is shown all but the last."""
    return [*row["decoder_input_ids"][1:], row["labels"][-1]]


def answers(row: Row) -> list[tuple[str, list[int]]]:
    """The ids of the answers behind a prompt under what is thought of them, the best first.

    >>> answers({"branches": [[7], [8]], "ranks": [1, 0]})
    [('chosen', [8]), ('rejected', [7])]
    """
    if "completion_ids" in row:
        return [("good" if row["label"] else "bad", row["completion_ids"])]
    ranked = sorted(zip(row.get("ranks", []), row.get("branches", []), strict=True), key=lambda pair: pair[0])
    titles = ["chosen", "rejected"] if len(ranked) == 2 else [f"rank {rank:g}" for rank, _ in ranked]
    return [(title, answer) for title, (_, answer) in zip(titles, ranked, strict=True)]


def pieces(row: Row, tokenizer: PreTrainedTokenizerBase) -> Iterator[Piece]:
    """A row's text, cut between tokens wherever that does not cut a character."""
    before: list[int] = []  # the piece before, for tokenizers whose tokens decode otherwise at the beginning
    group: list[int] = []
    trained = [label != IGNORE_INDEX for label in row["labels"]]
    for at, token in enumerate(row["input_ids"]):
        group.append(token)
        text = literal_text(tokenizer, before + group)[len(literal_text(tokenizer, before)) :]
        if not text.endswith("\ufffd") or len(group) == _LONGEST_CHARACTER or at + 1 == len(trained):
            yield Piece(text, tuple(group), any(trained[at + 1 - len(group) : at + 1]))
            before, group = group, []


def preview(records: Sequence[tuple[str, Sequence[Row]]], tokenizer: PreTrainedTokenizerBase, *, colours: bool = True) -> RenderableType:
    """The rows of some records for the terminal; a record is the place where it stands, and its rows.

    Trained tokens are told by their colour; without `colours` they stand between `BRACKETS`.
    """
    return Group(*(_panel(where, number, rows, tokenizer, colours) for where, rows in records for number in range(max(len(rows), 1))))


def _panel(where: str, number: int, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, colours: bool) -> Panel:
    if not rows:
        return Panel(Text("dropped", style="red"), title=Text(where), title_align="left")
    body = Text()
    for part in parts(rows[number], tokenizer):
        if part.title:
            body.append("" if body.plain.endswith("\n") else "\n").append(f" {part.title} ", style=TITLE).append(" ")
        for trained, group in groupby(part.pieces, key=lambda piece: piece.trained):
            before, behind = BRACKETS if trained and not colours else ("", "")
            body.append(before)
            for piece in group:
                body.append(piece.text, style=TRAINED if trained else MASKED)
            body.append(behind)
    which = f", row {number + 1} of {len(rows)}" if len(rows) > 1 else ""
    return Panel(body, title=Text(where + which), title_align="left", subtitle=Text(summary(rows[number])), subtitle_align="right")


def length(row: Row) -> int:
    """The tokens of a row; of a prompt with answers, those up to the end of the longest; of a source, its target's too."""
    if "decoder_input_ids" in row:
        return len(row["input_ids"]) + len(row["labels"])
    return len(row["input_ids"]) if "labels" in row else len(row["prompt_ids"]) + max((len(answer) for _, answer in answers(row)), default=0)


def summary(row: Row) -> str:
    """How many tokens there are and what they are for, in words."""
    if "labels" not in row:
        behind = ", ".join(f"{title} {len(answer)}" for title, answer in answers(row))
        return f"prompt {len(row['prompt_ids'])} tokens" + (f", {behind}" if behind else "")
    trained = sum(label != IGNORE_INDEX for label in row["labels"])
    if "decoder_input_ids" in row:
        return f"source {len(row['input_ids'])} tokens, target {len(row['labels'])}, {trained} trained"
    return f"{len(row['input_ids'])} tokens, {trained} trained, {len(row['input_ids']) - trained} masked"


def totals(counts: Accounting, lengths: Sequence[int]) -> list[str]:
    """The counts of all records, and how long their rows are."""
    return [*counts.lines(), *length_lines(lengths)]


def length_lines(lengths: Sequence[int], bins: int = 8) -> list[str]:
    """The lengths' smallest, middle and largest, and a bar for each of some equal spans.

    >>> length_lines([1, 2, 2, 8], bins=2)[1:]
    ['     1 to 4       ████████████████████████ 3', '     5 to 8       ████████ 1']
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
