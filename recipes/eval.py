"""Measure models on records, several side by side: how right their answers are, how likely they find the right ones, and whether that differs.

seodang eval runs/sft --data heldout.jsonl
seodang eval before=default after=runs/sft --data heldout.jsonl --metrics exact f1 --by topic --output eval.json --html eval.html
seodang eval answers.jsonl http://localhost:8000/v1#tuned --data heldout.jsonl --judge http://localhost:9000/v1

A model is a folder or hub name, a server's address, or a file of answers by `seodang generate`. Without --metrics the records decide: references, or
choices of which one is right. With --output the answers are kept in a folder beside it, and --resume goes on from there.
"""

import gc
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from seodang.data.errors import UserError
from seodang.infer.remote.connection import GivenUp
from seodang.recipes.evaluation.answers import asked_of, file_name, read_answers
from seodang.recipes.evaluation.contenders import CHECKPOINT, FILE, FORMS, Contender, contenders_of
from seodang.recipes.evaluation.judges import Judge, check_rules, mark_by_judge, mark_by_reward_model, mark_by_rules, rule_name
from seodang.recipes.evaluation.likelihoods import Judged, spaced
from seodang.recipes.evaluation.overlap import overlaps_with
from seodang.recipes.evaluation.page import write_page
from seodang.recipes.evaluation.plan import Plan, groups_of
from seodang.recipes.evaluation.report import ALL, Evaluation, Figures, write_json
from seodang.recipes.options.asking import AskingOptions
from seodang.recipes.options.backend import BackendOptions
from seodang.recipes.options.decoding import Decoding, SpeakingModel, option
from seodang.recipes.options.parser import Repeated, command, parse
from seodang.recipes.options.parts import part_of
from seodang.recipes.prompts.prompt_files import Prompts, Reading, read_prompts
from seodang.train.evaluation.case import Case
from seodang.train.evaluation.comparison import compared
from seodang.train.evaluation.metric import Metric
from seodang.train.evaluation.registry import JUDGE_WIN, REWARD_MODEL, REWARD_WIN, mark_metric
from seodang.train.rewards.rules import CheckedReward, parse_rewards

AGAINST = ("first", "references")
MODEL = ("device", "dtype", "weights", "chat_template", "verbose")
Loading = part_of(SpeakingModel, MODEL, "Loading", "Where every checkpoint is loaded, and how.")
Serving = part_of(BackendOptions, ("api_key", "concurrency", "retries", "request_timeout"), "Serving", "How servers are asked.")


