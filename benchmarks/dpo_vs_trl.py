"""Direct preference optimisation: CPU time, wall time and peak memory of a step, ours on shared prompts against trl's DPOTrainer on the same rows.

python benchmarks/dpo_vs_trl.py                          every case, steps of the two in turn, medians of the ratios
python benchmarks/dpo_vs_trl.py --cases before --steps 7
python benchmarks/dpo_vs_trl.py --memory                 peak memory, a process each

Two pairs a step, prompts of 192 tokens and answers of 64: the prompt is 75% of each row. `step` scores with the reference at every step,
`before` has its log-probabilities computed once by both, outside of what is timed. Both in float32 without gradient checkpointing; the `ragged`
case has answers of 16 to 112 tokens.
"""

import tempfile

import torch
from beside_trl import Side, alternate, run
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainingArguments
from trl import DPOConfig, DPOTrainer

from seodang.infer import load
from seodang.train import dpo_trainer

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


class Ours(Side):
    def __init__(self, lengths, when: str, lora: bool, folder: str):
        model, tokenizer = load("default", device="cpu", dtype="float32")
        args = TrainingArguments(folder, learning_rate=1e-6, per_device_train_batch_size=len(lengths), report_to="none", use_cpu=True)
        adapter = LoraConfig(**LORA) if lora else None
        trainer = dpo_trainer(model, tokenizer, make_rows(lengths), args, lora=adapter, reference_time=when)
        trainer.score_before()
        self.start(trainer, trainer.train_dataset)


class Trl(Side):
    def __init__(self, lengths, when: str, lora: bool, folder: str):
        model, tokenizer = load("default", device="cpu", dtype="float32")
        args = DPOConfig(
            folder, learning_rate=1e-6, per_device_train_batch_size=len(lengths), report_to="none", use_cpu=True, bf16=False,
            activation_checkpointing=False, max_length=None, precompute_ref_log_probs=when == "before",
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
    """Alternate steps of the two in this process; the ratios trl / ours, and the largest difference of their losses."""
    with tempfile.TemporaryDirectory() as folder:
        ours, trl = Ours(*CASES[name], folder), Trl(*CASES[name], folder)
        adapter = {name: p.data for name, p in ours.trainer.model.named_parameters() if "lora_" in name}
        trl.trainer.model.load_state_dict(adapter, strict=False)  # both begin with the same
        figures, losses = alternate(ours, trl, steps)
        difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
        return {"case": name, **figures, "losses": [seen[-1] for seen in losses], "loss_difference": difference}


def build(case: str, side: str, folder: str):
    return {"ours": Ours, "trl": Trl}[side](*CASES[case], folder).step


if __name__ == "__main__":
    run(__doc__, __file__, CASES, compare, build)
