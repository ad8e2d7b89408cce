"""Whether records that a small model makes itself help it: before, after seeds alone, after seeds and what was made of them.

python benchmarks/synthetic.py --output_dir runs/synthetic

Of the sample everyday (eight small tasks on a sentence, answered by exact words) a few records a task are the seeds, from which the model makes new ones (`seodang synthesise`).
With --generator_rows it is taught before that to go on with a list of them (`seodang sft` on the prompts of `seodang synthesise`, the record that comes next the answer). The model is
then taught by the seeds alone, and by the seeds and what was made, in as many steps of as many rows. What is asked is everyday_heldout: other words, partly other wordings. Prints what
each filter dropped, and the shares answered exactly with 95 % intervals by the bootstrap over records, differences paired. What is in --output_dir already is not done again.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from seodang.data.formats import to_example
from seodang.data.json_text import read_json_lines
from seodang.data.sample_data import sample_path
from seodang.data.synthesis.seeds import Seed
from seodang.data.synthesis.styles import line_of, self_instruct
from seodang.infer import SamplingParams, generate, load
from seodang.infer.checkpoint.manifest import MANIFEST
from seodang.recipes import sft
from seodang.recipes.synthesis import synthesise
from seodang.train.maths.bootstrap import interval, resampled_sums
from seodang.train.maths.text_metrics import agreement

SFT = {
    "lora_r": 16, "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "per_device_train_batch_size": 4, "logging_steps": 20, "save_strategy": "no",
    "report_to": "none", "disable_tqdm": "true", "device": "cpu",
}  # fmt: skip
ANSWER_TOKENS = 32


def main() -> int:
    options = arguments()
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    seeds, questions = drawn(options.per_task, options.heldout, options.seed)
    marks, began = {}, time.process_time()
    write(folder / "seeds.jsonl", seeds)
    marks["before"] = answered(options.model, questions, folder / "before.json")
    taught(options.model, folder / "seeds.jsonl", folder / "on-seeds", options.steps, options.seed)
    marks["seeds alone"] = answered(str(folder / "on-seeds"), questions, folder / "on-seeds.json")

    generator = options.model
    if options.generator_rows:
        generator = folder / "generator"
        write(folder / "next.jsonl", continuations(seeds, options.shots, options.generator_rows, options.seed))
        taught(options.model, folder / "next.jsonl", generator, options.generator_rows // SFT["per_device_train_batch_size"], options.seed)
    made = folder / "made.jsonl"
    how = {
        "data": folder / "seeds.jsonl", "model": generator, "output": made, "dropped": folder / "dropped.jsonl", "count": options.count,
        "attempts": 4 * options.count, "shots": options.shots, "max_chars": 160, "max_new_tokens": 128, "near_duplicates": 0.9, "max_overlap": 0.95,
        "eval_data": sample_path("everyday_heldout"), "seed": options.seed, "resume": "true",
        **({"round_trip": options.round_trip} if options.round_trip else {}),
    }  # fmt: skip
    if synthesise.main(argv_of(how)) > 1:  # 1: fewer than wanted, which may do
        return 2
    write(folder / "both.jsonl", [*seeds, *({name: row[name] for name in ("instruction", "input", "output")} for row in read_json_lines(made))])
    taught(options.model, folder / "both.jsonl", folder / "on-both", options.steps, options.seed)
    marks["seeds and made"] = answered(str(folder / "on-both"), questions, folder / "on-both.json")
    print(f"{time.process_time() - began:.0f} s of CPU time, {len(seeds)} seeds, {len(read_json_lines(made))} records made, {options.steps} steps")
    for line in compared(marks, questions):
        print(line)
    return 0


def drawn(per_task: int, heldout: int, seed: int) -> tuple[list[dict], list[dict]]:
    """So many records of each task as seeds, and of the held-out ones the same number of each task."""
    by_task, asked = defaultdict(list), defaultdict(list)
    for records, name in ((by_task, "everyday"), (asked, "everyday_heldout")):
        for record in read_json_lines(sample_path(name)):
            records[record["task"]].append(record)
    random = Random(seed)
    seeds = [record for task in sorted(by_task) for record in random.sample(by_task[task], per_task)]
    return seeds, [record for task in sorted(asked) for record in asked[task][: heldout // len(asked)]]


def continuations(seeds: Sequence[dict], shots: int, rows: int, seed: int) -> list[dict]:
    """Prompts of `seodang synthesise` that show some seeds, each with another seed as its answer."""
    known, found = [Seed(each["instruction"], each.get("input", ""), each["output"]) for each in seeds], []
    for number in range(rows):
        own = known[number % len(known)]
        ask = self_instruct([each for each in known if each is not own], shots, 0).ask(number, Random(f"{seed} {number}"), [])
        found.append({"prompt": ask.prompt, "completion": line_of(own.told())})
    return found


def taught(model: str, data: Path, folder: Path, steps: int, seed: int) -> None:
    if (folder / MANIFEST).is_file():
        return
    code = sft.main(argv_of({"model": model, "data": data, "output_dir": folder, "max_steps": steps, "seed": seed, **SFT}))
    if code:
        sys.exit(code)


def answered(model: str, questions: Sequence[dict], kept: Path) -> list[float]:
    """Of each question whether the greedy answer is the one expected, white space folded; the answers are kept."""
    if kept.is_file():
        return agreements(json.loads(kept.read_text(encoding="utf-8")), questions)
    loaded, tokenizer = load(model, device="cpu")
    prompts = [to_example(question).messages[:-1] for question in questions]
    results = generate(loaded, tokenizer, prompts, SamplingParams(max_new_tokens=ANSWER_TOKENS, temperature=0.0))
    kept.write_text(json.dumps([result.text for result in results], ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return agreements([result.text for result in results], questions)


def agreements(answers: Sequence[str], questions: Sequence[dict]) -> list[float]:
    return [agreement([answer], [question["output"]])["exact"] for answer, question in zip(answers, questions, strict=True)]


def compared(marks: dict[str, list[float]], questions: Sequence[dict]) -> Iterable[str]:
    """The share of each with its interval, the differences to seeds alone, and the shares by task."""
    rows = np.array([*marks.values()], dtype=np.float64).T
    sums = resampled_sums(rows, 2000, 0) / len(rows)
    names = [*marks]
    base = names.index("seeds alone")
    for place, name in enumerate(names):
        low, high = interval(sums[:, place])
        line = f"{name:<16}exact {rows[:, place].mean():.3f} [{low:.3f}, {high:.3f}] of {len(rows)}"
        if place != base:
            low, high = interval(sums[:, place] - sums[:, base])
            line += f"   to seeds alone {(rows[:, place] - rows[:, base]).mean():+.3f} [{low:+.3f}, {high:+.3f}]"
        yield line
    for task in sorted({question["task"] for question in questions}):
        of_task = [index for index, question in enumerate(questions) if question["task"] == task]
        yield f"  {task:<14}" + "  ".join(f"{name} {rows[of_task, place].mean():.2f}" for place, name in enumerate(names))


def write(path: Path, records: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def argv_of(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/synthetic")
    parser.add_argument("--model", default="default")
    parser.add_argument("--per_task", type=int, default=4, help="seeds of each of the eight tasks")
    parser.add_argument("--heldout", type=int, default=64, help="questions, as many of each task")
    parser.add_argument("--steps", type=int, default=32, help="of four rows, on the seeds and on both")
    parser.add_argument("--generator_rows", type=int, default=0, help="lists that the generator learns to go on with, each seed the next record of some")
    parser.add_argument("--shots", type=int, default=4, help="records of such a list")
    parser.add_argument("--count", type=int, default=32, help="records to be made")
    parser.add_argument("--round_trip", default="f1:0.6", help="how far the generator must agree with itself; empty: it is not asked again")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
