"""A page of what runs did: the curves of one or several, side by side, and answers before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...data.html_template import html_template
from .callbacks import LOG, read_log
from .line_chart import COLOURS, Line, finite, line_chart, table_of

TEMPLATE = Path(__file__).with_name("run_page.html.jinja")
CURVES = "curves.png"
PPO_CURVES = ("reward/mean", "kl", "length/mean", "entropy")


@dataclass(frozen=True)
class Chart:
    """A picture of the page: the keys of log.jsonl that it draws, each with its name; or, without keys, what its lines are over."""

    title: str
    unit: str
    keys: Mapping[str, str] = field(default_factory=dict)
    over: str = "step"


CHARTS = (
    Chart("Reward", "", {"reward/mean": "sampled", "reward": "sampled", "eval_reward": "held out"}),
    Chart("KL to the reference", "nats an answer", {"kl": ""}),
    Chart("Length", "tokens an answer", {"length/mean": "", "completions/mean_length": ""}),
    Chart("Entropy", "nats a token", {"entropy": ""}),
    Chart("Loss", "nats", {"loss": "train", "eval_loss": "held out"}),
    Chart("Accuracy", "share that is right", {"rewards/accuracies": "train", "accuracy": "train", "eval_accuracy": "held out"}),
    Chart("F1", "mean over the classes", {"eval_macro_f1": "held out"}),
    Chart("Correlation", "Pearson's r", {"eval_pearson": "held out"}),
    Chart("Margin", "chosen minus rejected", {"rewards/margins": "train", "margin": "train", "eval_margin": "held out"}),
    Chart("Implicit rewards", "", {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}),
    Chart("Policy loss", "", {"policy_loss": ""}),
    Chart("Value loss", "", {"value_loss": ""}),
    Chart("Answers that ended", "share", {"ended": ""}),
    Chart("Clipped ratios", "share of tokens", {"clip_fraction": ""}),
    Chart("Coefficient of the KL", "", {"kl_coefficient": ""}),
    Chart("Gap between the sampler's and the trained log-probabilities", "nats a token", {"sampler_gap": ""}),
)


@dataclass(frozen=True)
class Sample:
    """A prompt and its answers before and after training, with their rewards where there are any."""

    prompt: str
    before: str
    after: str
    reward_before: float | None = None
    reward_after: float | None = None


class Picture(NamedTuple):
    """A picture that is no curve: its title, SVG that is safe to embed, and what it shows as rows of texts, the first the names of the columns."""

    title: str
    svg: str
    values: Sequence[Sequence[str]] = ()


Samples = Sequence[Sample] | Mapping[str, Sequence[Sample]]  # with a heading each, where there are several tables


def write_page(
    path: Path, runs: Mapping[str, Path], samples: Samples = (), *, title: str = "Runs", figures: Sequence[tuple[str, Any]] = (), **further: Any
) -> Path:
    """Write the page of some runs, by name; return its path. `figures` are lines of a table at its head: a name and a value.

    What else there may be is said by `to_html`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    logs = {name: read_log(run / LOG) for name, run in runs.items()}
    partial.write_text(to_html(logs, samples, title=title, figures=figures, **further), encoding="utf-8")
    return partial.replace(path)


def to_html(
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
    samples: Samples = (),
    *,
    title: str = "Runs",
    figures: Sequence[tuple[str, Any]] = (),
    notes: Sequence[str] = (),
    curves: Sequence[tuple[Chart, Sequence[Line]]] = (),
    pictures: Sequence[Picture] = (),
    tables: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> str:
    """A page of the entries of some runs' logs, by name, and of samples.

    `notes` are paragraphs at its head, `curves` stand before those of the logs; `tables` have a heading each and rows of texts, the first the names of
    the columns.

    It loads nothing, follows the reader's light or dark theme, works without scripts, tells every curve in words and numbers
    too, and everything that comes from data is escaped.
    """
    sampled = samples if isinstance(samples, Mapping) else {"Samples": samples}
    drawn = [*curves, *((chart, lines_of(chart, logs)) for chart in CHARTS)]
    charts = [(chart, lines, line_chart(chart.title, lines, chart.unit, chart.over), table_of(lines)) for chart, lines in drawn if lines]
    shown = [(heading, any(map(has_reward, some)), some) for heading, some in sampled.items() if some]
    return html_template(TEMPLATE).render(
        title=title, notes=notes, figures=figures, charts=charts, tables=shown, pictures=pictures, plain_tables=tables or {}
    )


def has_reward(sample: Sample) -> bool:
    """Whether there is a reward to show."""
    return sample.reward_before is not None or sample.reward_after is not None


def lines_of(chart: Chart, logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Line]:
    """What a chart shows: a colour a run and a dash a value of it; lines without a point are left out."""
    lines, names = [], list(dict.fromkeys(chart.keys.values()))
    for place, (run, entries) in enumerate(logs.items()):
        for key, name in chart.keys.items():
            points = [(entry["step"], entry[key]) for entry in entries if "step" in entry and key in entry]
            label = ", ".join(filter(None, [run if len(logs) > 1 or not name else "", name]))
            # beyond the page's colours the dash has to tell runs apart as well
            line = finite(label, points, colour=place, dash=names.index(name) + place // len(COLOURS))
            lines += [line] if line.values else []
    return lines


def draw_curves(run: Path, names: Sequence[str] = PPO_CURVES) -> Path | None:
    """Draw the named values of a run's log over its steps as curves.png; return its path, None where none was logged."""
    entries = read_log(run / LOG)
    panels = {name: finite(name, [(entry["step"], entry[name]) for entry in entries if name in entry]) for name in names}
    panels = {name: line for name, line in panels.items() if line.values}
    if not panels:
        (run / CURVES).unlink(missing_ok=True)  # an earlier run's
        return None
    panelled(panels).savefig(run / CURVES, dpi=120)
    return run / CURVES


def panelled(panels: Mapping[str, Line]) -> Any:
    """A matplotlib figure with a panel for each line, two beside each other."""
    from matplotlib.figure import Figure  # the figure alone: no window, no global state

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    drawn = Figure(figsize=(4.5 * columns, 3 * rows), layout="constrained")
    for place, (name, line) in enumerate(panels.items(), 1):
        axes = drawn.add_subplot(rows, columns, place)
        axes.plot(line.steps, line.values, "-", marker="." if len(line.steps) < 30 else "")
        axes.set(xlabel="step", title=name)
        axes.grid(alpha=0.3)
    return drawn
