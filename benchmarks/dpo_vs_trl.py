"""Direct preference optimisation: CPU time, wall time and peak memory of a step, ours on shared prompts against trl's DPOTrainer on the same rows.

python benchmarks/dpo_vs_trl.py                          every case, steps of the two in turn, medians of the ratios
python benchmarks/dpo_vs_trl.py --cases before --steps 7
python benchmarks/dpo_vs_trl.py --memory                 peak memory, a process each

Two pairs a step, prompts of 192 tokens and answers of 64: the prompt is 75% of each row. `step` scores with the reference at every step,
`before` has its log-probabilities computed once by both, outside of what is timed. Both in float32 without gradient checkpointing; the `ragged`
case has answers of 16 to 112 tokens.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainingArguments
from trl import DPOConfig, DPOTrainer

from seodang.infer.checkpoint import load
from seodang.train.dpo import dpo_trainer

LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
EQUAL = [(192, 64, 64)] * 2
RAGGED = [(192, 112, 16), (192, 32, 96)]
CASES = {  # lengths of prompt, chosen and rejected; when the reference scores; adapter
    "before": (EQUAL, "before", False),
    "step": (EQUAL, "step", False),
    "lora-before": (EQUAL, "before", True),
    "lora-step": (EQUAL, "step", True),
    "ragged-before": (RAGGED, "before", False),
}


def make_rows(lengths: list[tuple[int, int, int]]) -> list[dict]:
    """Random rows of ids."""
    generator = torch.Generator().manual_seed(0)
    ids = lambda n: torch.randint(100, 40_000, (n,), generator=generator).tolist()
    return [{"prompt_ids": ids(p), "branches": [ids(c), ids(r)], "ranks": [0, 1]} for p, c, r in lengths]


class Side:
    """A trainer whose optimizer is ready, and one whole step of it."""

    def start(self, trainer, rows: list[dict]) -> None:
        self.trainer, self.rows = trainer, rows
        trainer.create_optimizer()
        trainer.model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)

    def step(self) -> float:
        """One whole training step as the Trainer does it, collation and the optimizer included; the loss."""
        trainer = self.trainer
        trainer.current_gradient_accumulation_steps = 1
        batch, count = trainer.get_batch_samples(iter([trainer.data_collator(self.rows)]), 1, torch.device("cpu"))
        loss = trainer.training_step(trainer.model, batch[0], count)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return loss.item()


class Ours(Side):
    def __init__(self, lengths, when: str, lora: bool, folder: str):
        model, tokenizer = load("default", device="cpu", dtype="float32")
        args = TrainingArguments(folder, learning_rate=1e-6, per_device_train_batch_size=len(lengths), report_to="none", use_cpu=True)
        adapter = LoraConfig(**LORA) if lora else None
        trainer = dpo_trainer(model, tokenizer, make_rows(lengths), args, lora=adapter, reference_time=when)
        self.start(trainer, trainer.train_dataset)


class Trl(Side):
    def __init__(self, lengths, when: str, lora: bool, folder: str):
        model, tokenizer = load("default", device="cpu", dtype="float32")
        args = DPOConfig(
            folder, learning_rate=1e-6, per_device_train_batch_size=len(lengths), report_to="none", use_cpu=True, bf16=False,
            gradient_checkpointing=False, max_length=None, precompute_ref_log_probs=when == "before",
        )  # fmt: skip
        rows = [{"prompt": [], "chosen": [], "rejected": []} for _ in lengths]
        given = None if lora or when == "before" else load("default", device="cpu", dtype="float32")[0]
        trainer = IdsTrainer(make_rows(lengths))(
            model, given, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=LoraConfig(**LORA) if lora else None
        )
        self.start(trainer, [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])


def IdsTrainer(rows: list[dict]) -> type[DPOTrainer]:
    """trl's trainer on rows of ids instead of texts; nothing else is changed."""

    class OnIds(DPOTrainer):
        def _prepare_dataset(self, *args, **kwargs) -> Dataset:
            return Dataset.from_list([{"prompt_ids": r["prompt_ids"], "chosen_ids": r["branches"][0], "rejected_ids": r["branches"][1]} for r in rows])

    return OnIds


def compare(name: str, steps: int) -> dict:
    """Alternate steps of the two in this process; the median of the ratios trl / ours, and the difference of the losses."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        ours = Ours(*CASES[name], folder)
        torch.manual_seed(0)
        pair = [ours, Trl(*CASES[name], folder)]
        adapter = {name: p.data for name, p in ours.trainer.model.named_parameters() if "lora_" in name}
        pair[1].trainer.model.load_state_dict(adapter, strict=False)  # both begin with the same
        losses = [[side.step()] for side in pair]
        cpu, wall, ours_cpu = [], [], []
        for _ in range(steps):
            seconds = []
            for side, seen in zip(pair, losses, strict=True):
                start, start_cpu = time.perf_counter(), time.process_time()
                seen.append(side.step())
                seconds.append((time.perf_counter() - start, time.process_time() - start_cpu))
            (ours_wall, ours_seconds), (trl_wall, trl_seconds) = seconds
            wall.append(trl_wall / ours_wall)
            cpu.append(trl_seconds / ours_seconds)
            ours_cpu.append(ours_seconds)
        difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
        return {"case": name, "cpu_ratio": statistics.median(cpu), "wall_ratio": statistics.median(wall), "cpu_range": [min(cpu), max(cpu)],
                "ours_cpu_s": statistics.median(ours_cpu), "losses": [seen[-1] for seen in losses], "loss_difference": difference}  # fmt: skip


def peak(name: str, side: str) -> dict:
    """Peak resident memory of a process that takes three steps."""
    with tempfile.TemporaryDirectory() as folder:
        one = {"ours": Ours, "trl": Trl}[side](*CASES[name], folder)
        for _ in range(3):
            one.step()
    return {"case": name, "side": side, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one", choices=["ours", "trl"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.one:
        print(json.dumps(peak(options.cases[0], options.one)))
        return
    for name in options.cases:
        if options.memory:
            command = [sys.executable, str(Path(__file__)), "--cases", name, "--one"]
            runs = [subprocess.run([*command, side], capture_output=True, text=True, check=True) for side in ("ours", "trl")]
            ours, trl = (json.loads(run.stdout.splitlines()[-1])["peak_gib"] for run in runs)
            print(f"{name}: peak memory ours {ours:.2f} GiB, trl {trl:.2f} GiB, ratio {ours / trl:.2f}", flush=True)
        else:
            print(json.dumps(compare(name, options.steps)), flush=True)


if __name__ == "__main__":
    main()
