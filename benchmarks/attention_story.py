"""What attention replaced: exact match by the length of the source of an LSTM with the context vector alone, one with attention, and a Transformer, over seeds.

python benchmarks/attention_story.py                                  three seeds of all three, one after the other, on one thread: 20 minutes of CPU time
python benchmarks/attention_story.py --seeds 1 --models attention     one of them
python benchmarks/attention_story.py --max_steps 8000                 taught for longer

What `seodang demo-attention` teaches, as it does. Each model's figures are a line of the results as soon as there are any; what stands there of the same settings is
not trained again, so that a run that was ended goes on where it was.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from seodang.recipes.demos.attention_story import (
    PARTS,
    READERS,
    WAYS,
    Settings,
    Share,
    by_length,
    by_thirds,
    check_kinds,
    lesson_of,
    parameters,
    taught,
    thirds,
    trainer_of,
)
from seodang.recipes.options.parser import command, parse


@dataclass
class Options:
    """What is measured."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of the weights, the rows and their order."})
    models: list[str] = field(default_factory=lambda: list(READERS), metadata={"help": "Which are trained."})
    results: str = field(default="runs/attention-story.jsonl", metadata={"help": "Where each model's figures are written, and read again."})

    def __post_init__(self):
        check_kinds(self.models)


@command
def main(argv: list[str] | None = None) -> int:
    settings, options = parse(argv, Settings, Options, prog="attention_story", description=__doc__)
    results = Path(options.results)
    results.parent.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for kind in options.models:
            if not any(sought(found, kind, replace(settings, seed=seed)) for found in read(results)):
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(measured(kind, replace(settings, seed=seed))) + "\n")
    found = [one for one in read(results) if any(sought(one, kind, replace(settings, seed=seed)) for kind in options.models for seed in options.seeds)]
    print(*lines(found), sep="\n")
    return 0


def read(path: Path) -> list[dict[str, Any]]:
    """What was measured already."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def sought(found: dict[str, Any], kind: str, settings: Settings) -> bool:
    """Whether figures are those of a model taught by these settings."""
    return found["kind"] == kind and found["settings"] == asdict(settings)


def measured(kind: str, settings: Settings) -> dict[str, Any]:
    """Teach a model; return how many of the held-out answers are right, and of how many, by part of the tasks: by way and third of the sources, and by digits."""
    lesson = lesson_of(settings)
    with tempfile.TemporaryDirectory() as folder:
        reader = taught(kind, trainer_of(kind, settings, lesson, Path(folder)), lesson)
    counts = lambda shares: {name: (share.right, share.count) for name, share in shares.items()}
    greedy = reader.right["greedy"]
    return {
        "kind": kind, "settings": asdict(settings), "weights": parameters(reader.model), "seconds": reader.seconds,
        "tokens": {part: {name: (group[0], group[-1]) for name, group in thirds(lesson.of_part(part, lesson.lengths)).items()} for part in PARTS},
        "shares": {way: {part: counts(by_thirds(lesson, reader.right[way], part)) for part in PARTS} for way in WAYS},
        "by_digits": {part: counts(by_length(lesson.of_part(part, lesson.digits), lesson.of_part(part, greedy), 1)) for part in PARTS},
    }  # fmt: skip


def lines(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Means over the seeds with their standard deviation, as tables by part of the tasks; and how far attention is ahead, seed by seed."""
    for part in PARTS:
        yield f"{part}, by tokens of the source"
        tokens = [one["tokens"][part] for one in found]
        cuts = {name: " or ".join(dict.fromkeys("{} to {}".format(*each[name]) for each in tokens)) for name in in_all(tokens)}
        yield from table(found, {name: f"{name}, {cut}" for name, cut in cuts.items()}, lambda one, way: one["shares"][way][part], WAYS)
        yield f"{part}, by digits of the number"
        digits = in_all([one["by_digits"][part] for one in found])
        yield from table(found, dict(zip(digits, digits, strict=True)), lambda one, _: one["by_digits"][part], ["greedy"])
    yield "CPU s of training, weights: " + ", ".join(
        f"{name} {mean(one['seconds'] for one in some):.0f}, {some[0]['weights']:,}" for kind, name in READERS.items() if (some := of_kind(found, kind))
    )
    by_seed = {(one["kind"], one["settings"]["seed"]): one["shares"]["greedy"] for one in found}
    for seed in sorted({seed for _, seed in by_seed}):
        if {("context", seed), ("attention", seed)} <= by_seed.keys():
            alone, ahead = by_seed["context", seed], by_seed["attention", seed]
            gains = ({name: Share(*ahead[part][name]).value - Share(*alone[part][name]).value for name in alone[part]} for part in PARTS)
            told = (f"{part} {', '.join(f'{name} {gain:+.3f}' for name, gain in each.items())}" for part, each in zip(PARTS, gains, strict=True))
            yield f"seed {seed}: attention ahead by {'; '.join(told)}"


def table(found: Sequence[dict[str, Any]], columns: Mapping[str, str], shares_of: Callable[..., dict[str, Any]], ways: Iterable[str]) -> Iterator[str]:
    """Rows of a table: for each model and way to decode the shares that `shares_of` finds in its figures, of these names with what heads them, and that of all."""
    yield f"| | decoded | {' | '.join(columns.values())} | all |"
    yield "| --- " * (len(columns) + 3) + "|"
    for kind, name in READERS.items():
        for way in ways if of_kind(found, kind) else ():
            shares = [shares_of(one, way) for one in of_kind(found, kind)]
            cells = [spread([Share(*each[column]) for each in shares]) for column in columns]
            whole = spread([Share(*map(sum, zip(*each.values(), strict=True))) for each in shares])
            yield f"| {name} | {way} | {' | '.join([*cells, whole])} |"


def in_all(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names that all have, in the order of the first: of few questions some are asked by one seed alone."""
    return [name for name in tables[0] if all(name in each for each in tables)]


def of_kind(found: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The figures of a model, of each seed."""
    return [one for one in found if one["kind"] == kind]


def spread(shares: Sequence[Share]) -> str:
    """A mean with its standard deviation over the seeds."""
    values = [share.value for share in shares]
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
