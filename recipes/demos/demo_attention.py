"""Why attention won: two LSTMs, without and with attention, and a Transformer learn the same rows, and a page shows what each can do.

seodang demo-attention

Numbers and their words, in English and Korean, both ways. The page has the accuracy by the length of the source, the training time a token by the length of a
row, sequential against parallel, and what the models look at while they answer. It takes up to 10 minutes on two cores. All three see the same batches in the
same order; the learning rates are each kind's own.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from seodang.data.errors import UserError
from seodang.infer.explain.attention_map import cross_attention_maps
from seodang.infer.text.token_labels import TokenLabels
from seodang.recipes.demos.attention_story import (
    BOTH_WAYS,
    PARTS,
    READERS,
    TASKS,
    WAYS,
    Lesson,
    Reader,
    Settings,
    Share,
    Times,
    by_length,
    by_thirds,
    check_kinds,
    lesson_of,
    parameters,
    refusal,
    step_seconds,
    taught,
    thirds,
    token_seconds,
    trainer_of,
)
from seodang.recipes.options.parser import command, parse
from seodang.train import Seq2SeqTrainer
from seodang.train.run.heat_map import heat_map
from seodang.train.run.line_chart import Line
from seodang.train.run.run_page import Chart, Picture, write_page

FLOOR = 2000  # steps that a slow machine makes all the same: with fewer no alignment is learned
LENGTHS = (8, 16, 32, 64, 128, 256)  # of rows whose training is timed
REPEATS = 5  # timed passes
DRAWN = ("en>digits", "digits>ko")  # tasks of which an answer's attention is drawn
ALIKE = [part for part in PARTS if part != BOTH_WAYS]  # tasks whose answers grow with their sources
LEAST = 20  # held-out sources of a length that is a point of the curve


@dataclass
class DemoOptions:
    """The options of `seodang demo-attention` beside how the models are taught."""

    models: list[str] = field(default_factory=lambda: list(READERS), metadata={"help": f"Which are trained: {', '.join(READERS)}."})
    minutes: float = field(default=8.0, metadata={"help": f"Takes fewer steps, {FLOOR:,} at least, where the trainings would take longer than this together."})
    timed_tokens: int = field(default=1024, metadata={"help": "Tokens of a batch whose training is timed."})
    output_dir: str = field(default="runs/demo-attention", metadata={"help": "Folder of the checkpoints and the page."})

    def __post_init__(self):
        for name in ("minutes", "timed_tokens"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")
        check_kinds(self.models)
        self.models = list(dict.fromkeys(self.models))


@command
def main(argv: list[str] | None = None) -> int:
    settings, options = parse(argv, Settings, DemoOptions, prog="seodang demo-attention", description=__doc__)
    console, began, folder = Console(), time.perf_counter(), Path(options.output_dir)
    print("this takes up to 10 minutes on two cores: three models are trained in turn", flush=True)
    lesson = lesson_of(settings)
    print(f"rows            {settings.rows:,} to train on, {len(lesson.questions):,} held out: {', '.join(TASKS)}", flush=True)
    settings = within(options, settings, lesson)
    trainers = {kind: trainer_of(kind, settings, lesson, folder) for kind in options.models}
    readers = []
    for kind, trainer in trainers.items():
        how = f"{settings.max_steps:,} steps of {settings.batch} rows, learning rate {settings.learning_rate(kind):g}"
        print(f"{READERS[kind]}: {parameters(trainer.model):,} weights, {how}", flush=True)
        readers.append(taught(kind, trainer, lesson))
    times = timed(trainers, options.timed_tokens)
    console.print(*(accuracy_table(readers, lesson, part) for part in PARTS), *(time_table(how, found) for how, found in times.items()))
    page = write_story(folder, readers, lesson, times, notes(readers, lesson, settings))
    print(*figures(readers, lesson), f"all of it took {time.perf_counter() - began:.0f} s", page, sep="\n")
    return 0


def within(options: DemoOptions, settings: Settings, lesson: Lesson) -> Settings:
    """The same with fewer steps, of all models alike, where they would take more minutes together; but not fewer than the floor."""
    seconds = sum(step_seconds(kind, settings, lesson) for kind in options.models)
    return replace(settings, max_steps=min(settings.max_steps, max(int(60 * options.minutes / seconds), FLOOR)))


# What came of it


def accuracy_table(readers: Sequence[Reader], lesson: Lesson, part: str) -> Table:
    """Exact match on a part of the tasks by the length of the source, a line a model and way to decode."""
    head, *rows = accuracy_rows(readers, lesson, part)
    drawn = Table(*head, title=f"exact match on held-out numbers, {part}, by tokens of the source, with standard errors")
    for row in rows:
        drawn.add_row(*row)
    return drawn


def accuracy_rows(readers: Sequence[Reader], lesson: Lesson, part: str) -> list[tuple[str, ...]]:
    """The same as texts, the names of the columns first."""
    tokens, counts = thirds(lesson.of_part(part, lesson.lengths)), by_thirds(lesson, [True] * len(lesson.lengths), part)
    columns = (f"{name}: {tokens[name][0]} to {tokens[name][-1]} (n={share.count})" for name, share in counts.items())
    rows = [("", "decoded", *columns, "all", "CPU s of training")]
    for reader in readers:
        for way in WAYS:
            shares = by_thirds(lesson, reader.right[way], part)
            rows.append((reader.name, way, *map(str, shares.values()), str(whole(lesson.of_part(part, reader.right[way]))), f"{reader.seconds:.0f}"))
    return rows


def whole(right: Sequence[bool]) -> Share:
    """The share of all that are right."""
    return Share(sum(right), len(right))


def timed(trainers: Mapping[str, Seq2SeqTrainer], tokens: int) -> dict[str, Times]:
    """Training time a token on one thread, and where there are more on all of them, which only what is parallel can share."""
    threads = torch.get_num_threads()
    found = {"one thread, CPU time": token_seconds(trainers, LENGTHS, tokens, REPEATS)}
    if threads > 1:
        found[f"{threads} threads, wall clock"] = token_seconds(trainers, LENGTHS, tokens, REPEATS, threads)
    return found


def time_table(how: str, times: Times) -> Table:
    """Training time a token by the length of a row."""
    drawn = Table("tokens of a row", *(READERS[kind] for kind in times), title=f"microseconds a token, forward and backward; {how}")
    for length in LENGTHS:
        drawn.add_row(str(length), *(f"{1e6 * found[length]:.1f}" for found in times.values()))
    return drawn


def notes(readers: Sequence[Reader], lesson: Lesson, settings: Settings) -> list[str]:
    """What is compared, and how, in paragraphs."""
    taught_by = ", ".join(f"{reader.name}: {parameters(reader.model):,} weights, learning rate {settings.learning_rate(reader.kind):g}" for reader in readers)
    refused: dict[str, list[str]] = {}
    for reader in readers:
        refused.setdefault(refusal(reader, lesson), []).append(reader.name)
    told = [f"With {' and '.join(names)} it is refused: {text}." for text, names in refused.items() if text]
    return [
        f"Numbers of 2 to {settings.digits} digits and their words, in English and Korean, both ways. What is measured are numbers that none has read. Short, middle and long are "
        "thirds of the sources; words are many tokens and digits few, so what a long source asks for is to be seen on each way alone. "
        f"All saw the same {settings.max_steps:,} batches of {settings.batch} rows of like lengths, in the same order: rows are shared, not seconds, which the table tells.",
        f"{taught_by}. {settings.layers} layers of {settings.d_model} in encoder and decoder each, Adam, a cosine behind a warmup of a twentieth, no dropout. "
        "The Transformer's norms stand before its sublayers; the paper's, behind them, need a longer warmup.",
        "The engine decodes all of them greedily and by beams. " + " ".join(["Prompt lookup has guesses judged, and the wrong ones cut out of the past.", *told]),
    ]


def write_story(folder: Path, readers: Sequence[Reader], lesson: Lesson, times: Mapping[str, Times], told: Sequence[str]) -> Path:
    """Write the page; return its path."""
    by = [("length of the source", part, "source tokens", lesson.lengths) for part in ALIKE] + [("length of the number", BOTH_WAYS, "digits", lesson.digits)]
    curves = [
        (Chart(f"Accuracy by the {what}, {part}", "exact match, greedy, with standard errors", over=over), accuracy_lines(readers, lesson, part, lengths))
        for what, part, over, lengths in by
    ]
    for how, found in times.items():
        curves.append((Chart(f"Training time a token, {how}", "microseconds, forward and backward", over="tokens of a row"), time_lines(found)))
    return write_page(
        folder / "page.html", {reader.name: Path(reader.trainer.args.output_dir) for reader in readers}, title="What attention replaced", notes=told,
        figures=[line.split(None, 1) for line in figures(readers, lesson)], curves=[(chart, lines) for chart, lines in curves if lines],
        pictures=list(attention_pictures([reader for reader in readers if reader.kind != "context"], lesson)),
        tables={f"Exact match by tokens of the source, {part}": accuracy_rows(readers, lesson, part) for part in PARTS},
    )  # fmt: skip


def accuracy_lines(readers: Sequence[Reader], lesson: Lesson, part: str, lengths: Sequence[int]) -> list[Line]:
    """A curve a model over the lengths, one a question, of a part of the tasks."""
    lines = []
    for reader in readers:
        shares = by_length(lesson.of_part(part, lengths), lesson.of_part(part, reader.right["greedy"]), LEAST)
        values, errors = [share.value for share in shares.values()], [share.error for share in shares.values()]
        lines += [Line(reader.name, list(shares), values, place_of(reader.kind), place_of(reader.kind), errors)] if shares else []
    return lines


def time_lines(times: Times) -> list[Line]:
    """A curve a model, in microseconds."""
    return [Line(READERS[kind], list(found), [1e6 * seconds for seconds in found.values()], place_of(kind), place_of(kind)) for kind, found in times.items()]


def place_of(kind: str) -> int:
    """A model's colour and dash."""
    return [*READERS].index(kind)


