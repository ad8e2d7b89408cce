"""Curves as inline SVG: axes with numbers, a legend, and words for those who do not see it. Colours are the page's, by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10

from ...infer.explain.drawings import svg

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 62, 22, 12, 44
COLOURS = 6  # classes c0 to c5 on the page
DASHES = ("", "7 4", "2 4", "10 3 2 3")
DOTTED_UP_TO = 40  # points that are also marked one by one


@dataclass(frozen=True)
class Line:
    """One curve: its steps and finite values; `colour` tells runs apart, `dash` the values of one run."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int = 0
    dash: int = 0


def finite(name: str, points: Sequence[tuple[float, float]], colour: int = 0, dash: int = 0) -> Line:
    """A line of the points whose value is a finite number."""
    kept = [(step, value) for step, value in points if isinstance(value, int | float) and isfinite(value)]
    return Line(name, [step for step, _ in kept], [value for _, value in kept], colour, dash)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers (1, 2 or 5 times a power of ten apart), the first not above `low`, the last not below `high`.

    >>> ticks(0.13, 0.88)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not low < high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    power = floor(log10((high - low) / most))
    for step in (digit * 10.0**e for e in range(power, power + 3) for digit in (1, 2, 5)):
        first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)  # 0.3 / 0.1 is a little less than 3
        if last - first < most:
            return [float(f"{number * step:.12g}") for number in range(first, last + 1)]
    raise AssertionError("a step of a hundred times the span always fits")


def line_chart(title: str, lines: Sequence[Line], unit: str = "") -> str:
    """The lines over their steps as SVG text; empty where no line has a point."""
    lines = [line for line in lines if line.values]
    if not lines:
        return ""
    across = ticks(min(min(line.steps) for line in lines), max(max(line.steps) for line in lines))
    up = ticks(min(min(line.values) for line in lines), max(max(line.values) for line in lines))
    x = _scale(across, LEFT, WIDTH - RIGHT)
    y = _scale(up, HEIGHT - BOTTOM, TOP)
    parts = []
    for tick in up:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="axis" x="{LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in across:
        parts.append(f'<text class="axis" x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">step</text>')
    parts += [_drawn(line, x, y) for line in lines]
    label = f"{title}{f' ({unit})' if unit else ''}. " + " ".join(map(in_words, lines))
    return svg(WIDTH, HEIGHT, label, *parts, scale='class="chart"')


def in_words(line: Line) -> str:
    """What a curve shows, in a sentence: where it begins and ends, its least and greatest value."""
    first, last = line.values[0], line.values[-1]
    if len(line.values) == 1:
        return f"{line.name}: {first:.4g} at step {line.steps[0]:g}."
    span = f"from {first:.4g} at step {line.steps[0]:g} to {last:.4g} at step {line.steps[-1]:g}"
    return f"{line.name}: {span}, least {min(line.values):.4g}, greatest {max(line.values):.4g}."


def legend(lines: Sequence[Line]) -> str:
    """The names of the lines, each behind a piece of it."""
    entries = (
        f'<li><svg width="34" height="10" aria-hidden="true"><line class="{_colour(line)}" x1="1" x2="33" y1="5" y2="5"{_dash(line)}/></svg>'
        f"{escape(line.name)}</li>"
        for line in lines
        if line.values
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'


def values_table(title: str, lines: Sequence[Line], most: int = 25) -> str:
    """The values as a table of at most `most` steps, evenly chosen, the first and the last among them."""
    steps = sorted({step for line in lines for step in line.steps})
    if len(steps) > most:
        steps = [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]
    found = [dict(zip(line.steps, line.values, strict=True)) for line in lines]
    head = "".join(f'<th scope="col">{escape(line.name)}</th>' for line in lines)
    rows = "".join(
        f'<tr><th scope="row">{step:g}</th>' + "".join(f"<td>{at[step]:.4g}</td>" if step in at else "<td></td>" for at in found) + "</tr>"
        for step in steps
    )
    caption = f"<caption>{escape(title)}</caption>"
    return f'<table class="values">{caption}<thead><tr><th scope="col">step</th>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _scale(marks: Sequence[float], start: float, end: float):
    low, span = marks[0], marks[-1] - marks[0]
    return lambda value: start + (value - low) / span * (end - start)


def _drawn(line: Line, x, y) -> str:
    points = [f"{x(step):.1f},{y(value):.1f}" for step, value in zip(line.steps, line.values, strict=True)]
    drawn = f'<polyline class="{_colour(line)}" points="{" ".join(points)}"{_dash(line)}/>' if len(points) > 1 else ""
    if len(points) <= DOTTED_UP_TO:
        drawn += "".join('<circle class="{}" cx="{}" cy="{}" r="2.5"/>'.format(_colour(line), *point.split(",")) for point in points)
    return drawn


def _colour(line: Line) -> str:
    return f"c{line.colour % COLOURS}"


def _dash(line: Line) -> str:
    dash = DASHES[line.dash % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""
