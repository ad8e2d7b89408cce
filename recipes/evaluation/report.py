"""What an evaluation found, for people and for programs: a table of figures side by side, and JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from seodang.recipes.evaluation.contenders import Contender
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.train.evaluation.case import Case
from seodang.train.evaluation.comparison import Estimate, Figure
from seodang.train.evaluation.metric import Metric
from seodang.train.run.checkpoints import write_atomically

ALL = "all records"
WIDE = 200  # columns of a table that goes into a file or a pipe
MARK = "*"

Figures = dict[str, dict[str, list[Figure]]]  # by group, then by metric, one a model


@dataclass
class Evaluation:
    """All that was measured: `models` the cases of each contender, `figures` by group and metric, `notes` what must be known beside them."""

    asked: Prompts
    contenders: list[Contender]
    metrics: list[Metric]
    models: list[list[Case]]
    figures: Figures = field(default_factory=dict)
    groups: list[str] | None = None  # of each record, where there are any
    overlaps: list[float | None] | None = None  # of each record, with the training data
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def place(self, index: int) -> str:
        """Where a record stands."""
        return f"{self.asked.unit} {self.asked.numbers[index]}"

    def records_of(self, group: str) -> int:
        """How many records a group has."""
        return sum(group in (ALL, of) for of in self.groups or [ALL] * len(self.asked.prompts))

    def as_json(self) -> dict[str, Any]:
        """What is written: the figures, and of each record what each metric says of it alone."""
        names = [each.name for each in self.contenders]
        figures = {
            group: {metric: {name: figure.as_json() for name, figure in zip(names, of, strict=True)} for metric, of in found.items()}
            for group, found in self.figures.items()
        }
        models, count = [vars(each) for each in self.contenders], len(self.asked.prompts)
        told = {"models": models, **self.settings, "records": count, "notes": self.notes, "figures": figures}
        return {**told, "each": [self._record(index, names) for index in range(len(self.asked.prompts))]}

    def _record(self, index: int, names: Sequence[str]) -> dict[str, Any]:
        told: dict[str, Any] = {self.asked.unit_written: self.asked.numbers[index]}
        if self.groups is not None:
            told["group"] = self.groups[index]
        if self.overlaps is not None:
            told["overlap"] = self.overlaps[index]
        values = {metric.name: {name: metric.of(cases[index]) for name, cases in zip(names, self.models, strict=True)} for metric in self.metrics}
        return {**told, "values": values}

    def show(self) -> None:
        """Print the tables and what must be known beside them."""
        console = Console()
        console = console if console.is_terminal else Console(width=WIDE)
        for group, found in self.figures.items():
            console.print(self._table(group, found))
        for line in self.legend():
            print(line)

    def legend(self) -> list[str]:
        """How a table is read, and the notes."""
        lines = []
        if len(self.contenders) > 1:
            lines.append(f"below a figure: its difference to {self.contenders[0].name}, record by record; {MARK} where the interval excludes 0")
        return [*lines, f"in brackets: 95 % by the bootstrap over records, {self.settings['resamples']:,} resamples", *self.notes]

    def _table(self, group: str, found: dict[str, list[Figure]]) -> Table:
        records = self.records_of(group)
        table = Table(title=Text(f"{group}, {records:,}"), title_justify="left", title_style="bold")
        table.add_column("")
        for each in self.contenders:
            table.add_column(Text(each.name), justify="right")
        for metric in self.metrics:
            table.add_row(Text(headed(metric)), *(Text(cell(figure, records)) for figure in found[metric.name]))
        return table


def headed(metric: Metric) -> str:
    """A metric's name, with an arrow down where less is better."""
    return metric.name if metric.more_is_better else f"{metric.name} ↓"


def cell(figure: Figure, records: int) -> str:
    """A figure for people: the value and its interval, of how many records where these are not all, and below it the difference."""
    if figure.estimate.value is None:
        return "-"
    lines = [in_words(figure.estimate) + (f" of {figure.estimate.records:,}" if figure.estimate.records != records else "")]
    if figure.difference is not None and figure.difference.value is not None:
        lines.append(in_words(figure.difference, "+") + (f" {MARK}" if figure.difference.excludes_zero else "  "))
    return "\n".join(lines)


def in_words(estimate: Estimate, sign: str = "") -> str:
    """An estimate with its interval: three decimals below 10, one above.

    >>> in_words(Estimate(0.5, 0.25, 0.75, 8)), in_words(Estimate(40.0, None, None, 1), "+")
    ('0.500 [0.250, 0.750]', '+40.0')
    """
    if estimate.value is None:
        return "-"
    size = max(abs(each) for each in (estimate.value, estimate.low, estimate.high) if each is not None)
    form = f"{sign}.{3 if size < 10 else 1}f"
    bounds = "" if estimate.low is None else f" [{estimate.low:{form}}, {estimate.high:{form}}]"
    return f"{estimate.value:{form}}{bounds}"


def write_json(path: str, evaluation: Evaluation) -> None:
    """Write the file whole, or leave the one that was there."""
    write_atomically(Path(path), json.dumps(evaluation.as_json(), ensure_ascii=False, indent=1) + "\n")
