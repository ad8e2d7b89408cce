"""What a classifier does, for people: scores by class, the confusion matrix and the reliability diagram, as text and as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..maths.calibration import Reliability
from ..maths.classification_metrics import ClassifierMetrics, class_scores
from .heat_map import plain, shade
from .line_chart import COLOURS, GRID, GROUND, INK, svg
from .run_page import Picture

CONFUSION, RELIABILITY = "confusion.png", "reliability.png"
NUMBERED = 20  # classes up to which every cell of the matrix has its count in it
SHOWN = 12  # classes of the matrix in the terminal
BAR = 30  # characters of a share of 1

Matrix = Sequence[Sequence[int]]


def report_lines(found: ClassifierMetrics, names: Sequence[str]) -> list[str]:
    """Scores by class, the confusion matrix and the reliability, in lines; of a regression nothing."""
    lines = [] if found.found is None else score_lines(found, names)
    if found.matrix is not None:
        lines += ["", *matrix_lines(found.matrix.tolist(), names)]
    if found.reliability is not None:
        lines += ["", *reliability_lines(found.reliability)]
    return lines


def figures_line(found: ClassifierMetrics) -> str:
    """The figures in a line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in found.values.items())


def score_lines(found: ClassifierMetrics, names: Sequence[str], counted: str = "records") -> list[str]:
    """Precision, recall and F1 of each class, and how many records have it, or whatever is counted."""
    head, *rows = score_table(found, names, counted)
    widths = [max(6 * (column > 0), *(len(row[column]) for row in (head, *rows))) for column in range(len(head))]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in (head, *rows)]


def score_table(found: ClassifierMetrics, names: Sequence[str], counted: str = "records") -> list[list[str]]:
    """The same as rows of texts, the first the names of the columns."""
    rows = zip(names, *class_scores(found.found), found.found[:, 0] + found.found[:, 2], strict=True)
    return [["class", "precision", "recall", "F1", counted], *([name, f"{p:.3f}", f"{r:.3f}", f"{f1:.3f}", f"{count:,d}"] for name, p, r, f1, count in rows)]


def matrix_lines(matrix: Matrix, names: Sequence[str]) -> list[str]:
    """The counts, a row a true class and a column a predicted one; of many classes the pairs that are taken for one another most."""
    if len(names) > SHOWN:
        wrong = sorted(((count, row, column) for row, counts in enumerate(matrix) for column, count in enumerate(counts) if count and row != column), reverse=True)
        return ["most often taken for another", *(f"{count:7,d}  {names[row]} as {names[column]}" for count, row, column in wrong[:SHOWN])]
    first = max(10, *(len(name) for name in names))
    widths = [max(len(name), *(len(f"{row[place]:,d}") for row in matrix)) for place, name in enumerate(names)]
    head = f"{'true':<{first}}  " + "  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True)) + "  (predicted)"
    rows = (f"{name:<{first}}  " + "  ".join(f"{count:>{width},d}" for count, width in zip(row, widths, strict=True)) for name, row in zip(names, matrix, strict=True))
    return [head, *rows]


def reliability_lines(found: Reliability) -> list[str]:
    """Each bin that holds something: how sure the model was, how often it was right, and a bar of that with a mark where it should end."""
    lines = ["confidence   right  predictions"]
    for count, sure, right in zip(*(values.tolist() for values in found), strict=True):
        if count:
            bar = list(("█" * round(right * BAR)).ljust(BAR))
            bar[min(round(sure * BAR), BAR - 1)] = "|"
            lines.append(f"{sure:10.3f}  {right:6.3f}  {int(count):11,d}  {''.join(bar).rstrip()}")
    return lines


def write_pictures(folder: Path, found: ClassifierMetrics, names: Sequence[str]) -> list[Path]:
    """Draw confusion.png and reliability.png into a folder, those that there is something for; return their paths."""
    figures = {CONFUSION: found.matrix is not None and confusion_figure(found.matrix.tolist(), names)}
    figures[RELIABILITY] = found.reliability is not None and reliability_figure(found.reliability)
    drawn = []
    for name, figure in figures.items():
        if figure:
            figure.savefig(folder / name, dpi=120)
            drawn.append(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)  # an earlier run's
    return drawn


def pictures(found: ClassifierMetrics, names: Sequence[str]) -> list[Picture]:
    """The same as titles and SVG for a page, told in words too."""
    drawn = []
    if found.matrix is not None:
        words = "; ".join(f"{name}: " + ", ".join(f"{count} as {other}" for other, count in zip(names, row, strict=True) if count)
                          for name, row in zip(names, found.matrix.tolist(), strict=True))  # fmt: skip
        drawn.append(Picture("Confusion matrix", svg(confusion_figure(found.matrix.tolist(), names), f"Confusion matrix. {words}.")))
    if found.reliability is not None:
        words = " ".join(reliability_lines(found.reliability)[1:]).replace("█", "").replace("|", "")
        told = f"Confidence, share that is right, predictions, by bins: {' '.join(words.split())}"
        drawn.append(Picture("Reliability", svg(reliability_figure(found.reliability), told)))
    return drawn


def confusion_figure(matrix: Matrix, names: Sequence[str]) -> Any:
    """A matplotlib figure: a cell for each true class and predicted one, the darker the larger its share of the true class."""
    from matplotlib.figure import Figure  # the figure alone: no window, no global state

    count = len(names)
    side = min(max(3.2, 0.55 * count + 1.6), 12)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    shares = [[found / (sum(counts) or 1) for found in counts] for counts in matrix]
    shade(axes, [[0.06 + 0.94 * share for share in row] for row in shares], names, names)
    axes.set(xlabel="predicted", ylabel="true")
    for row, counts in enumerate(matrix if count <= NUMBERED else ()):
        for column, found in enumerate(counts):
            axes.text(column, row, f"{found:,d}", ha="center", va="center", color=GROUND if shares[row][column] > 0.5 else INK)
    return figure


def reliability_figure(found: Reliability) -> Any:
    """A matplotlib figure: for each bin the share that is right beside the confidence, and below how many predictions it holds."""
    from matplotlib.figure import Figure

    bins = len(found.counts)
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    above, below = figure.subplots(2, height_ratios=(3, 1), sharex=True)
    filled = [place for place in range(bins) if found.counts[place]]
    middles = [(place + 0.5) / bins for place in filled]
    above.bar(middles, found.accuracy[filled].tolist(), width=0.92 / bins, color=COLOURS[0])
    above.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (3, 3)))
    above.plot(found.confidence[filled].tolist(), found.accuracy[filled].tolist(), "o", color=COLOURS[1], markersize=3.5, clip_on=False)
    above.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    below.bar(middles, found.counts[filled].tolist(), width=0.92 / bins, color=COLOURS[0])
    below.set(xlabel="confidence", ylabel="predictions")
    for axes in (above, below):
        axes.grid(axis="y", color=GRID)
        axes.set_axisbelow(True)
        plain(axes)
    return figure
