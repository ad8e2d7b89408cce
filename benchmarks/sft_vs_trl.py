"""Supervised fine-tuning: CPU time, wall time and peak memory of a step, ours against trl's SFTTrainer on the same rows.

python benchmarks/sft_vs_trl.py                          every case, steps of the two in turn, medians of the ratios
python benchmarks/sft_vs_trl.py --cases a-float32 --steps 7
python benchmarks/sft_vs_trl.py --memory                 peak memory, a process each

Cases: (a) 8 rows of 256 tokens, 75% masked; (b) 8 rows of 32 to 512 tokens, 75% masked. `float32` sets both to float32 without
gradient checkpointing; `default` leaves trl its own settings (bfloat16 and gradient checkpointing) and ours the dtype that it chooses.
"""

import statistics
import tempfile
import time

import torch
from beside_trl import Side, alternate, run
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer

from seodang.infer import load
from seodang.train import sft_trainer

EQUAL = [256] * 8
MIXED = [32, 64, 96, 160, 224, 320, 448, 512]
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
CASES = {  # lengths, ours: dtype and adapter, trl: settings
    "a-float32": (EQUAL, "float32", False, {"bf16": False, "activation_checkpointing": False}),
    "a-default": (EQUAL, "auto", False, {}),
    "b-float32": (MIXED, "float32", False, {"bf16": False, "activation_checkpointing": False}),
    "b-default": (MIXED, "auto", False, {}),
    "b-packing": (MIXED, "float32", False, {"bf16": False, "activation_checkpointing": False, "packing": True, "max_length": 512}),
    "lora-float32": (EQUAL[:4], "float32", True, {"bf16": False, "activation_checkpointing": False}),
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


class Ours(Side):
    def __init__(self, lengths: list[int], dtype: str, lora: bool, trl: dict, folder: str):
        model, tokenizer = load("default", device="cpu", dtype=dtype)
        args = TrainingArguments(folder, learning_rate=1e-5, per_device_train_batch_size=len(lengths), report_to="none", use_cpu=True)
        rows = make_rows(lengths)
        trainer = sft_trainer(model, tokenizer, rows, args, lora=LoraConfig(**LORA) if lora else None)
        self.start(trainer, rows)


class Trl(Side):
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
    """Alternate steps of the two in this process; the ratios trl / ours, and the difference of the first losses."""
    lengths, dtype, lora, _ = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        ours, trl = (kind(*CASES[name], folder) for kind in (Ours, Trl))
        figures, losses = alternate(ours, trl, steps)
        first = [seen[0] for seen in losses]
        weights = next(ours.trainer.model.parameters()).dtype
        result = {"case": name, **figures, "losses": first, "loss_difference": abs(first[0] - first[1]), "ours_dtype": str(weights)}
        if not lora:
            result["share_of_gemm_speed"] = step_flops(ours.trainer, lengths) / figures["ours_cpu_s"] / 1e9 / gemm_speed(weights)
        return result


def build(case: str, side: str, folder: str):
    return {"ours": Ours, "trl": Trl}[side](*CASES[case], folder).step


if __name__ == "__main__":
    run(__doc__, __file__, CASES, compare, build)
