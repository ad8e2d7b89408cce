"""A classifier on texts of mixed length: without padding beside batches padded to their longest, predictions and steps of training.

python benchmarks/classify_vs_padded.py [--archive vaderSentiment-0.5.zip]

The default encoder with a head of two classes, in float32, on 512 snippets of reviews in the order of their draw (3 to some hundred tokens). Padded is
plain transformers: `tokenizer(batch, padding=True)`, 32 texts a batch for predictions and 16 a step of forward and backward pass, in turn with ours. Times are CPU
seconds of the process, the least of three runs, so that other work on the machine matters little. Prints a JSON line a case.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from seodang.data.classification.encoding import TextEncoder
from seodang.data.classification.rated_snippets import clear_snippets, rated_snippets
from seodang.infer import Classifier, load
from seodang.infer.encoders.unpadded import unpadding
from seodang.train.stages.classification import TextCollator

TEXTS, BATCH, STEP, RUNS = 512, 32, 16, 3


def least(runs: int, *work: Callable[[], object]) -> list[float]:
    """The least CPU seconds of each piece of work, done in turn."""
    found = [[] for _ in work]
    for _ in range(runs):
        for times, each in zip(found, work, strict=True):
            began = time.process_time()
            each()
            times.append(time.process_time() - began)
    return [min(times) for times in found]


def predictions(model, tokenizer, texts: list[str]) -> dict:
    """All texts, tokenizing included."""
    classifier, said = Classifier(model, tokenizer), {}

    @torch.inference_mode()
    def padded() -> None:
        parts = [model(**tokenizer(texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt")).logits for start in range(0, len(texts), BATCH)]
        said["padded"] = torch.cat(parts)

    def ours() -> None:
        said["ours"] = classifier.logits(classifier.encode(texts))

    theirs, mine = least(RUNS, padded, ours)
    return {"case": "predictions", "texts": len(texts), "padded_s": theirs, "ours_s": mine, "speedup": theirs / mine, **apart(said["padded"], said["ours"])}


def steps(model, tokenizer, texts: list[str]) -> dict:
    """Forward and backward passes over a quarter of the texts, dropout off so that both can be compared."""
    texts = texts[: len(texts) // 4]
    rows = [{"input_ids": each.input_ids, "token_type_ids": each.token_type_ids, "label": place % 2} for place, each in enumerate(TextEncoder(tokenizer, 512)(texts))]
    batches = [TextCollator(tokenizer.pad_token_id, "single_label_classification")(rows[start : start + STEP]) for start in range(0, len(rows), STEP)]
    gradients = {}

    def train(name: str) -> None:
        model.zero_grad()
        for batch in batches:
            given = dict(batch)
            labels = given.pop("labels")
            F.cross_entropy(model(**given).logits, labels).backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def ours() -> None:
        with unpadding(model):
            train("ours")

    theirs, mine = least(RUNS, lambda: train("padded"), ours)
    return {"case": "training", "steps": len(batches), "padded_s": theirs, "ours_s": mine, "speedup": theirs / mine, **apart(gradients["padded"], gradients["ours"])}


def apart(theirs: Tensor, ours: Tensor) -> dict[str, float]:
    """How far two results lie apart, as a share of the greatest."""
    return {"apart": ((theirs - ours).abs().max() / theirs.abs().max()).item()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", default=None, help="vaderSentiment-0.5.zip; by default the one that `make setup` has fetched")
    texts = [snippet for snippet, _ in clear_snippets(rated_snippets(parser.parse_args().archive), TEXTS, seed=0)]
    model, tokenizer = load("default-encoder", device="cpu", dtype="float32", model_class=AutoModelForSequenceClassification, num_labels=2)
    lengths = [len(each.input_ids) for each in TextEncoder(tokenizer)(texts)]
    print(json.dumps({"threads": torch.get_num_threads(), "tokens": sum(lengths), "longest": max(lengths)}), flush=True)
    for case in (predictions, steps):
        print(json.dumps({name: round(value, 6) if isinstance(value, float) else value for name, value in case(model, tokenizer, texts).items()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
