"""School arithmetic (GSM8K) by SFT, then GRPO with a rule: how many held-out questions are answered rightly before, between and after.

python benchmarks/gsm8k.py --data FOLDER --output runs/gsm8k
python benchmarks/gsm8k.py --data FOLDER --output runs/gsm8k --steps 9 --tokens 1000 --learn 6000 --reinforce 1000     (of all lengths)

FOLDER holds gsm8k_train.jsonl and gsm8k_test.jsonl. Taken are questions whose worked answers have at most `--steps` computations (counted by their <<marks>>,
which are left out) and which have, with the answer, at most `--tokens` tokens. Of the train file's, drawn by a seed, some are for SFT, others for GRPO, and
others held out beside the test file's. The commands are printed as they run; what is there is not made again. The rules: `exact_answer` (the number behind ####), and for a model that
never heard of that mark `last_number` of this file.
"""

import argparse
import json
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARK = re.compile(r"<<.*?>>")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[str], **columns: Any) -> list[float]:
    """1 where the last number of the completion is that of the answer, else 0."""
    return [float(number_in(text) == number_in(wanted)) for text, wanted in zip(completions, answer, strict=True)]


def number_in(text: str) -> float | None:
    """The last number of a text."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def read_questions(path: Path, steps: int, tokens: int) -> list[dict[str, str]]:
    """Questions with worked answers of so many computations, of so many tokens at most."""
    from seodang.data import read_json_lines
    from seodang.infer import load_tokenizer

    encode = load_tokenizer("default")
    few = [each for each in read_json_lines(path) if 1 <= len(MARK.findall(each["answer"])) <= steps]
    found = [{"question": each["question"], "answer": MARK.sub("", each["answer"])} for each in few]
    return [each for each in found if len(encode(each["question"] + each["answer"])["input_ids"]) <= tokens]


def prepare(options: argparse.Namespace) -> None:
    """Write sft.jsonl, grpo.jsonl and heldout.jsonl."""
    pool = read_questions(options.data / "gsm8k_train.jsonl", options.steps, options.tokens)
    held = read_questions(options.data / "gsm8k_test.jsonl", options.steps, options.tokens)[: options.heldout]
    random.Random(options.seed).shuffle(pool)
    more = options.heldout - len(held)
    if len(pool) < more + options.learn + options.reinforce:
        sys.exit(f"{len(pool):,} questions of the train file are fewer than {more:,} held out, {options.learn:,} for SFT and {options.reinforce:,} for GRPO")
    parts = {"heldout": held + pool[:more], "sft": pool[more:][: options.learn], "grpo": pool[more + options.learn :][: options.reinforce]}
    print(f"{len(pool):,} questions of the train file and {len(held):,} of the test file; " + ", ".join(f"{name} {len(rows):,}" for name, rows in parts.items()))
    for name, rows in parts.items():
        (options.output / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def seodang(*words: Any) -> None:
    """Run a command, shown as it would be typed."""
    print("seodang " + shlex.join(map(str, words)), flush=True)
    if code := subprocess.run([sys.executable, "-m", "seodang", *map(str, words)]).returncode:
        sys.exit(code)


def trained(folder: Path) -> bool:
    """Whether a model, or an adapter, was saved there."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of gsm8k_train.jsonl and gsm8k_test.jsonl")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="default", help="that begins")
    parser.add_argument("--steps", type=int, default=2, help="computations of a worked answer, at most")
    parser.add_argument("--tokens", type=int, default=130, help="of question and answer together, at most")
    parser.add_argument("--answer", type=int, default=96, help="tokens of an answer in GRPO; the evaluation allows twice as many")
    parser.add_argument("--heldout", type=int, default=300, help="questions")
    parser.add_argument("--learn", type=int, default=900, help="questions for SFT")
    parser.add_argument("--reinforce", type=int, default=600, help="questions for GRPO")
    parser.add_argument("--sft_learning_rate", type=float, default=5e-5)
    parser.add_argument("--sft_batch", type=int, default=16)
    parser.add_argument("--sft_epochs", type=float, default=1)
    parser.add_argument("--grpo_learning_rate", type=float, default=3e-6)
    parser.add_argument("--grpo_temperature", type=float, default=1.0)
    parser.add_argument("--grpo_steps", type=int, default=20)
    parser.add_argument("--lora_r", type=int, default=0, help="rank of adapters, in both stages; 0 trains all weights")
    parser.add_argument("--grpo_save_steps", type=int, default=10)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", default=["sft", "grpo", "eval"], choices=["sft", "grpo", "eval"])
    options = parser.parse_args()
    out, how = options.output, ["--dtype", options.dtype]
    training, begun = [*how, "--seed", options.seed, "--lora_r", options.lora_r], options.output / ("sft-merged" if options.lora_r else "sft")
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "heldout.jsonl").is_file():
        prepare(options)
    if "sft" in options.stages and not trained(out / "sft"):
        seodang(
            "sft", "--model", options.model, "--data", out / "sft.jsonl", "--columns", "prompt=question", "completion=answer", "--max_length", 512,
            "--per_device_train_batch_size", options.sft_batch, "--learning_rate", options.sft_learning_rate, "--num_train_epochs", options.sft_epochs,
            "--lr_scheduler_type", "cosine", "--warmup_steps", 0.1, "--save_strategy", "no", "--output_dir", out / "sft", *training,
        )  # fmt: skip
    if options.lora_r and trained(out / "sft") and not begun.is_dir():
        seodang("export", out / "sft", "--output_dir", begun)  # GRPO begins with a whole model
    if "grpo" in options.stages and not trained(out / "grpo"):
        seodang(
            "grpo", "--model", begun, "--data", out / "grpo.jsonl", "--reward", "exact_answer", "--num_generations", 8, "--per_device_train_batch_size", 16,
            "--gradient_accumulation_steps", 4, "--max_completion_length", options.answer, "--temperature", options.grpo_temperature, "--beta", 0.0, "--learning_rate", options.grpo_learning_rate,
            "--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", 2, "--max_grad_norm", 0.2, "--max_steps", options.grpo_steps, "--logging_steps", 1,
            "--save_steps", options.grpo_save_steps, "--output_dir", out / "grpo", *training,
        )  # fmt: skip
    if "eval" in options.stages:
        models = [f"before={options.model}", *(f"{name}={out / name}" for name in ("sft", "grpo") if trained(out / name))]
        seodang(
            "eval", *models, "--data", out / "heldout.jsonl", "--metrics", "exact", "--reward", "exact_answer", "--reward", f"{Path(__file__)}:last_number",
            "--max_new_tokens", 2 * options.answer, "--temperature", 0, "--output", out / "eval.json", "--resume", "true", "--train_data", out / "sft.jsonl", *how,
        )  # fmt: skip


if __name__ == "__main__":
    main()
