"""Encoders over rows of mixed length: ours beside what others do, in turn in one process tree, with the same threads.

python benchmarks/encoders.py embed --data snippets.jsonl [--column text] [--peer ENVIRONMENT/bin/python] [--rows 512] [--rounds 7] [--threads 1]
python benchmarks/encoders.py classify --data snippets.jsonl             (predictions; classify-train: steps of training)

"transformers" is plain padded batches of 32 in the order of the file, "sentence-transformers" its `encode`, which sorts by length, in an environment of its
own that `--peer` names (sentence-transformers 6.2, with torch and transformers as here). All compute in float32, and their results must be equal. Told are the
medians of the ratios of the rounds, in time and in CPU time, which other work on the machine does not stretch.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BATCH = 32  # of the others
STEP = 16  # texts of a step of training
Side = Callable[[str, list[str]], Callable[[], Any]]  # of a model's folder and texts, what computes an array of numbers, a row a text

# Ours, and plain transformers


def our_vectors(model: str, texts: list[str]) -> Callable[[], Any]:
    from seodang.infer import SentenceEncoder

    encoder = SentenceEncoder.open(model, dtype="float32", device="cpu")
    return lambda: encoder.embed(texts).numpy()


def padded_vectors(model: str, texts: list[str]) -> Callable[[], Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from seodang.infer import SentenceEncoder

    readout, length = (encoder := SentenceEncoder.open(model, dtype="float32", device="cpu")).readout, encoder.max_length
    tokenizer, trunk = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model, dtype=torch.float32).eval()

    @torch.no_grad()
    def run() -> Any:
        found = []
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(texts[start : start + BATCH], padding=True, truncation=True, max_length=length, return_tensors="pt")
            found.append(readout(trunk(**batch).last_hidden_state, batch["attention_mask"]))
        return torch.cat(found).numpy()

    return run


def sentence_transformers(model: str, texts: list[str]) -> Callable[[], Any]:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": "float32"})
    return lambda: encoder.encode(texts, batch_size=BATCH, show_progress_bar=False)


# A classifier


def classifier_of(model: str) -> tuple[Any, Any]:
    """An encoder with a head of two classes, the same for each side."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from seodang.infer import load

    torch.manual_seed(0)
    return load(model, device="cpu", dtype="float32", model_class=AutoModelForSequenceClassification, num_labels=2)


def our_classes(model: str, texts: list[str]) -> Callable[[], Any]:
    from seodang.infer import Classifier

    classifier = Classifier(*classifier_of(model))
    return lambda: classifier.logits(classifier.encode(texts)).numpy()


