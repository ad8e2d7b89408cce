"""Metrics by the names that a command takes, and which of them a file of records asks for by what it has."""

from collections.abc import Collection, Sequence

from ...data.errors import UserError
from ..maths.answer_matching import KINDS
from ..maths.pass_at_k import pass_at_k
from ..rewards.reward_function import did_you_mean
from .answer_metrics import answer_metrics
from .case import Case
from .form_metrics import FORMS, form_metric
from .likelihood_metrics import likelihood_metrics
from .metric import ANSWERS, Metric, mean_metric

PASS = "pass@"
RULES, REWARD_MODEL, REWARD_WIN, JUDGE_WIN = "rules", "reward_model", "reward_win", "judge_win"  # marks of a case
OF_TEXTS, OF_CHOICES = ("exact", "f1", "chrf", "rougeL", "perplexity", "bits_per_byte"), ("acc", "acc_token", "acc_byte", "acc_char", "ece", "brier")
WRITTEN = ("exact", "contains", "f1", "chrf", "bleu", "rouge1", "rouge2", "rougeL", "perplexity", "bits_per_byte", *OF_CHOICES, "pass@K", "json",
           *(f"{name}:{behind}" for name, (behind, _) in FORMS.items() if behind))  # fmt: skip
BY_OPTION = {"rule": "--reward", REWARD_MODEL: "--reward_model", REWARD_WIN: "--reward_model", JUDGE_WIN: "--judge"}
MEASURED_BY_OPTION = "and of themselves " + ", ".join(f"{name} by {option}" for name, option in BY_OPTION.items())


def parse_metrics(names: Sequence[str], without: Collection[str] = ()) -> list[Metric]:
    """The metrics of these names: `exact`, `pass@4`, `regex:PATTERN` and so on, `WRITTEN` has all.

    Raises UserError, with the nearest name, for one that there is not, that is given twice, or that something behind it is missing or too much of.
    """
    if unknown := [kind for kind in without if kind not in KINDS]:
        raise UserError(f"normalise takes {', '.join(KINDS)} or squad, which is all three, got {unknown[0]!r}{did_you_mean(unknown[0], KINDS)}")
    known = {**answer_metrics(without), **likelihood_metrics()}
    found: list[Metric] = []
    for text in names:
        name, colon, behind = text.partition(":")
        if name in FORMS:
            if bool(behind) != bool(FORMS[name][0]) or bool(colon) != bool(behind):
                raise UserError(f"metric {text!r} must be given as {':'.join(filter(None, (name, FORMS[name][0])))}")
            metric = form_metric(name, behind)
        elif text.startswith(PASS):
            metric = pass_metric(text)
        elif text in known:
            metric = known[text]
        elif name in BY_OPTION:
            raise UserError(f"metric {text!r} is measured where {BY_OPTION[name]} is given, and needs no name: give that, and leave {text} out of --metrics")
        else:
            raise UserError(f"unknown metric {text!r}{did_you_mean(text, (*WRITTEN, *BY_OPTION))}; there are {', '.join(WRITTEN)}; {MEASURED_BY_OPTION}")
        if any(other.name == metric.name for other in found):
            raise UserError(f"metric {metric.name} is given twice: leave one out")
        found.append(metric)
    return found


def pass_metric(text: str) -> Metric:
    """The metric `pass@K`: the chance that of K answers one passes all rules. Raises UserError for a K that is no number from 1."""
    count = text.removeprefix(PASS)
    if not count.isdecimal() or not count.isascii() or int(count) < 1:
        raise UserError(f"metric {text!r} must be given as pass@K, K a whole number from 1")
    k = int(count)

    def chance(case: Case) -> float | None:
        passed = case.marks.get(RULES, ())
        return pass_at_k(len(passed), sum(mark >= 1 for mark in passed), k) if len(passed) >= k else None

    return mean_metric(f"{PASS}{k}", (ANSWERS,), chance)


def most_samples(metrics: Sequence[Metric]) -> int:
    """How many answers a record needs at least."""
    return max((int(each.name.removeprefix(PASS)) for each in metrics if each.name.startswith(PASS)), default=1)


def mark_metric(name: str) -> Metric:
    """The mean of a mark: of a record's answers first, then of the records."""

    def mean(case: Case) -> float | None:
        marks = case.marks.get(name, ())
        return sum(marks) / len(marks) if marks else None

    return mean_metric(name, (ANSWERS,), mean)


def automatic(has_references: bool, has_choices: bool) -> list[str]:
    """The metrics for records of which nobody says what to measure."""
    return list(OF_CHOICES if has_choices else OF_TEXTS if has_references else ())
