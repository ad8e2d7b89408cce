"""Supervised fine-tuning: CPU time, wall time and peak memory of a step, ours against trl's SFTTrainer on the same rows.

python benchmarks/sft_vs_trl.py                          every case, steps of the two in turn, medians of the ratios
python benchmarks/sft_vs_trl.py --cases a-float32 --steps 7
python benchmarks/sft_vs_trl.py --memory                 peak memory, a process each

Cases: (a) 8 rows of 256 tokens, 75% masked; (b) 8 rows of 32 to 512 tokens, 75% masked. `float32` sets both to float32 without
gradient checkpointing; `default` leaves trl its own settings (bfloat16 and gradient checkpointing) and ours the dtype that it chooses.
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
from trl import SFTConfig, SFTTrainer

from seodang.infer.checkpoint import load
from seodang.train.sft import sft_trainer

EQUAL = [256] * 8
MIXED = [32, 64, 96, 160, 224, 320, 448, 512]
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
CASES = {  # lengths, ours: dtype and adapter, trl: settings
    "a-float32": (EQUAL, "float32", False, {"bf16": False, "gradient_checkpointing": False}),
    "a-default": (EQUAL, "auto", False, {}),
    "b-float32": (MIXED, "float32", False, {"bf16": False, "gradient_checkpointing": False}),
    "b-default": (MIXED, "auto", False, {}),
    "b-packing": (MIXED, "float32", False, {"bf16": False, "gradient_checkpointing": False, "packing": True, "max_length": 512}),
    "lora-float32": (EQUAL[:4], "float32", True, {"bf16": False, "gradient_checkpointing": False}),
    "lora-default": (EQUAL[:4], "auto", True, {}),
}


def make_rows(lengths: list[int]) -> list[dict]:
    """Random rows, the last quarter of each an answer."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in lengths:
        ids = torch.randint(100, 40_000, (length,), generator=generator).tolist()
        masked = length - length // 4
        rows.append({"input_ids": ids, "labels": [-100] * masked + ids[masked:]})
    return rows


class Ours:
    def __init__(self, lengths: list[int], dtype: str, lora: bool, trl: dict, folder: str):
        model, tokenizer = load("default", device="cpu", dtype=dtype)
        args = TrainingArguments(folder, learning_rate=1e-5, per_device_train_batch_size=len(lengths), report_to="none", use_cpu=True)
        rows = make_rows(lengths)
        trainer = sft_trainer(model, tokenizer, rows, args, lora=LoraConfig(**LORA) if lora else None)
        self.start(trainer, rows)

    def start(self, trainer, rows) -> None:
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


class Trl(Ours):
    def __init__(self, lengths: list[int], dtype: str, lora: bool, trl: dict, folder: str):
        model, tokenizer = load("default", device="cpu", dtype="float32")
        settings = {"max_length": None, **trl}
        args = SFTConfig(
            folder, learning_rate=1e-5, per_device_train_batch_size=len(lengths), report_to="none", use_cpu=True, **settings
        )
        trainer = SFTTrainer(
            model, args, train_dataset=Dataset.from_list(make_rows(lengths)), processing_class=tokenizer,
            peft_config=LoraConfig(**LORA) if lora else None,
        )  # fmt: skip
        self.start(trainer, [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])


def gemm_speed(dtype: torch.dtype) -> float:
    """What torch's own product of a step's typical size reaches, in GFLOP per CPU second."""
    a, b = torch.randn(2048, 576, dtype=dtype), torch.randn(1536, 576, dtype=dtype)
    rates = []
    for _ in range(9):
        start = time.process_time()
        for _ in range(10):
            torch.nn.functional.linear(a, b)
        rates.append(10 * 2 * 2048 * 576 * 1536 / (time.process_time() - start) / 1e9)
    return statistics.median(rates)


def step_flops(trainer, lengths: list[int]) -> float:
    """Multiply-adds times two of one step of ours: 6 a weight and token, the head's at label positions alone."""
    model = trainer.model
    head = model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in model.parameters() if p.dim() == 2) - head
    return 6 * (body * sum(lengths) + head * sum(n // 4 for n in lengths))


def compare(name: str, steps: int) -> dict:
    """Alternate steps of the two in this process; the median of the ratios trl / ours, and the difference of the first losses."""
    lengths, dtype, lora, _ = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        pair = [kind(*CASES[name], folder) for kind in (Ours, Trl)]
        first = [side.step() for side in pair]
        cpu, wall, ours_cpu = [], [], []
        for _ in range(steps):
            seconds = []
            for side in pair:
                start, start_cpu = time.perf_counter(), time.process_time()
                side.step()
                seconds.append((time.perf_counter() - start, time.process_time() - start_cpu))
            (ours_wall, ours), (trl_wall, trl) = seconds
            wall.append(trl_wall / ours_wall)
            cpu.append(trl / ours)
            ours_cpu.append(ours)
        weights = next(pair[0].trainer.model.parameters()).dtype
        result = {"case": name, "cpu_ratio": statistics.median(cpu), "wall_ratio": statistics.median(wall), "cpu_range": [min(cpu), max(cpu)],
                  "ours_cpu_s": statistics.median(ours_cpu), "losses": first, "loss_difference": abs(first[0] - first[1]), "ours_dtype": str(weights)}  # fmt: skip
        if not lora:
            speed = step_flops(pair[0].trainer, lengths) / statistics.median(ours_cpu) / 1e9
            result["share_of_gemm_speed"] = speed / gemm_speed(weights)
        return result


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
