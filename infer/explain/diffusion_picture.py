"""The steps of diffusion as a picture: when each position became certain, and how likely its token was then."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, nan
from pathlib import Path

from ..requests.trace import DiffusionStep
from ..text.token_labels import TokenLabels
from .diffusion_steps import SIGN, moments, states

INCHES = 0.32  # a cell
MOST = 60.0  # inches of a side: the cells of long canvases are smaller
FONTS = ("Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo")  # which have Hangul
LONGEST = 16  # characters of a label
DPI = 120


def chances(steps: Sequence[DiffusionStep]) -> list[list[float]]:
    """What is drawn, a row a step and a column a position: the probability that the token there was chosen by, NaN where it is open, 1 of what was given."""
    return [[nan if each is None else min(exp(each.logprob), 1.0) for each in now] for now in states(steps)]


def families() -> list[str]:
    """The fonts of a picture's text: matplotlib's own, and those of this machine that have Hangul."""
    from matplotlib.font_manager import get_font_names

    there = set(get_font_names())
    return ["DejaVu Sans", *(each for each in FONTS if each in there)]


def draw(steps: Sequence[DiffusionStep], names: TokenLabels, path: Path, title: str = "") -> None:
    """Write the picture as PNG: from the top down the steps, from left to right the positions with what they came to; grey is open."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # the figure alone: no window, no global state

    rows = chances(steps)
    wide, high = (min(INCHES * count, MOST) for count in (len(rows[0]), len(rows)))
    with rc_context({"font.family": families(), "text.parse_math": False}):
        figure = Figure(figsize=(wide + 2.2, high + 1.9), layout="constrained")
        axes = figure.subplots()
        axes.set_facecolor("0.88")
        image = axes.imshow(rows, cmap="viridis_r", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        labels = [SIGN if each is None else shortened(names(each.id)) for each in moments(steps)]
        size = min(9.0, 60 * wide / len(labels))
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
        axes.xaxis.tick_top()
        numbers = range(0, len(rows), max(1, -(-len(rows) // max(int(high / 0.2), 1))))
        axes.set_yticks(numbers, [str(steps[place].step) for place in numbers], fontsize=9)
        axes.set_ylabel("step")
        if wide / len(labels) > 0.15:
            axes.vlines([place - 0.5 for place in range(1, len(labels))], -0.5, len(rows) - 0.5, color="white", linewidth=0.8)
        if title:
            axes.set_title(title, fontsize=10)
        figure.colorbar(image, ax=axes, label="probability of the token when it was chosen")
        figure.savefig(path, format="png", dpi=DPI, bbox_inches="tight")  # few steps make a picture lower than what is written beside them


def shortened(name: str) -> str:
    """A token's name, cut where it is long.

    >>> shortened("internationalisation")
    'internationalis…'
    """
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
