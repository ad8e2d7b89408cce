"""The steps of diffusion as people read them: the whole canvas after each, what is new in it, and when each position became certain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from rich.cells import cell_len
from rich.text import Text

from ..requests.trace import DiffusionStep
from ..text.token_labels import TokenLabels

OPEN, NEW, OLD = "open", "new", "old"
WORD, SIGN = "<|mask|>", "░"  # an open position, as it is known, and where there is little room
STYLES = {NEW: "bold green", OPEN: "dim"}


class Stretch(NamedTuple):
    """Neighbouring positions of a canvas of one kind: open, new in this step, or certain before."""

    kind: str
    text: str


class Moment(NamedTuple):
    """When a position became certain for good, 0 where it was so from the beginning; its token, its log-probability, and how often it had been open again."""

    step: int
    id: int
    logprob: float
    again: int


def stretches(step: DiffusionStep, names: TokenLabels, compact: bool = True) -> list[Stretch]:
    """The canvas after a step, its stretches in order; spaces are spaces, other tokens that leave no ink have signs.

    A character that is spread over old and new tokens is new. Where it is `compact`, a mask is one sign, and a special token that is repeated is
    counted.
    """
    new, found = {position for position, *_ in step.committed}, []
    for kind, group in groupby(_pieces(step.canvas, new, names), key=lambda piece: piece[0]):
        ids = [step.canvas[position] for _, piece in group for position in piece]
        if kind == OPEN:
            text = (SIGN if compact else WORD) * len(ids)
        else:
            text = (_counted(ids, names) if compact else names.of(ids)).replace("␣", " ")
        found.append(Stretch(kind, text))
    return found


def _counted(ids: Sequence[int], names: TokenLabels) -> str:
    """The names of some tokens as one text; of special ones that follow themselves once, and how many there are."""
    text, plain = "", []
    for id, group in groupby(ids):
        count = len(list(group))
        if count > 1 and names.is_special(id):
            text, plain = f"{text}{names.of(plain)}{names(id)}×{count}", []
        else:
            plain += [id] * count
    return text + names.of(plain)


def _pieces(canvas: Sequence[int | None], new: set[int], names: TokenLabels) -> Iterator[tuple[str, list[int]]]:
    """Yield the positions of a canvas by whole characters, with their kinds."""
    for is_open, group in groupby(range(len(canvas)), lambda position: canvas[position] is None):
        positions = list(group)
        if is_open:
            yield OPEN, positions
            continue
        for count in names.whole([canvas[position] for position in positions]):
            piece, positions = positions[:count], positions[count:]
            yield NEW if new.intersection(piece) else OLD, piece


def history(steps: Iterable[DiffusionStep], names: TokenLabels, compact: bool = False) -> Iterator[Text]:
    """Yield the canvas after each step, a line each (`Step 1: <|mask|><|mask|> is<|mask|>`): what is new in green."""
    for step in steps:
        line = Text(f"Step {step.step}: ", overflow="fold")
        for kind, text in stretches(step, names, compact):
            line.append(text, style=STYLES.get(kind, ""))
        yield line


def fitting(steps: Sequence[DiffusionStep], names: TokenLabels, width: int) -> list[Text]:
    """The history in lines of so many columns: in full where all of them fit, else compact."""
    full = list(history(steps, names))
    return full if all(line.cell_len <= width for line in full) else list(history(steps, names, compact=True))


def states(steps: Sequence[DiffusionStep]) -> Iterator[list[Moment | None]]:
    """Yield after each step when every position of the canvas became certain; None for one that is open."""
    found: list[Moment | None] = [None if id is None else Moment(0, id, 0.0, 0) for id in steps[0].canvas]
    again = [0] * len(found)
    for step in steps:
        for position in step.remasked:
            found[position] = None
            again[position] += 1
        for (position, id, _), logprob in zip(step.committed, step.logprobs, strict=True):
            found[position] = Moment(step.step, id, logprob, again[position])
        yield list(found)


def moments(steps: Sequence[DiffusionStep]) -> list[Moment | None]:
    """When each position of the canvas became certain; None for one that is open in the end."""
    *_, found = states(steps)
    return found


def when_certain(steps: Sequence[DiffusionStep], names: TokenLabels, width: int = 100) -> Text:
    """When each position became certain, for a terminal of `width` columns: each token over its step, coloured by it, from the first to the last."""
    found, last = moments(steps), steps[-1].step
    text = Text.assemble("when each token became certain: step 1 ", *(("  ", shade(share / 11)) for share in range(12)), f" step {last}", no_wrap=True)
    text.append("; ↺: had been certain before" if any(each and each.again for each in found) else "")
    row: list[tuple[str, str, str]] = []
    for each in found:
        name = SIGN if each is None else names(each.id)
        told = "-" if each is None else "given" if not each.step else f"{each.step}{'↺' * bool(each.again)}"
        style = "dim" if each is None or not each.step else shade((each.step - 1) / max(last - 1, 1))
        if row and sum(cell_len(cell) + 1 for cell, *_ in row) + max(cell_len(name), cell_len(told)) + 2 > width:
            _add_row(text, row)
            row = []
        columns = max(cell_len(name), cell_len(told))
        row.append((f" {name}{' ' * (columns - cell_len(name))} ", f" {told:<{columns}} ", style))
    _add_row(text, row)
    return text


def _add_row(text: Text, row: Sequence[tuple[str, str, str]]) -> None:
    for line in (0, 1):
        text.append("\n")
        for cell in row:
            text.append(cell[line], style=cell[2])
            text.append(" ")


# from the first step to the last, as matplotlib's viridis: apart for every eye, and in grey
SHADES = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def shade(share: float) -> str:
    """The style of a share in [0, 1] of the way from the first step to the last.

    >>> shade(0.0), shade(1.0)
    ('white on rgb(68,1,84)', 'black on rgb(253,231,37)')
    """
    place = min(int(share * (len(SHADES) - 1)), len(SHADES) - 2)
    part = share * (len(SHADES) - 1) - place
    colour = (round(low + part * (high - low)) for low, high in zip(SHADES[place], SHADES[place + 1]))
    return f"{'white' if share < 0.55 else 'black'} on rgb({','.join(map(str, colour))})"