def padded_classes(model: str, texts: list[str]) -> Callable[[], Any]:
    import torch

    classifier, tokenizer = classifier_of(model)

    @torch.inference_mode()
    def run() -> Any:
        starts = range(0, len(texts), BATCH)
        return torch.cat([classifier(**tokenizer(texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt")).logits for start in starts]).numpy()

    return run


def gradients(model: str, texts: list[str], unpadded: bool) -> Callable[[], Any]:
    """Forward and backward passes of `STEP` texts each, dropout off so that both sides can be compared: the gradient of the pooler, [hidden, hidden]."""
    from torch.nn import functional as F

    from seodang.data.classification.encoding import TextEncoder
    from seodang.infer.encoders.unpadded import unpad
    from seodang.train.stages.classification import TextCollator

    classifier, tokenizer = classifier_of(model)
    encoded = TextEncoder(tokenizer, 512)(texts)
    rows = [{"input_ids": each.input_ids, "token_type_ids": each.token_type_ids, "label": place % 2} for place, each in enumerate(encoded)]
    collate = TextCollator(tokenizer.pad_token_id, "single_label_classification")
    batches = [collate(rows[start : start + STEP]) for start in range(0, len(rows), STEP)]
    if unpadded and not unpad(classifier):
        raise SystemExit("this model cannot be computed without padding")

    def run() -> Any:
        classifier.zero_grad()
        for batch in batches:
            given = dict(batch)
            labels = given.pop("labels")
            (F.cross_entropy(classifier(**given).logits, labels) / len(batches)).backward()
        return classifier.base_model.pooler.dense.weight.grad.numpy().copy()

    return run


def our_gradients(model: str, texts: list[str]) -> Callable[[], Any]:
    return gradients(model, texts, True)


def padded_gradients(model: str, texts: list[str]) -> Callable[[], Any]:
    return gradients(model, texts, False)


PEER = "sentence-transformers"
CASES: dict[str, dict[str, Side]] = {
    "embed": {"ours": our_vectors, "transformers": padded_vectors, PEER: sentence_transformers},
    "classify": {"ours": our_classes, "transformers": padded_classes},
    "classify-train": {"ours": our_gradients, "transformers": padded_gradients},
}
TARGETS = {("embed", "transformers"): 1.5, ("embed", PEER): 1.3, ("classify", "transformers"): 1.5, ("classify-train", "transformers"): 1.5}
DEFAULTS = dict.fromkeys(CASES, "default-encoder")


class Worker:
    """A side in a process of its own, which computes when it is asked to."""

    def __init__(self, python: str, case: str, side: str, model: str, texts: str, threads: int):
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": str(threads > 1).lower()}
        command = [python, __file__, case, "--worker", side, "--model", model, "--data", texts]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self) -> dict[str, Any]:
        """Compute once: seconds, CPU seconds, and the file of what came of it."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args)} ended: see above")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def work(case: str, side: str, model: str, texts: str) -> None:
    """What a worker does: compute for each line that comes, and say how long it took."""
    import numpy
    import torch

    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    run = CASES[case][side](model, json.loads(Path(texts).read_text(encoding="utf-8")))
    for _ in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        found = run()
        told = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "file": f"{texts}.{side}.npy"}
        numpy.save(told["file"], found)
        os.write(out, json.dumps(told).encode() + b"\n")


def compared(workers: dict[str, Worker], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Of each side, by round, the time and CPU time in which it computes; the first round warms up and its results are checked."""
    import numpy

    first = {side: numpy.load(worker.run()["file"]) for side, worker in workers.items()}
    for side, found in first.items():
        off = abs(found - first["ours"]).max()
        print(f"  {side}: {found.shape[0]} rows of {found.shape[1]}, off ours by {off:.1e} at most")
        if off > 1e-4:
            raise SystemExit(f"{side} computes something else")
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in workers}
    for _ in range(rounds):
        for side, worker in workers.items():
            told = worker.run()
            taken[side].append((told["seconds"], told["cpu"]))
    return taken


def report(case: str, taken: dict[str, list[tuple[float, float]]], texts: Sequence[str]) -> bool:
    """Print the figures; return whether all targets are reached, in CPU time."""
    reached = True
    for side, seconds in taken.items():
        wall, cpu = (statistics.median(each) for each in zip(*seconds, strict=True))
        line = f"  {side:<22} {wall:6.2f} s, CPU {cpu:6.2f} s, {len(texts) / wall:7.1f} texts/s"
        if side != "ours":
            ratios = [[theirs[i] / ours[i] for theirs, ours in zip(seconds, taken["ours"], strict=True)] for i in (0, 1)]
            wall, cpu = map(statistics.median, ratios)
            target = TARGETS[case, side]
            reached &= cpu >= target
            line += f"; ours is {wall:.2f} times as fast, {cpu:.2f} in CPU time (target {target})"
        print(line)
    return reached


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data", required=True)
    parser.add_argument("--column", default="text")
    parser.add_argument("--model")
    parser.add_argument("--peer")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.case, options.worker, options.model, options.data)
        return 0
    from seodang.infer.checkpoint.load import resolve

    with open(options.data, encoding="utf-8") as file:
        texts = [json.loads(line)[options.column] for _, line in zip(range(options.rows), file, strict=False)]
    model = resolve(options.model or DEFAULTS[options.case])
    sides = [side for side in CASES[options.case] if side != PEER or options.peer]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder, "texts.json")
        path.write_text(json.dumps(texts), encoding="utf-8")
        workers = {}
        for side in sides:
            python = options.peer if side == PEER else sys.executable
            workers[side] = Worker(python, options.case, side, model, str(path), options.threads)
            stack.callback(workers[side].close)
        print(f"{options.case}: {len(texts)} texts, {options.threads} threads, float32")
        return 0 if report(options.case, compared(workers, options.rounds), texts) else 1


if __name__ == "__main__":
    sys.exit(main())
