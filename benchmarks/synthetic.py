"""Whether records that a small model makes help one that is taught by them: before, after seeds alone, after seeds and what was made of them.

python benchmarks/synthetic.py --output_dir runs/synthetic
python benchmarks/synthetic.py --output_dir runs/encoder --learner encoder --heldout 240 --count 80
python benchmarks/synthetic.py --output_dir runs/everyday --tasks all --per_task 4 --style self_instruct --round_trip f1:0.6 --near_duplicates 0.9 \\
    --max_overlap 0.95 --steps 32 --heldout 64 --count 32

Of the sample everyday (eight small tasks on a sentence, answered by exact words) a few records of the --tasks are the seeds, from which the model makes new ones
(`seodang synthesise`): by default of sentiment, new reviews to the labels + and -, so that the label is given and the text is found. With --generator_rows the model is
taught before that to go on with a list of records (`seodang sft` on the prompts of self_instruct, the record that comes next the answer). A learner is then taught by the
seeds alone, and by the seeds and what was made, in as many steps of as many rows, for each of --seeds anew: the very model that made them, by LoRA, or with
--learner encoder the default encoder as a classifier of the texts. What is asked are held-out records, on other words and partly in other wordings, dealt by the script that built
the sample. Prints what each filter dropped, and the shares answered exactly with 95 % intervals by the bootstrap over questions, differences paired, those of all seeds
together by each question's mean. What is in --output_dir already is not done again; figures.json has all.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from seodang.data.formats import to_example
from seodang.data.json_text import read_json_lines
from seodang.data.sample_data import sample_path
from seodang.data.synthesis.seeds import FIELDS, Seed
from seodang.data.synthesis.styles import OUTPUT_FIRST, line_of, self_instruct
from seodang.infer import SamplingParams, generate, load
from seodang.infer.checkpoint.manifest import MANIFEST
from seodang.recipes import classify, sft
from seodang.recipes.synthesis import synthesise
from seodang.train.maths.bootstrap import interval, resampled_sums
from seodang.train.maths.text_metrics import agreement

SFT = {
    "lora_r": 16, "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "per_device_train_batch_size": 4, "logging_steps": 20, "save_strategy": "no",
    "report_to": "none", "disable_tqdm": "true", "device": "cpu",
}  # fmt: skip
CLASSIFY = {
    "text_column": "input", "learning_rate": 1e-4, "per_device_train_batch_size": 8, "logging_steps": 20, "save_strategy": "no", "report_to": "none", "disable_tqdm": "true",
    "device": "cpu",
}  # fmt: skip
ANSWER_TOKENS = 32
QUESTIONS = 77  # the seed by which they are dealt, whatever --seeds are: neither sample is of it
MEANINGS = ["+=a short review by somebody who liked it", "-=a short review by somebody who did not like it"]
BEFORE, ALONE, BOTH = "before", "seeds alone", "seeds and made"


def main() -> int:
    options = arguments()
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    records = read_json_lines(sample_path("everyday"))
    tasks = sorted({record["task"] for record in records}) if options.tasks == ["all"] else options.tasks
    questions, began = dealt(tasks, options.heldout), time.process_time()
    write(folder / "questions.jsonl", questions)
    learner = LEARNERS[options.learner](options.model, questions, folder / "questions.jsonl", options.steps or STEPS[options.learner])
    before = learner.before(folder / "before.json")
    figures = {}
    for seed in options.seeds:
        of_seed = folder / f"seed-{seed}"
        of_seed.mkdir(exist_ok=True)
        marks = one_draw(options, learner, [record for record in records if record["task"] in tasks], of_seed, seed)
        if marks is None:
            return 2
        figures[seed] = {BEFORE: before, **marks}
        (folder / "figures.json").write_text(json.dumps(figures) + "\n", encoding="utf-8")
        made = len(read_json_lines(of_seed / "made.jsonl"))
        print(f"seed {seed}: {len(read_json_lines(of_seed / 'seeds.jsonl'))} seeds, {made} records made, {learner.steps} steps, {time.process_time() - began:.0f} s of CPU time so far")
        print(*compared(figures[seed]), sep="\n", flush=True)
    every = {name: np.mean([marks[name] for marks in figures.values()], axis=0) for name in (BEFORE, ALONE, BOTH)}
    print(f"all of {len(figures)} seeds, {len(questions)} questions", *compared(every), *by_task(every, questions), sep="\n")
    return 0


def one_draw(options: argparse.Namespace, learner: "Speaker", records: Sequence[dict], folder: Path, seed: int) -> dict[str, list[float]] | None:
    """The marks of the learner taught by a draw of seeds, and by these with what is made of them; None where nothing could be made."""
    seeds = drawn(records, options.per_task, seed, by_output=options.style == OUTPUT_FIRST)
    write(folder / "seeds.jsonl", seeds)
    alone = learner.marks(folder / "seeds.jsonl", folder / "on-seeds", seed)
    generator = options.model
    if options.generator_rows:
        generator = folder / "generator"
        write(folder / "next.jsonl", continuations(seeds, options.shots, options.generator_rows, seed))
        taught(options.model, folder / "next.jsonl", generator, options.generator_rows // SFT["per_device_train_batch_size"], seed)
    made = folder / "made.jsonl"
    how = {
        "data": folder / "seeds.jsonl", "model": generator, "output": made, "dropped": folder / "dropped.jsonl", "style": options.style, "count": options.count,
        "attempts": 4 * options.count, "shots": options.shots, "made_shots": 0 if options.style == OUTPUT_FIRST else 2, "max_chars": 160, "max_new_tokens": options.max_new_tokens,
        "temperature": 0.9, "top_p": 0.95, "near_duplicates": options.near_duplicates, "max_overlap": options.max_overlap, "eval_data": folder.parent / "questions.jsonl",
        "seed": seed, "resume": "true", **({"round_trip": options.round_trip} if options.round_trip else {}),
    }  # fmt: skip
    meanings = ["--meanings", *options.meanings] if options.style == OUTPUT_FIRST and options.meanings else []
    if synthesise.main([*argv_of(how), *meanings]) > 1:  # 1: fewer than wanted, which may do
        return None
    write(folder / "both.jsonl", [*seeds, *({name: row[name] for name in FIELDS} for row in read_json_lines(made))])
    return {ALONE: alone, BOTH: learner.marks(folder / "both.jsonl", folder / "on-both", seed)}


@dataclass
class Speaker:
    """The model itself, which answers."""

    model: str
    questions: Sequence[dict]
    file: Path  # that they are in
    steps: int

    def before(self, kept: Path) -> list[float]:
        """Of each question whether the model, untaught, answers it."""
        return answered(self.model, self.questions, kept)

    def marks(self, data: Path, folder: Path, seed: int) -> list[float]:
        """Of each question whether it is answered by what the data teaches, in `folder`."""
        taught(self.model, data, folder, self.steps, seed)
        return answered(str(folder), self.questions, folder.with_suffix(".json"))


class Classifier(Speaker):
    """The default encoder, which tells the output as a class of the input."""

    def before(self, kept: Path) -> list[float]:
        """Of a head that knows nothing: the commonest class each time."""
        commonest, _ = Counter(question["output"] for question in self.questions).most_common(1)[0]
        return [float(question["output"] == commonest) for question in self.questions]

    def marks(self, data: Path, folder: Path, seed: int) -> list[float]:
        """Of each question whether its class is told."""
        if not (folder / MANIFEST).is_file():
            done(classify.main(argv_of({"data": data, "label_column": "output", "output_dir": folder, "max_steps": self.steps, "seed": seed, **CLASSIFY})))
        told = folder.with_suffix(".jsonl")
        if not told.is_file():
            done(classify.main(["--predict", *argv_of({"model": folder, "data": self.file, "text_column": "input", "output": told, "device": "cpu"})]))
        return agreements([row["label"] for row in read_json_lines(told)], self.questions)


LEARNERS, STEPS = {"encoder": Classifier, "model": Speaker}, {"encoder": 60, "model": 40}


def drawn(records: Sequence[dict], per_task: int, seed: int, by_output: bool) -> list[dict]:
    """So many records of each task as seeds; `by_output`: as many of each of its outputs."""
    kinds = defaultdict(list)
    for record in records:
        kinds[record["task"], record["output"] if by_output else ""].append(record)
    of_task = {task: sum(each == task for each, _ in kinds) for task, _ in kinds}
    random = Random(seed)
    return [record for kind in sorted(kinds) for record in random.sample(kinds[kind], per_task // of_task[kind[0]])]


def dealt(tasks: Sequence[str], count: int) -> list[dict]:
    """So many questions, as many of each task, on held-out words and partly in held-out wordings: dealt as the sample was, but further."""
    spec = importlib.util.spec_from_file_location("build_everyday", Path(sample_path("everyday")).parent / "build_everyday.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    deal, found = build.Deal("held_out", QUESTIONS), {}
    for place, task in enumerate(tasks, 1):
        while len(found) < place * (count // len(tasks)):
            instruction, given, output = getattr(deal, task)()
            found[instruction, given] = {"instruction": instruction, "input": given, "output": output, "task": task}
    return [*found.values()]


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
    done(sft.main(argv_of({"model": model, "data": data, "output_dir": folder, "max_steps": steps, "seed": seed, **SFT})))


def done(code: int) -> None:
    """End with the exit code of a command that failed."""
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


def compared(marks: dict[str, Sequence[float]]) -> Iterable[str]:
    """The share of each with its interval, and the differences to seeds alone."""
    rows = np.array([*marks.values()], dtype=np.float64).T
    sums = resampled_sums(rows, 2000, 0) / len(rows)
    names = [*marks]
    base = names.index(ALONE)
    for place, name in enumerate(names):
        low, high = interval(sums[:, place])
        line = f"{name:<16}exact {rows[:, place].mean():.3f} [{low:.3f}, {high:.3f}] of {len(rows)}"
        if place != base:
            low, high = interval(sums[:, place] - sums[:, base])
            line += f"   to seeds alone {(rows[:, place] - rows[:, base]).mean():+.3f} [{low:+.3f}, {high:+.3f}]"
        yield line


def by_task(marks: dict[str, Sequence[float]], questions: Sequence[dict]) -> Iterable[str]:
    """The shares of each task."""
    for task in sorted({question["task"] for question in questions}):
        of_task = [index for index, question in enumerate(questions) if question["task"] == task]
        yield f"  {task:<14}" + "  ".join(f"{name} {np.asarray(values)[of_task].mean():.3f}" for name, values in marks.items())


def write(path: Path, records: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def argv_of(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/synthetic")
    parser.add_argument("--model", default="default")
    parser.add_argument("--tasks", nargs="+", default=["sentiment"], help="of the eight of everyday, or all")
    parser.add_argument("--per_task", type=int, default=16, help="seeds of each task; of output_first as many of each output")
    parser.add_argument("--heldout", type=int, default=120, help="questions, as many of each task")
    parser.add_argument("--learner", choices=LEARNERS, default="model", help="what is taught: the default encoder, or the --model itself")
    parser.add_argument("--steps", type=int, help=f"on the seeds and on both, of eight rows of the encoder, of four of the model; by default {STEPS}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the draw of records, of what is made of them, and of training")
    parser.add_argument("--style", default=OUTPUT_FIRST, help="of `seodang synthesise`: output_first or self_instruct")
    parser.add_argument("--meanings", nargs="*", default=MEANINGS, help="output_first: what the inputs of an output are, in words")
    parser.add_argument("--generator_rows", type=int, default=0, help="lists that the generator learns to go on with, each seed the next record of some")
    parser.add_argument("--shots", type=int, default=4, help="records of such a list")
    parser.add_argument("--count", type=int, default=100, help="records to be made")
    parser.add_argument("--max_new_tokens", type=int, default=48, help="of a record that is made")
    parser.add_argument("--round_trip", default="", help="how far the generator must agree with itself, as f1:0.6; empty: it is not asked again")
    parser.add_argument("--near_duplicates", type=float, default=0.7)
    parser.add_argument("--max_overlap", type=float, default=0.5)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
