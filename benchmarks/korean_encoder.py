"""Korean film reviews: an encoder pretrained on them by masked language modelling and then taught good from bad, beside two that know less.

python benchmarks/korean_encoder.py --data nsmc.jsonl --output_dir runs/korean-encoder

The data are JSON Lines of {text, label} (Naver sentiment movie corpus, CC0). A tenth is held out; of the rest a tokenizer is learned and a small ModernBERT is
pretrained by `seodang pretrain`, or an encoder that is there already is taken (--encoder). With 500, 2,000 and all labels, each with three seeds (of which labels, the head, the order), `seodang classify`
teaches this encoder, and the same one with random weights; a logistic regression on character n-grams is fitted to the same labels. Prints a JSON line for each run, and a
table of means with the standard deviation over the seeds. CPU seconds are the process's.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from seodang.recipes import classify, pretrain
from seodang.train.run.callbacks import read_log

Record = dict[str, str | int]
LABELS, SEEDS = (500, 2000, 0), (0, 1, 2)  # 0: all of them
MODELS = ("pretrained", "random", "regression")
GRAMS, BUCKETS, STRENGTHS = (1, 4), 1 << 18, (0.3, 1.0, 3.0)
COMMON = {"report_to": "none", "disable_tqdm": "true", "save_strategy": "no", "device": "cpu"}
PRETRAINING = {
    "architecture": "modernbert", "kind": "wordpiece", "vocab_size": 8000, "hidden_size": 192, "layers": 4, "heads": 4, "max_length": 256, "mlm_probability": 0.2,
    "per_device_train_batch_size": 12, "learning_rate": 1.5e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "logging_steps": 100,
}  # fmt: skip
TEACHING = {
    "learning_rate": 5e-4, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "per_device_train_batch_size": 32, "logging_steps": 20, "eval_strategy": "epoch",
    "per_device_eval_batch_size": 256,
}  # fmt: skip
EPOCHS = {500: 10, 2000: 5, 0: 2}


def argv_of(options: dict) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def split(path: str) -> tuple[list[Record], list[Record]]:
    """The different reviews with something in them, in a random order: those to train on, and a tenth held out."""
    with open(path, encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    records = list({record["text"]: record for record in records if record["text"].strip()}.values())
    random.Random(0).shuffle(records)
    return records[len(records) // 10 :], records[: len(records) // 10]


def write(path: Path, records: Iterable[Record]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def begin_again(folder: Path, place: Path) -> Path:
    """The same architecture and tokenizer with random weights."""
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(place)
    AutoTokenizer.from_pretrained(folder).save_pretrained(place)
    return place


def taught(encoder: Path, train: Path, held: Path, out: Path, labels: int, seed: int) -> float:
    """The held-out accuracy of an encoder behind `seodang classify`."""
    options = {"model": encoder, "data": train, "eval_data": held, "output_dir": out, "num_train_epochs": EPOCHS.get(labels, 10), "seed": seed, "resume": "never"}
    if code := classify.main(argv_of(options | TEACHING | COMMON)):
        raise SystemExit(code)
    return [entry["eval_accuracy"] for entry in read_log(out / "log.jsonl") if "eval_accuracy" in entry][-1]


class CharacterGrams:
    """Texts as hashed counts of their n-grams of characters, log-scaled, weighed by how rare they are, of length 1 (tf-idf)."""

    def __init__(self, texts: Sequence[str]):
        seen = Counter(bucket for text in texts for bucket in set(self.buckets(text)))
        counts = torch.zeros(BUCKETS, dtype=torch.float64)
        counts[list(seen)] = torch.tensor(list(seen.values()), dtype=torch.float64)
        self.rarity = ((1 + len(texts)) / (1 + counts)).log() + 1

    @staticmethod
    def buckets(text: str) -> list[int]:
        least, most = GRAMS
        return [hash_of(text[start : start + n]) for n in range(least, most + 1) for start in range(len(text) - n + 1)]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[texts, BUCKETS], sparse."""
        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            counts = Counter(self.buckets(text))
            found = (torch.tensor(list(counts.values()), dtype=torch.float64).log() + 1) * self.rarity[list(counts)]
            rows += [row] * len(counts)
            columns += counts
            values.append(F.normalize(found, dim=0))
        places = torch.tensor([rows, columns])
        return torch.sparse_coo_tensor(places, torch.cat(values), (len(texts), BUCKETS), check_invariants=True).coalesce()


