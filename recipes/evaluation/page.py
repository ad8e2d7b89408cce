"""An evaluation as one self-contained page: the figures, and the records side by side, those that differ most first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seodang.data.html_template import html_template
from seodang.recipes.evaluation.report import Evaluation, cell, headed
from seodang.train.evaluation.case import Case
from seodang.train.evaluation.likelihood_metrics import probabilities
from seodang.train.evaluation.metric import Metric
from seodang.train.rewards.ranking import prompt_as_text

TEMPLATE = Path(__file__).with_name("eval_page.html.jinja")


@dataclass(frozen=True)
class Shown:
    """A record on the page: where it stands and what is told of that, what was asked, and by model what came of it."""

    where: str
    about: str
    prompt: str
    reference: str | None
    values: list[tuple[str, list[str]]]  # a metric's name and its value by model
    choices: list[tuple[str, bool, list[str]]]  # a text, whether it is right, and how sure each model is of it
    answers: list[list[str]]


def write_page(path: str, found: Evaluation, rows: int) -> None:
    """Write the page with so many records. It loads nothing and runs nothing, follows the reader's light or dark theme, and escapes everything from the data."""
    tables = []
    for group, figures in found.figures.items():
        count = found.records_of(group)
        cells = [(headed(metric), [cell(figure, count).split("\n") for figure in figures[metric.name]]) for metric in found.metrics]
        tables.append((f"{group}, {count:,}", cells))
    names = [each.name for each in found.contenders]
    order = by_change(found.metrics, found.models)
    several = "those that differ most first" if len(names) > 1 else "the worst first"
    text = html_template(TEMPLATE).render(
        title=f"Evaluation of {', '.join(names)}", names=names, tables=tables, notes=found.legend(), records=[shown(found, index) for index in order[:rows]],
        told=f"{min(rows, len(order)):,} of {len(order):,}, {several} ({', then '.join(metric.name for metric in found.metrics)})",
    )  # fmt: skip
    Path(path).write_text(text, encoding="utf-8")


def by_change(metrics: Sequence[Metric], models: Sequence[Sequence[Case]]) -> list[int]:
    """The records in the order of how far a model's values are from the first one's: by the first metric, of equal ones by the next.

    Of a model alone, the worst first.
    """

    def change(index: int) -> list[float]:
        found = []
        for metric in metrics:
            first, *others = [metric.of(cases[index]) for cases in models]
            if not others:
                found.append(0.0 if first is None else first if metric.more_is_better is False else -first)
            else:
                found.append(max((abs(each - first) for each in others if each is not None and first is not None), default=0.0))
        return found

    return sorted(range(len(models[0])), key=change, reverse=True)


def shown(found: Evaluation, index: int) -> Shown:
    """What the page has of a record."""
    prompt, cases = found.asked.prompts[index], [of[index] for of in found.models]
    about = [found.groups[index]] if found.groups is not None else []
    if found.overlaps is not None and (share := found.overlaps[index]):
        about.append(f"{share:.0%} of its words in the training data")
    values = [(headed(metric), [_number(metric.of(case)) for case in cases]) for metric in found.metrics]
    choices: list[tuple[str, bool, list[str]]] = []
    if (offered := found.asked.choices.get(index)) is not None:
        shares: list[Any] = [probabilities(case.choices) if case.choices else None for case in cases]
        choices = [
            (text, place == offered.right, ["-" if each is None else f"{each[place]:.1%}" for each in shares]) for place, text in enumerate(offered.texts)
        ]
    return Shown(
        found.place(index), ", ".join(about), prompt if isinstance(prompt, str) else prompt_as_text(prompt), found.asked.references.get(index),
        [(name, of) for name, of in values if set(of) != {"-"}], choices, [list(case.answers) for case in cases],
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
