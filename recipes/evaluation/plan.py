"""What is to be measured of whom, decided and refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load_tokenizer
from seodang.recipes.evaluation.contenders import CHECKPOINT, FILE, Contender, contenders_of
from seodang.recipes.prompts.prompt_files import Prompts, refuse_without_references
from seodang.train.evaluation.metric import ANSWERS, CHOICES, LIKELIHOODS, REFERENCES, Metric
from seodang.train.evaluation.registry import PASS, automatic, most_samples, parse_metrics
from seodang.train.maths.answer_matching import KINDS
from seodang.train.rewards.reward_function import did_you_mean
from seodang.train.rewards.scoring import different_tokens

MOST_GROUPS = 50


@dataclass
class Plan:
    """The metrics, what they need of a model, how many answers a record at least, who judges, and whom answers are judged against."""

    metrics: list[Metric]
    answers: bool
    likelihoods: bool
    choices: bool
    samples: int
    judge: Contender | None
    against_first: bool
    notes: list[str] = field(default_factory=list)

    @property
    def against_name(self) -> str:
        """Whom answers are judged against."""
        return "first" if self.against_first else "references"

    @classmethod
    def of(cls, options: Any, contenders: Sequence[Contender], asked: Prompts) -> Plan:
        """The plan of the options of `seodang eval`. Raises UserError for what cannot be measured of these records, or of these models."""
        chosen, notes = options.metrics is not None, []
        names = options.metrics if chosen else automatic(bool(asked.references), bool(asked.choices))
        without = [kind for word in options.normalise or () for kind in (KINDS if word == "squad" else (word,))]
        metrics = parse_metrics(names, without)
        for metric in metrics:
            refuse_without_records(metric, options, asked)
        metrics, told = of_whom_it_can_be_had(metrics, contenders, chosen)
        notes += told
        metrics, told = comparable(metrics, contenders, chosen)
        notes += told
        judging = options.reward or options.reward_model or options.judge
        if not metrics and not judging:
            remedy = "name the column of the references, --columns answer=COLUMN, or say what else, by --metrics (as json, regex:PATTERN), --reward or --judge"
            raise UserError(f"there is nothing to measure: no record has a reference or choices that can be judged here; {remedy}")
        needs = {need for metric in metrics for need in metric.needs}
        against_first = options.against == "first" and len(contenders) > 1
        if not against_first and (options.judge or options.against == "references"):
            refuse_without_references(len(asked.references))
        if REFERENCES in needs and (lacking := len(asked.prompts) - len(asked.references)):
            notes.append(f"{lacking:,} of {len(asked.prompts):,} records have no reference, and are no part of what needs one")
        answers = ANSWERS in needs or bool(judging)
        return cls(metrics, answers, LIKELIHOODS in needs, CHOICES in needs, most_samples(metrics), judge_of(options.judge), against_first, notes)


def refuse_without_records(metric: Metric, options: Any, asked: Prompts) -> None:
    """Raise UserError for a metric that the records have nothing for."""
    if CHOICES in metric.needs and not asked.choices:
        remedy = "name their column, --columns choices=COLUMN, and that which says which is right, answer=COLUMN"
        raise UserError(f"metric {metric.name} is of questions with choices, and no record has any: {remedy}")
    if REFERENCES in metric.needs:
        refuse_without_references(len(asked.references))
    if metric.name.startswith(PASS) and not options.reward:
        raise UserError(f"metric {metric.name} counts answers that pass rules: give one, as --reward exact_answer or --reward FILE.py:FUNCTION")


def of_whom_it_can_be_had(metrics: list[Metric], contenders: Sequence[Contender], chosen: bool) -> tuple[list[Metric], list[str]]:
    """Those of the metrics that one of the models at least can be measured by, and what there is to say of the others.

    Raises UserError where the user has chosen one that none of them can.
    """
    silent = [each.name for each in contenders if each.kind != CHECKPOINT]
    judged = [metric.name for metric in metrics if LIKELIHOODS in metric.needs or CHOICES in metric.needs]
    if not silent or not judged:
        return metrics, []
    if len(silent) < len(contenders):
        return metrics, [f"{', '.join(silent)}: no {', '.join(judged)}, which checkpoints alone tell"]
    if chosen:
        why = "needs how likely a model finds a text, which servers and files of answers do not tell"
        raise UserError(f"metric {judged[0]} {why}: name the checkpoint itself")
    return [metric for metric in metrics if metric.name not in judged], [f"without {', '.join(judged)}, which need the checkpoint itself"]


def comparable(metrics: list[Metric], contenders: Sequence[Contender], chosen: bool) -> tuple[list[Metric], list[str]]:
    """Those of the metrics by which the checkpoints can be compared, and what there is to say of the others; raises UserError as above."""
    checkpoints, by_token = [each for each in contenders if each.kind == CHECKPOINT], [metric for metric in metrics if metric.same_tokenizer]
    if not by_token or len({each.what for each in checkpoints}) < 2:
        return metrics, []
    first, *others = [(each.name, load_tokenizer(each.what)) for each in checkpoints]
    for name, tokenizer in others:
        if (why := different_tokens(first[1], tokenizer)) is not None:
            told = f"{by_token[0].name} is a token's, and {first[0]} and {name} have different tokenizers ({why}): "
            if chosen:
                raise UserError(f"metric {told}compare them by bits_per_byte")
            return [metric for metric in metrics if not metric.same_tokenizer], [f"{told}bits_per_byte compares them"]
    return metrics, []


def judge_of(word: str | None) -> Contender | None:
    """Who judges; raises UserError for a file of answers."""
    if word is None:
        return None
    [judge] = contenders_of([word])
    if judge.kind == FILE:
        raise UserError(f"judge {word} is a file of answers: give a model, or a server's address")
    return judge


def groups_of(asked: Prompts, column: str) -> list[str]:
    """Each record's group, by the value that it has in a column.

    Raises UserError for a column that is not there, or not in every record, or of too many values.
    """
    names = sorted({str(key) for record in asked.records if isinstance(record, Mapping) for key in record})
    if column not in names:
        raise UserError(f"by {column}: there is no such column among {', '.join(names) or 'none'}{did_you_mean(column, names)}")
    groups = []
    for number, record in zip(asked.numbers, asked.records, strict=True):
        value = record.get(column) if isinstance(record, Mapping) else None
        if value is None or isinstance(value, list | dict) or not str(value).strip():
            told = "nothing" if value is None or value == "" else f"{value!r:.40}"
            raise UserError(f"by {column}: {asked.unit} {number} has {told} there, and so belongs to no group: fill it in, or leave the record out")
        groups.append(f"{column}: {value}")
    if (count := len(set(groups))) > MOST_GROUPS:
        raise UserError(f"by {column}: it has {count:,} different values, more than the {MOST_GROUPS} that a table can have: name a column of fewer")
    return groups
