"""What attention replaced: exact match by the length of the source of an LSTM with the context vector alone, one with attention, and a Transformer, over seeds.

python benchmarks/attention_story.py                                  three seeds of all three, one after the other, on one thread: 15 minutes of CPU time
python benchmarks/attention_story.py --seeds 1 --models attention     one of them
python benchmarks/attention_story.py --max_steps 8000                 taught for longer

What `seodang demo-attention` teaches, as it does. Each model's figures are a line of the results as soon as there are any; what stands there of the same settings is
not trained again, so that a run that was ended goes on where it was.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from seodang.recipes.demos.attention_story import (
    READERS,
    WAYS,
    Settings,
    Share,
    by_group,
    by_length,
    check_kinds,
    lesson_of,
    parameters,
    taught,
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
    """Teach a model; return how many of the held-out answers are right, and of how many, by way and length of the source, and by the digits of the number."""
    lesson = lesson_of(settings)
    with tempfile.TemporaryDirectory() as folder:
        reader = taught(kind, trainer_of(kind, settings, lesson, Path(folder)), lesson)
    shares = {way: {name: (share.right, share.count) for name, share in by_group(lesson.lengths, reader.right[way]).items()} for way in WAYS}
    by_digits = {digits: (share.right, share.count) for digits, share in by_length(lesson.digits, reader.right["greedy"], 1).items()}
    told = {"weights": parameters(reader.model), "seconds": reader.seconds, "shares": shares, "by_digits": by_digits}
    return {"kind": kind, "settings": asdict(settings), **told}


def lines(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Means over the seeds with their standard deviation, as a table; and how far attention is ahead, seed by seed."""
    groups = list(found[0]["shares"]["greedy"])
    yield f"| | decoded | {' | '.join(groups)} | all | CPU s | weights |"
    yield "| --- " * (len(groups) + 5) + "|"
    for kind, name in READERS.items():
        of_kind = [one for one in found if one["kind"] == kind]
        for way in WAYS if of_kind else ():
            cells = [spread([Share(*one["shares"][way][group]).value for one in of_kind]) for group in groups]
            whole = spread([Share(*map(sum, zip(*one["shares"][way].values(), strict=True))).value for one in of_kind])
            yield f"| {name} | {way} | {' | '.join(cells)} | {whole} | {mean(one['seconds'] for one in of_kind):.0f} | {of_kind[0]['weights']:,} |"
    by_seed = {(one["kind"], one["settings"]["seed"]): (one["shares"]["greedy"], one["by_digits"]) for one in found}
    for seed in sorted({seed for _, seed in by_seed}):
        if {("context", seed), ("attention", seed)} <= by_seed.keys():
            gains = zip(by_seed["context", seed], by_seed["attention", seed], strict=True)
            tokens, digits = (", ".join(f"{name} {Share(*ahead[name]).value - Share(*alone[name]).value:+.3f}" for name in alone) for alone, ahead in gains)
            yield f"seed {seed}: attention ahead by {tokens}; by digits of the number {digits}"


def spread(values: Sequence[float]) -> str:
    """A mean with its standard deviation over the seeds."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