# What it looks at


def attention_pictures(readers: Sequence[Reader], lesson: Lesson) -> Iterator[Picture]:
    """For a source of each task that is drawn what each token of the answers to it looked at: by layer the mean of the heads, and once each head of the last."""
    for number, task in enumerate(DRAWN):
        place = drawn_place(readers, lesson, task)
        for reader in readers:
            across, down, maps = looked_at(reader, lesson, place)
            for layer, heads in enumerate(maps, start=1):
                where = f", layer {layer}, mean of {len(heads)} heads" if len(heads) > 1 else ""
                yield heat_map(f"{reader.name}{where}: {task}", heads.mean(dim=0), down, across)
            if number == 0 and len(maps[-1]) > 1:
                for head, weights in enumerate(maps[-1], start=1):
                    yield heat_map(f"{reader.name}, layer {len(maps)}, head {head}: {task}", weights, down, across)


def looked_at(reader: Reader, lesson: Lesson, place: int) -> tuple[list[str], list[str], list[Tensor]]:
    """The names of a source's tokens and of those of the model's answer, and by layer the weights that its pass over them gives, [heads, answer, source]."""
    names, source = TokenLabels(lesson.tokenizer), lesson.questions[place].prompt
    answer = lesson.tokenizer(reader.answers["greedy"][place])["input_ids"]
    return [*map(names, source)], [*map(names, answer)], cross_attention_maps(reader.model, source, answer)


