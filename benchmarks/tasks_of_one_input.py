"""Several tasks of one input: the four layouts of `seodang sft --tasks`, on accuracy a task and on what they cost.

python benchmarks/tasks_of_one_input.py --snips DIR --output_dir runs/tasks
python benchmarks/tasks_of_one_input.py --klue klue-ner-v1.1_dev.tsv --nsmc_raw raw/ --model runs/korean --output_dir runs/tasks-ko
python benchmarks/tasks_of_one_input.py --snips DIR --output_dir runs/tasks --layouts together --formats json text keyed

What the files are, and where from, is said in task_sets.py. For each seed records are drawn, and held-out ones; every layout fine-tunes the same model on the
same records, `seodang sft`, and answers the held-out ones greedily, `seodang generate --tasks`. A line a run goes into OUTPUT_DIR/figures.jsonl; runs that have
theirs are not done again. The table at the end has medians over the seeds with their range. Of a task, `exact` is the share of results that are those wanted
(an error is wrong), `f1` the micro F1 of the fields' values. Tokens: those of the rows that a training epoch reads, those of them that are learned, those that a
held-out record's answers took. Seconds are CPU seconds of the whole process, its start included.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from task_sets import reviews, snips, split

from seodang.data.labels import prepare
from seodang.data.tasks.layouts import LAYOUTS, Layout
from seodang.data.tasks.records import task_record
from seodang.infer import load


def measured(*command: str) -> float:
    """Run a command of ours; return the CPU seconds that it took."""
    process = subprocess.Popen([sys.executable, "-m", "seodang", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    complaint = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}: {complaint.decode()[-2000:]}")
    return used.ru_utime + used.ru_stime


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def tokens(model: str, records: list[dict], layout: Layout) -> dict[str, int]:
    """Tokens of the rows of an epoch, and those learned."""
    _, tokenizer = load(model)
    rows, _ = prepare([dialogue for record in records for dialogue in layout.dialogues(task_record(record))], tokenizer, max_length=1024)
    return {"read": sum(len(row["input_ids"]) for row in rows), "learned": sum(label >= 0 for row in rows for label in row["labels"])}


def values(output: Any) -> Counter:
    """The fields of a result, each value once for every time that it is there."""
    if not isinstance(output, dict):
        return Counter()
    return Counter((name, str(value)) for name, found in output.items() for value in (found if isinstance(found, list) else [found]))


def f1(pairs: list[tuple[Any, Any]]) -> float:
    """Micro F1 of the fields' values, of (result, wanted) pairs."""
    both = sum((values(result) & values(wanted)).total() for result, wanted in pairs)
    return 2 * both / max(sum(values(each).total() for pair in pairs for each in pair), 1)


def figures(answers: Path, held_out: list[dict]) -> dict[str, float]:
    """What each task comes to."""
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    found: dict[str, float] = {}
    for place, task in enumerate(held_out[0]["tasks"]):
        pairs = [(line["tasks"][place].get("output"), record["tasks"][place]["output"]) for line, record in zip(lines, held_out, strict=True)]
        found[f"{task['name']} exact"] = statistics.mean(result == wanted for result, wanted in pairs)
        if isinstance(task["output"], dict):
            found[f"{task['name']} f1"] = f1(pairs)
    found["errors"] = statistics.mean("error" in task for line in lines for task in line["tasks"])
    found["generated"] = statistics.mean(line["tokens"] for line in lines)
    return found


def run(options: argparse.Namespace, records: list[dict], layout: Layout, seed: int) -> dict[str, Any]:
    train, held_out = split(records, options.train, options.held_out, seed)
    folder = options.output_dir / f"{layout.name}-{layout.task_format}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    told = ["--tasks", layout.name, "--task_format", layout.task_format]
    rows_each = 1 if layout.name in ("together", "sequence") else len(train[0]["tasks"])  # as many records a step in every layout
    trained = measured(
        "sft", "--model", options.model, "--data", str(write(folder / "train.jsonl", train)), *told, "--learning_rate", str(options.learning_rate),
        "--num_train_epochs", str(options.epochs), "--per_device_train_batch_size", str(options.batch), "--gradient_accumulation_steps", str(rows_each),
        "--seed", str(seed), "--save_strategy", "no", "--report_to", "none", "--output_dir", str(folder / "model"),
    )  # fmt: skip
    spoken = measured(
        "generate", str(folder / "model"), "--prompts", str(write(folder / "held_out.jsonl", held_out)), *told, "--max_new_tokens", "300",
        "--output", str(folder / "answers.jsonl"),
    )  # fmt: skip
    shutil.rmtree(folder / "model")
    cost = {"train_cpu_s": round(trained, 1), "answer_cpu_s": round(spoken, 1), **tokens(options.model, train, layout)}
    return {"layout": layout.name, "format": layout.task_format, "seed": seed, **figures(folder / "answers.jsonl", held_out), **cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snips", type=Path, help="the folder of train_INTENT.json")
    parser.add_argument("--klue", type=Path)
    parser.add_argument("--nsmc_raw", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS, choices=LAYOUTS)
    parser.add_argument("--formats", nargs="+", default=["json"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--held_out", type=int, default=100)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--batch", type=int, default=8, help="records of a step")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--output_dir", type=Path, required=True)
    options = parser.parse_args()
    records = snips(options.snips) if options.snips else reviews(options.klue, options.nsmc_raw)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / "figures.jsonl"
    done = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    for seed in options.seeds:
        for layout in [Layout(name, form) for form in options.formats for name in options.layouts]:
            if not any((each["layout"], each["format"], each["seed"]) == (layout.name, layout.task_format, seed) for each in done):
                done.append(run(options, records, layout, seed))
                print(json.dumps(done[-1], ensure_ascii=False), flush=True)
                with path.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(done[-1], ensure_ascii=False) + "\n")
    columns = [name for name in done[0] if name not in ("layout", "format", "seed")]
    print(f"| layout | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for layout, form in dict.fromkeys((each["layout"], each["format"]) for each in done):
        runs = [each for each in done if (each["layout"], each["format"]) == (layout, form)]
        print(f"| {layout}, {form} | {' | '.join(of_runs([each[name] for each in runs]) for name in columns)} |")


def of_runs(found: list[float]) -> str:
    """A median and its range."""
    digits = 3 if max(found) <= 1 else 0
    return f"{statistics.median(found):,.{digits}f} ({min(found):,.{digits}f} to {max(found):,.{digits}f})"


if __name__ == "__main__":
    main()
