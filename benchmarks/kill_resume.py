"""Kill a training run at random moments, inside saves too, resume it each time, and compare it with the uninterrupted run.

python benchmarks/kill_resume.py --kills 100

Prints one JSON line: how many kills hit, how many of them while a checkpoint was being written, how many resumes failed ("lost"), and
whether the losses and the final weights equal those of a run that was never killed, bit for bit.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: children are forked

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainingArguments

from seodang.data import read_json_lines
from seodang.train import find_resume, sft


def train(folder: Path, steps: int) -> None:
    """Train a random model for so many steps, saving at each; resume where a checkpoint stands."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    model = AutoModelForCausalLM.from_config(config)
    words = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
    generator = random.Random(0)
    rows = [[generator.randrange(2, 512) for _ in range(generator.randrange(8, 24))] for _ in range(64)]
    rows = [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in rows]
    args = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, save_steps=1, save_total_limit=2, logging_steps=1,
        use_cpu=True, report_to="none", disable_tqdm=True, learning_rate=1e-3,
    )  # fmt: skip
    resume = find_resume(folder, "auto")
    trainer = sft(model, tokenizer, rows, args, resume=None if resume is None else str(resume))
    trainer.save_final()


def start(folder: Path, steps: int) -> int:
    """Train in a child of this process, which has imported everything and computed nothing; its process id."""
    shutil.rmtree(folder / ".saving", ignore_errors=True)  # left by the kill before: it must not be counted again
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        output = os.open(folder.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        train(folder, steps)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int | None:
    """The exit code of a child that has ended, None while it runs."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def killed(child: int, folder: Path, chance: random.Random) -> tuple[bool, bool, int]:
    """Kill the child at a random moment after it began to save; whether that hit, whether inside a save, and its exit code."""
    newest = max((_time_of(p) for p in folder.glob("checkpoint-*")), default=0)
    deadline = None
    while (code := ended(child)) is None:
        saving = (folder / ".saving").exists()
        if deadline is None and (saving or any(_time_of(p) > newest for p in folder.glob("checkpoint-*"))):
            deadline = time.monotonic() + chance.uniform(0, 0.8)
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True, saving, -signal.SIGKILL
        time.sleep(0.001)
    return False, False, code


def _time_of(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # rotated away meanwhile
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=40, help="of each run")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    base = options.folder or Path(tempfile.mkdtemp())
    chance = random.Random(options.seed)
    (base / "whole").mkdir(parents=True)
    if os.waitpid(start(base / "whole", options.steps), 0)[1]:
        raise SystemExit((base / "output.txt").read_text())
    kills = in_save = lost = runs = 0
    equal = True
    while kills < options.kills:
        folder = base / f"run{runs}"
        folder.mkdir()
        runs += 1
        hit = True
        while hit:
            if kills < options.kills:
                hit, inside, code = killed(start(folder, options.steps), folder, chance)
                kills, in_save = kills + hit, in_save + inside
            else:
                hit, code = False, os.waitstatus_to_exitcode(os.waitpid(start(folder, options.steps), 0)[1])
        lost += code != 0
        equal &= code == 0 and same(base / "whole", folder)
    print(json.dumps({"kills": kills, "while_saving": in_save, "runs": runs, "lost": lost, "equal": equal}))
    return 0 if not lost and equal else 1


def same(one: Path, other: Path) -> bool:
    """Whether two runs logged the same losses and saved the same weights."""
    losses = [
        [(e["step"], e["loss"]) for e in read_json_lines(run / "log.jsonl") if "loss" in e] for run in (one, other)
    ]
    weights = [(run / "model.safetensors").read_bytes() for run in (one, other)]
    return losses[0] == losses[1] and weights[0] == weights[1]


if __name__ == "__main__":
    sys.exit(main())