def hash_of(gram: str) -> int:
    """The same in every process, as Python's own hash is not (FNV-1a)."""
    value = 0x811C9DC5
    for byte in gram.encode("utf-8", "surrogatepass"):
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value % BUCKETS


def fitted(features: Tensor, labels: Tensor, strength: float) -> Tensor:
    """Weights of a logistic regression with the penalty strength / 2 * |w|^2: [BUCKETS + 1]."""
    weights = torch.zeros(BUCKETS + 1, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logits = torch.sparse.mm(features, weights[:-1, None])[:, 0] + weights[-1]
        value = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") + strength / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weights.detach()


def by_regression(train: list[Record], held: list[Record]) -> float:
    """The held-out accuracy of the regression; its penalty does best on a fifth of the training records."""

    def accuracy(some: list[Record], others: list[Record], strength: float) -> float:
        grams = CharacterGrams([record["text"] for record in some])
        weights = fitted(grams([record["text"] for record in some]), torch.tensor([float(record["label"]) for record in some], dtype=torch.float64), strength)
        logits = torch.sparse.mm(grams([record["text"] for record in others]), weights[:-1, None])[:, 0] + weights[-1]
        return ((logits > 0) == torch.tensor([record["label"] == 1 for record in others])).double().mean().item()

    border = len(train) * 4 // 5
    strength = max(STRENGTHS, key=lambda each: accuracy(train[:border], train[border:], each))
    return accuracy(train, held, strength)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/korean-encoder"))
    parser.add_argument("--steps", type=int, default=3200, help="of pretraining")
    parser.add_argument("--encoder", type=Path, help="one pretrained by this script before, or by `seodang pretrain` on its train.jsonl, in place of a new one")
    parser.add_argument("--labels", type=int, nargs="+", default=LABELS, help="how many labels, 0 for all")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--models", choices=MODELS, nargs="+", default=MODELS)
    parser.add_argument("--pretraining", nargs="*", default=(), help="further options of `seodang pretrain`, without their hyphens, as hidden_size=192")
    options = parser.parse_args()
    train, held = split(options.data)
    out, held_file = options.output_dir, write(options.output_dir / "held.jsonl", held)
    print(f"{len(train):,} reviews to train on, {len(held):,} held out", flush=True)
    encoder = options.encoder or out / "pretrained"
    if options.encoder is None:
        began = time.process_time()
        given = {"data": write(out / "train.jsonl", train), "output_dir": encoder, "max_steps": options.steps}
        further = dict(word.split("=", 1) for word in options.pretraining)
        if code := pretrain.main(argv_of(given | PRETRAINING | COMMON | further)):
            return code
        print(json.dumps({"pretraining_cpu_s": round(time.process_time() - began)}), flush=True)
    encoders = {"pretrained": encoder, "random": begin_again(encoder, out / "random")}
    found: dict[tuple[str, int], list[float]] = {}
    for labels in options.labels:
        for seed in options.seeds:
            some = random.Random(seed).sample(train, labels or len(train))
            file = write(out / f"labels-{labels or 'all'}-{seed}.jsonl", some)
            for name in options.models:
                began = time.process_time()
                accuracy = by_regression(some, held) if name == "regression" else taught(encoders[name], file, held_file, out / f"{name}-{labels}-{seed}", labels, seed)
                found.setdefault((name, labels), []).append(accuracy)
                line = {"model": name, "labels": len(some), "seed": seed, "accuracy": round(accuracy, 4), "cpu_s": round(time.process_time() - began)}
                print(json.dumps(line), flush=True)
    for (name, labels), values in found.items():
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        print(f"{labels or len(train):>7,} labels  {name:<12}{fmean(values):.4f}{spread}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
