"""Shares in [0, 1] as cells, the fuller the larger: who looks at whom."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...infer.explain.diffusion_picture import families
from .line_chart import COLOURS, INCHES, INK, svg
from .run_page import Picture

CELL, MARGIN = 0.3, 1.1  # inches


def heat_map(title: str, weights: Tensor, down: Sequence[str], across: Sequence[str]) -> Picture:
    """Weights in [0, 1], [down, across], as a picture with its names at the sides, told in words, and as a table."""
    rows = weights.tolist()
    heaviest = [max(range(len(row)), key=row.__getitem__) for row in rows]
    words = "; ".join(f"{name}: most at {across[place]}, {row[place]:.2f}" for name, row, place in zip(down, rows, heaviest, strict=True))
    values = [("", *across), *((name, *(f"{weight:.2f}" for weight in row)) for name, row in zip(down, rows, strict=True))]
    return Picture(title, svg(heat_figure(rows, down, across), f"{title}. {words}."), values)


def heat_figure(weights: Sequence[Sequence[float]], down: Sequence[str], across: Sequence[str]) -> Any:
    """A matplotlib figure of cells, each as opaque as its weight."""
    from matplotlib.figure import Figure  # the figure alone: no window, no global state

    width = max(CELL * len(across) + MARGIN, INCHES[0])  # a page has all pictures as wide: cells are of one size in them
    figure = Figure(figsize=(width, CELL * len(down) + MARGIN), layout="constrained")
    axes = figure.subplots()
    shade(axes, weights, down, across)
    axes.xaxis.tick_top()
    return figure


def shade(axes: Any, opacities: Sequence[Sequence[float]], down: Sequence[str], across: Sequence[str]) -> None:
    """Draw a cell for each opacity, a row below the other, and the names at the sides as they are."""
    from matplotlib.patches import Rectangle

    for row, cells in enumerate(opacities):
        for column, opacity in enumerate(cells):
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=COLOURS[0], alpha=opacity, linewidth=0))
    axes.set(xlim=(-0.5, len(across) - 0.5), ylim=(len(down) - 0.5, -0.5), aspect="equal")
    as_it_stands = {"fontfamily": families(), "parse_math": False}
    axes.set_xticks(range(len(across)), across, rotation=0 if max(map(len, across)) * len(across) < 40 else 90, **as_it_stands)
    axes.set_yticks(range(len(down)), down, **as_it_stands)
    plain(axes)


def plain(axes: Any) -> None:
    """Leave an axes its labels alone, in the page's ink."""
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