def drawn_place(readers: Sequence[Reader], lesson: Lesson, task: str) -> int:
    """Which question of a task is drawn: the longest of those that most of the models answer rightly."""
    places = [place for place, each in enumerate(lesson.tasks) if each == task]
    return max(places, key=lambda place: (sum(reader.right["greedy"][place] for reader in readers), lesson.lengths[place]))


def figures(readers: Sequence[Reader], lesson: Lesson) -> Iterator[str]:
    """The figures in a line each, for people and for scripts."""
    shares = {reader.kind: {part: by_thirds(lesson, reader.right["greedy"], part) for part in PARTS} for reader in readers}
    for reader in readers:
        groups = ", ".join(f"{name} {share}" for name, share in shares[reader.kind][BOTH_WAYS].items())
        yield f"{reader.kind:<16}{groups}; beam 4 {whole(reader.right['beam 4'])}; {reader.seconds:.0f} s of CPU time"
    if {"context", "attention"} <= shares.keys():
        by_digits = {reader.kind: by_length(lesson.digits, reader.right["greedy"], 1) for reader in readers}
        told = [f"{part}: {gains(shares['context'][part], shares['attention'][part])}" for part in PARTS]
        yield f"{'ahead':<16}attention before the context vector alone, {'; '.join(told)}; by digits of the number: {gains(by_digits['context'], by_digits['attention'])}"


def gains(alone: Mapping[Any, Share], ahead: Mapping[Any, Share]) -> str:
    """How far one is ahead of another, group by group."""
    return ", ".join(f"{name} {share.value - alone[name].value:+.3f}" for name, share in ahead.items())


if __name__ == "__main__":
    sys.exit(main())
