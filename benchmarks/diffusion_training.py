"""Training by masked diffusion: a step of ours beside a plain one, with padded rows and the head at every position, of the same masks.

python benchmarks/diffusion_training.py                            every case, steps of the two in turn, medians of the ratios
python benchmarks/diffusion_training.py --cases 128 mixed --steps 5

The default model, bidirectional, in float32; rows of so many tokens, of which the last `--answer` are the answer, random ids. `mixed`: four rows of 32 to 512 tokens.
Theirs is the step that LLaDA's guidelines show: answers are filled up with end-of-text, which is learned like any token, to the length of the longest row (`filled`), all
positions go through the model and its head, and what is masked is learned, weighted by 1/t; AdamW, clipped at 1. Ours is the trainer of `seodang diffusion`. `same` has theirs learn just what ours does, padding unseen,
so that the losses of both must be equal, step by step; `filled` is as it is used, of the same rows, with other losses.

Both sides are in memory at once, with their optimizers: about 6 GB. A JSON line a case tells the medians of theirs over ours, wall and CPU, our seconds of CPU time, and the losses of the first step and of the last.
"""

import argparse
import json
import statistics
import tempfile
import warnings

import torch
from beside_trl import Side, alternate
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainingArguments

from seodang.data.labels import IGNORE_INDEX
from seodang.infer import load
from seodang.train.diffusion.adapt import adapt
from seodang.train.diffusion.canvas import Canvas
from seodang.train.diffusion.objective import DenoisingObjective
from seodang.train.diffusion.trainer import diffusion_trainer

CASES = {"32": [32] * 32, "128": [128] * 8, "512": [512] * 2, "mixed": [32, 96, 224, 512]}
RATE = 1e-5
MASK = "<|mask|>"


def made(lengths: list[int], answer: float, canvas: Canvas) -> list[dict]:
    """Rows of random ids, the last of each an answer that ends its turn, filled up as training does."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in lengths:
        ids = torch.randint(100, 40_000, (length,), generator=generator).tolist()
        ids[-1], prompt = canvas.ends[0], length - max(round(length * answer), 2)
        rows.append({"input_ids": ids, "labels": [IGNORE_INDEX] * prompt + ids[prompt:]})
    return list(canvas.rows(rows))


class Ours(Side):
    """The trainer of `seodang diffusion`."""

    def __init__(self, lengths: list[int], answer: float, folder: str):
        model, tokenizer = load("default", device="cpu", dtype="float32")
        adapt(model, tokenizer, mask_token=MASK, shift=0, attention="bidirectional", autoregressive=False, trained=True, may_grow=True)
        objective = DenoisingObjective(max_weight=0)
        self.canvas = Canvas.of(tokenizer, objective.canvas)
        args = TrainingArguments(folder, learning_rate=RATE, per_device_train_batch_size=len(lengths), report_to="none", use_cpu=True, weight_decay=0.0)
        rows = made(lengths, answer, self.canvas)
        self.start(diffusion_trainer(model, tokenizer, rows, args, objective, canvas=self.canvas), rows)


class Plain:
    """A model whose rows are padded, whose head runs everywhere, and that learns the masks of `ours`; `filled`, what fills its answers up to the longest row, too."""

    def __init__(self, ours: Ours, filled: bool):
        self.model, tokenizer = load("default", device="cpu", dtype="float32")
        self.says = adapt(self.model, tokenizer, mask_token=MASK, shift=0, attention="bidirectional", autoregressive=False, trained=True, may_grow=True)
        self.model.load_state_dict(ours.trainer.model.state_dict())
        self.model.train()
        self.ours, self.filled = ours, filled
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.0)

    def step(self) -> float:
        """One whole step, collation and the optimizer included; the loss."""
        ids, targets, weights, seen, count = self.batch()
        masked = targets != IGNORE_INDEX
        logits = self.model(input_ids=ids, attention_mask=seen, use_cache=False).logits
        loss = (cross_entropy(logits[masked], targets[masked], reduction="none") * weights[masked]).sum() / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """Ids, targets, weights and what is seen, [rows, longest] each, and how many tokens the loss is a mean over."""
        batch = self.ours.trainer.data_collator(self.ours.rows)
        lengths = batch["cu_seq_lens_q"].diff().tolist()
        parts = {name: batch[name][0].split(lengths) for name in ("input_ids", "targets", "weights", "labels")}
        count = int((batch["labels"] != IGNORE_INDEX).sum())
        if self.filled:
            filling, mask = self.ours.canvas.filling, self.says.mask_token_id
            for row, length in enumerate(lengths):
                weight = float(parts["weights"][row].max()) or 1.0  # 1/t, by which each of its tokens is masked
                hidden = torch.rand(max(lengths) - length) < 1 / weight
                more = {"input_ids": torch.where(hidden, mask, filling), "targets": torch.where(hidden, filling, IGNORE_INDEX), "weights": weight * hidden}
                for name, values in more.items():
                    parts[name] = [torch.cat([part, values]) if at == row else part for at, part in enumerate(parts[name])]
            count += sum(max(lengths) - length for length in lengths)
            lengths = [max(lengths)] * len(lengths)
        seen = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        pad = {"input_ids": 0, "targets": IGNORE_INDEX, "weights": 0.0}
        ids, targets, weights = (pad_sequence(list(parts[name]), batch_first=True, padding_value=value) for name, value in pad.items())
        return ids, targets, weights, seen[:, None, None].expand(-1, 1, seen.shape[1], -1), count


def compare(lengths: list[int], answer: float, steps: int, filled: bool) -> dict:
    """Alternate steps of the two in this process."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(lengths, answer, folder)
        plain = Plain(ours, filled)
        figures, (mine, theirs) = alternate(ours, plain, steps)
    tokens = sum(len(row["input_ids"]) for row in ours.rows)
    return {**{name: figures[name] for name in ("wall_ratio", "cpu_ratio", "cpu_range", "ours_cpu_s")}, "ours_tokens_per_cpu_s": round(tokens / figures["ours_cpu_s"], 1),
            "first_losses": [mine[0], theirs[0]], "last_losses": [mine[-1], theirs[-1]], "largest_difference": max(abs(a - b) for a, b in zip(mine, theirs, strict=True))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--against", nargs="+", default=["same", "filled"], choices=["same", "filled"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--answer", type=float, default=0.25, help="share of a row that is the answer")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    found = []
    for case in args.cases:
        for against in args.against:
            found.append(compare(CASES[case], args.answer, args.steps, against == "filled"))
            print(json.dumps({"case": case, "against": against, "rows": CASES[case], "answer": args.answer, **found[-1]}), flush=True)
    print(json.dumps({"median_cpu_ratio": statistics.median(each["cpu_ratio"] for each in found)}), flush=True)


if __name__ == "__main__":
    main()
