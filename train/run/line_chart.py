"""Curves as inline SVG, drawn by matplotlib in the colours of the page; and what they show in words and numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from math import isfinite
from typing import Any

COLOURS = ("#1f66ad", "#b34700", "#0b6b3a", "#8a2d8a", "#8a6a00", "#a3161a")  # on the page --c0 to --c5, whatever its theme makes of them
INK, GRID, GROUND = "#5c5c5c", "#d4d6d9", "#ffffff"  # --quiet, --line and --ground
INCHES = (5.6, 2.4)
WIDTH = 2.0  # of a line, in points
DASHES: tuple[tuple[float, ...], ...] = ((), (3.5, 2), (1, 2), (5, 1.5, 1, 1.5))  # in widths of the line
DOTTED_UP_TO = 40  # points that are also marked one by one
NO_FACTS = {"Date": None, "Creator": None, "Format": None, "Type": None}  # the same curves give the same bytes


@dataclass(frozen=True)
class Line:
    """One curve: its steps and finite values; `colour` tells runs apart, `dash` the values of one run. `errors`, one a value, are bars as far up and down."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int = 0
    dash: int = 0
    errors: Sequence[float] = ()

    @property
    def style(self) -> str:
        """What a piece of the line looks like, as CSS."""
        dashes = " ".join(f"{WIDTH * part:g}" for part in DASHES[self.dash % len(DASHES)])
        return f"stroke: var(--c{self.colour % len(COLOURS)}); stroke-dasharray: {dashes or 'none'}"


def finite(name: str, points: Sequence[tuple[float, float]], colour: int = 0, dash: int = 0) -> Line:
    """A line of the points whose value is a finite number."""
    kept = [(step, value) for step, value in points if isinstance(value, int | float) and isfinite(value)]
    return Line(name, [step for step, _ in kept], [value for _, value in kept], colour, dash)


def line_chart(title: str, lines: Sequence[Line], unit: str = "", over: str = "step") -> str:
    """The lines over their steps, or what these are `over`, as SVG text, each a `g` of the class `curve`; empty where no line has a point."""
    lines = [line for line in lines if line.values]
    if not lines:
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # the figure alone: no window, no global state

    with rc_context({"axes.edgecolor": INK, "text.color": INK}):
        figure = Figure(figsize=INCHES, layout="constrained")
        axes = figure.subplots()
        for line in lines:
            colour = COLOURS[line.colour % len(COLOURS)]
            if line.errors:
                axes.errorbar(line.steps, line.values, line.errors, fmt="none", ecolor=colour, elinewidth=WIDTH / 2, clip_on=False)
            axes.plot(
                line.steps, line.values, color=colour, linestyle=(0, DASHES[line.dash % len(DASHES)] or None), linewidth=WIDTH,
                marker="o" if len(line.steps) <= DOTTED_UP_TO else "", markersize=3.5, clip_on=False, gid="curve",
            )  # fmt: skip
        axes.grid(axis="y", color=GRID, clip_on=False)
        axes.set_xlabel(over, color=INK)
        axes.tick_params(length=0, labelcolor=INK)
        axes.spines[["top", "right"]].set_visible(False)
        return svg(figure, f"{title}{f' ({unit})' if unit else ''}. " + " ".join(in_words(line, over) for line in lines))


def svg(figure: Any, label: str) -> str:
    """A figure as a part of a page, in the page's colours, with its description."""
    from matplotlib import rc_context

    text = StringIO()
    with rc_context({"svg.hashsalt": "seodang", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", transparent=True, metadata=NO_FACTS)
    return inlined(text.getvalue(), label)


def inlined(svg: str, label: str) -> str:
    """matplotlib's picture as a part of a page: with its description, in the page's colours and type, without names that another picture has too."""
    view, body = re.search(r'<svg[^>]*viewBox="([^"]*)"[^>]*>(.*)', svg, re.DOTALL).groups()
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|font-family: [^;]*; ", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="(curve)?[^"]*"', lambda match: '<g class="curve"' if match[1] else "<g", body)
    for name, colour in [*((f"c{place}", colour) for place, colour in enumerate(COLOURS)), ("quiet", INK), ("line", GRID), ("ground", GROUND)]:
        body = body.replace(colour, f"var(--{name})")
    return f'<svg class="chart" viewBox="{view}" role="img" aria-label="{escape(label)}">{body}'


def in_words(line: Line, over: str = "step") -> str:
    """What a curve shows, in a sentence: where it begins and ends, its least and greatest value."""
    first, last = line.values[0], line.values[-1]
    if len(line.values) == 1:
        return f"{line.name}: {first:.4g} at {over} {line.steps[0]:g}."
    span = f"from {first:.4g} at {over} {line.steps[0]:g} to {last:.4g} at {over} {line.steps[-1]:g}"
    return f"{line.name}: {span}, least {min(line.values):.4g}, greatest {max(line.values):.4g}."


def table_of(lines: Sequence[Line], most: int = 25) -> list[tuple[float, list[float | None]]]:
    """Steps with each line's value there, None where it has none: at most `most`, evenly chosen, the first and the last among them."""
    steps = sorted({step for line in lines for step in line.steps})
    if len(steps) > most:
        steps = [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]
    found = [dict(zip(line.steps, line.values, strict=True)) for line in lines]
    return [(step, [values.get(step) for values in found]) for step in steps]
