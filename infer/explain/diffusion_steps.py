"""The steps of diffusion as people read them: the whole canvas after each, what is new in it, and signs for what is open."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from rich.text import Text

from ..requests.trace import DiffusionStep
from ..text.token_labels import TokenLabels

OPEN, NEW, OLD = "open", "new", "old"
MASK = "░"  # an open position


class Stretch(NamedTuple):
    """Neighbouring positions of a canvas of one kind: open, new in this step, or certain before."""

    kind: str
    text: str


def stretches(step: DiffusionStep, names: TokenLabels) -> list[Stretch]:
    """The canvas after a step, its stretches in order; spaces are spaces, other tokens that leave no ink have signs."""
    new = {position for position, *_ in step.committed}
    kinds = [OPEN if id is None else NEW if position in new else OLD for position, id in enumerate(step.canvas)]
    found = []
    for kind, group in groupby(range(len(kinds)), kinds.__getitem__):
        positions = list(group)
        text = MASK * len(positions) if kind == OPEN else names.of([step.canvas[position] for position in positions]).replace("␣", " ")
        found.append(Stretch(kind, text))
    return found


def shown_canvas(step: DiffusionStep, names: TokenLabels, styles: dict[str, str]) -> Text:
    """A step in a line; `styles` by kind."""
    line = Text(f"Step {step.step}: ")
    for kind, text in stretches(step, names):
        line.append(text, style=styles.get(kind, ""))
    return line