@dataclass
class Evaluate(AskingOptions):
    """What is measured, on what, and where it is written."""

    models: list[str] = field(default_factory=list, metadata={"help": "Checkpoints, http://HOST/v1#MODEL, .jsonl of answers; NAME=... names one."})
    data: str | None = option("One file of records: prompts with references, or questions with choices.")
    metrics: list[str] | None = field(default=None, metadata={"help": "As exact f1 chrf perplexity acc pass@4 json; else by what records have."})
    normalise: list[str] | None = field(default=None, metadata={"help": "What exact and contains leave out: case, punctuation, articles, or squad (all three)."})
    by: str | None = option("A column of the records: figures of each of its values too.")
    limit: int | None = option("Only so many of the first records.")
    reward: list[str] | None = field(
        default=None, metadata={"help": "Rules for answers, as of seodang ppo; pass@K counts what passes all.", "action": Repeated}
    )
    reward_model: str | None = option("A reward model: its score, and how often it prefers an answer.")
    judge: str | None = option("A model or server that says which of two answers is better, both ways.")
    against: str = option("first or references: what answers are judged against.", "first")
    train_data: list[str] | None = field(default=None, metadata={"help": "What was trained on: warn of records that it has too."})
    resamples: int = option("Times that the records are drawn anew for the intervals.", 1000)
    output: str | None = option("Write figures to this JSON file, answers to a folder beside it.")
    resume: bool | None = field(default=None, metadata={"help": "Go on from the answers beside the output; false: begin anew, over them.", "nargs": "?", "const": True})
    html: str | None = option("Write a page: figures, and records, those that differ most first.")
    rows: int = option("Records on the page.", 50)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.models or self.data is None:
            raise UserError(f"models are missing: give {FORMS}" if not self.models else "data is missing: give --data FILE of records")
        for name, least in (("limit", 1), ("resamples", 100), ("rows", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.against not in AGAINST:
            raise UserError(f"against must be {' or '.join(AGAINST)}, got {self.against!r}")
        if self.resume and self.output is None:
            raise UserError("resume goes on from the answers beside the output: give --output too")


@command
def main(argv: list[str] | None = None) -> int:
    options, decoding, loading, serving = parse(argv, Evaluate, Decoding, Loading, Serving, prog="seodang eval", positional=("models",), description=__doc__)
    contenders = contenders_of(options.models)
    asked = read_records(options, decoding)
    plan = Plan.of(options, contenders, asked)
    groups = None if options.by is None else groups_of(asked, options.by)
    settle(decoding, plan)
    rules = parse_rewards(options.reward or [])
    check_rules(rules, asked)
    backends = [
        read_answers(Path(each.what), asked, part=options.limit is not None) if each.kind == FILE
        else each.backend(asdict(loading), asdict(serving), decoding, options, asked)
        for each in contenders
    ]  # fmt: skip
    overlaps, warned = overlaps_with(options.train_data, asked, options.encoding) if options.train_data else (None, [])
    notes = [*plan.notes, *warned]
    try:
        models = [measured(each, backends.pop(0), plan, options, asked, notes) for each in contenders]  # whose memory the next one needs
        gc.collect()
        marked = marks(plan, rules, options, loading, serving, contenders, asked, models, notes)
    except GivenUp as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    metrics = [*plan.metrics, *map(mark_metric, marked)]
    told = {name: getattr(options, name) for name in ("data", "by", "normalise", "resamples", "limit")}
    settings = {**told, "seed": decoding.seed, "against": plan.against_name}
    figures = by_group(metrics, models, groups, options.resamples, decoding.seed)
    found = Evaluation(asked, contenders, metrics, models, figures, groups, overlaps, notes, settings)
    found.show()
    if options.output is not None:
        write_json(options.output, found)
    if options.html is not None:
        write_page(options.html, found, options.rows)
        print(f"page            {options.html}")
    return 0


def marks(
    plan: Plan,
    rules: list[CheckedReward],
    options: Evaluate,
    loading: Any,
    serving: Any,
    contenders: list[Contender],
    asked: Prompts,
    models: list[list[Case]],
    notes: list[str],
) -> list[str]:
    """Have rules, the reward model and the judge mark the answers; return the names of the marks whose means are figures."""
    names, where = [rule_name(rule) for rule in rules], {name: getattr(loading, name) for name in ("device", "dtype")}
    for cases in models if rules else ():
        mark_by_rules(rules, asked, cases)
    others = [next(iter(case.answers), None) if plan.against_first else case.reference for case in models[0]]
    if options.reward_model is not None:
        mark_by_reward_model(options.reward_model, where, asked, models, others)
        names += [REWARD_MODEL, *([REWARD_WIN] if any(other is not None for other in others) else [])]
    if plan.judge is not None:
        judge = Judge(plan.judge, where, asdict(serving))
        for each, cases in zip(contenders, models, strict=True):
            if missing := mark_by_judge(judge, asked, cases, others, kept(options, f"judge of {each.name}"), options.resume):
                notes.append(f"{each.name}: of {missing:,} pairs the judge answered out of form; they are no part of {JUDGE_WIN}")
        names.append(JUDGE_WIN)
    return names


def by_group(metrics: list[Metric], models: list[list[Case]], groups: list[str] | None, resamples: int, seed: int) -> Figures:
    """The figures of all records, and of those of each group."""
    members: dict[str, list[int]] = {ALL: [*range(len(models[0]))]}
    for index, group in enumerate(groups or ()):
        members.setdefault(group, []).append(index)
    return {group: compared(metrics, [[cases[index] for index in indices] for cases in models], resamples, seed) for group, indices in members.items()}


def settle(decoding: Decoding, plan: Plan) -> None:
    """Give the settings of all models a seed, so that what is drawn comes again, and as many answers a record as the metrics need."""
    asked = {"seed": decoding.seed or 0, "num_return_sequences": max(decoding.num_return_sequences, plan.samples)}
    for name, value in asked.items():
        if getattr(decoding, name) != value:
            setattr(decoding, name, value)
            decoding.given = {*(decoding.given or ()), name}


def read_records(options: Evaluate, decoding: Decoding) -> Prompts:
    """The prompts with all that the records say; raises UserError for what cannot be read."""
    reading = Reading(options.raw, True, decoding.source_lang, decoding.target_lang, choices=True)
    if not Path(os.path.expanduser(options.data or "")).exists() and "#" not in (options.data or ""):
        raise UserError(f"--data {options.data}: there is no such file")
    asked = read_prompts([options.data], options.raw, **options.reading(), reading=reading)
    return asked if options.limit is None else asked.first(options.limit)


def kept(options: Evaluate, name: str) -> Path | None:
    """The file in which answers are kept, in a folder beside the output; None where there is no output."""
    if options.output is None:
        return None
    return Path(f"{options.output}.answers") / f"{file_name(name)}.jsonl"


def measured(contender: Contender, backend: Any, plan: Plan, options: Evaluate, asked: Prompts, notes: list[str]) -> list[Case]:
    """The cases of a contender: how likely it finds the references and the choices, and its answers, as far as the plan asks for them.

    `backend` is who answers, or of a file its answers.
    """
    gc.collect()  # the model before this one
    print(f"{contender.name}: {contender.kind} {contender.what}", file=sys.stderr)
    cases = [Case(reference=asked.references.get(index)) for index in range(len(asked.prompts))]
    with ExitStack() as stack:
        opened = cache(lambda: backend.open(stack))
        if contender.kind == CHECKPOINT and (plan.likelihoods or plan.choices):  # first: all texts are encoded, and so checked, at once
            opened()
            judged = Judged(backend, asked)
            if judged.bounds:
                notes.append(f"{contender.name} is of diffusion: its likelihoods are lower bounds, so its perplexity and bits are no better than told")
            add_likelihoods(judged, plan, options, asked, cases)
        if plan.answers:
            answers = backend
            if contender.kind != FILE:
                path = kept(options, contender.name)
                answers = asked_of(contender.name, backend, asked, stack, opened, path, options.resume)
            for index, case in enumerate(cases):
                case.answers = answers.of(index)
            if failed := sum(not case.answers for case in cases):
                told = f"{failed:,} of {len(cases):,} records have no answer ({len(answers.failed):,} ended in an error)"
                notes.append(f"{contender.name}: {told}, and are no part of its figures")
        for line in getattr(backend, "said", list)():
            print(line, file=sys.stderr)
    return cases


def add_likelihoods(judged: Judged, plan: Plan, options: Evaluate, asked: Prompts, cases: list[Case]) -> None:
    """Have the references and the choices judged."""
    references = [(index, case.reference) for index, case in enumerate(cases) if plan.likelihoods and case.reference is not None]
    choices = [(index, text) for index, each in asked.choices.items() if plan.choices for text in each.texts]
    behind = [(index, spaced(asked.prompts[index], text) if options.raw else text) for index, text in choices]
    found = iter(judged.likelihoods([*references, *behind]))
    for index, _ in references:
        cases[index].likelihood = next(found)
    for index, each in asked.choices.items() if plan.choices else ():
        cases[index].choices, cases[index].right = [replace(next(found), text=text) for text in each.texts], each.right


if __name__ == "__main__":
    sys.exit(main())
