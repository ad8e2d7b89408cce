"""What a run will cost, found out before it starts: one timed step, and arithmetic, or the arithmetic alone."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.data import IterableDataset
from transformers import TrainingArguments

from ...infer.runners.architecture import transformers_model
from ..maths.logprobs import CHUNK
from .sft import SftTrainer

MEASURED = 1 << 15  # rows whose lengths are looked at


@dataclass
class Plan:
    """The size and cost of a run: bytes, seconds and counts for the whole of it; None what is not known without a step."""

    rows: int | None  # None where the data is streamed
    tokens: float  # that go through the model, all epochs
    steps: int
    memory: int | None  # estimated peak of one process, bytes
    checkpoint: int  # bytes of one checkpoint
    disk: int  # bytes of all checkpoints kept at a time
    step_seconds: float | None
    seconds: float | None
    layout: str | None = None  # how rows lie in a batch, where that is not as it might be

    def of_steps(self, steps: int) -> "Plan":
        """The same run with another number of steps; one checkpoint more or less is not counted anew."""
        share = steps / self.steps
        return replace(self, steps=steps, tokens=share * self.tokens, seconds=share * self.seconds)

    def steps_within(self, minutes: float, least: int) -> int:
        """How many of its steps can be made in so many minutes, but so many at least where there are as many."""
        return min(self.steps, max(int(self.steps * 60 * minutes / self.seconds), least))

    def lines(self) -> list[str]:
        """The plan for people, in lines."""
        gib = 2**30
        rows = "streamed" if self.rows is None else f"{self.rows:,}"
        timed = self.seconds is not None and self.step_seconds is not None
        return [
            f"rows            {rows}, {self.tokens:,.0f} tokens through the model in {self.steps:,} steps",
            *([f"layout          {self.layout}"] if self.layout else []),
            *([] if self.memory is None else [f"peak memory     about {self.memory / gib:.2f} GiB a process"]),
            f"disk            {self.disk / gib:.2f} GiB for checkpoints ({self.checkpoint / gib:.2f} GiB each)",
            f"time            about {_duration(self.seconds)} ({self.step_seconds:.2f} s a step, from one timed step)" if timed else
            "time            not measured: --dry_run time takes the weights and times a step",
        ]  # fmt: skip


def plan(trainer: SftTrainer) -> Plan:
    """Time one step on typical rows and work out the whole run. The model, its gradients and the random state stay as they are."""
    args, sample, size = trainer.args, sample_of(trainer.train_dataset), size_of(trainer)
    lengths = [tokens_of(row) for row in sample]
    per_process = args.per_device_train_batch_size
    seconds_a_token, saved_a_token = _timed_step(trainer, _typical(sample, per_process))
    longest = sum(sorted(lengths)[-per_process:])
    return replace(
        size,
        memory=int(_standing_bytes(trainer) + saved_a_token * longest),
        step_seconds=seconds_a_token * size.tokens / size.steps / args.world_size,
        seconds=seconds_a_token * size.tokens / args.world_size,
    )


def size_of(trainer: SftTrainer) -> Plan:
    """The plan as far as it is known without a step: how many rows, tokens and steps there are, and the checkpoints' bytes."""
    args, rows = trainer.args, trainer.train_dataset
    streamed = isinstance(rows, IterableDataset)
    lengths = [tokens_of(row) for row in sample_of(rows)]
    mean = sum(lengths) / len(lengths)
    steps = steps_of(args, None if streamed else len(rows))
    batches = args.gradient_accumulation_steps * args.world_size
    tokens = min(steps * batches * args.per_device_train_batch_size, math.inf if streamed else len(rows) * _epochs(args, steps, len(rows))) * mean
    checkpoint = trainer.checkpoint_bytes()
    return Plan(
        rows=None if streamed else len(rows), tokens=tokens, steps=steps, memory=None, checkpoint=checkpoint, disk=checkpoint * _kept(args, steps),
        step_seconds=None, seconds=None, layout=getattr(trainer.data_collator, "told", None),
    )  # fmt: skip


def sample_of(rows) -> Sequence:
    """Rows whose lengths stand for all: the first of a stream, of many so many evenly spread, which are asked for one by one: they may lie on disk."""
    return _first(rows, 64) if isinstance(rows, IterableDataset) else Spread(rows, MEASURED)


def tokens_of(row: dict) -> int:
    """The tokens that a row brings, on all sides that it has: the decoder's, a prompt's, its answers'."""
    sides = ("input_ids", "decoder_input_ids", "prompt_ids", "completion_ids")
    return sum(len(row[side]) for side in sides if row.get(side) is not None) + sum(map(len, row.get("branches") or ()))


def steps_of(args: TrainingArguments, rows: int | None) -> int:
    """The optimizer steps of a run over so many rows; None, of a stream, needs `max_steps`."""
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(rows / (args.per_device_train_batch_size * args.world_size))
    return math.ceil(math.ceil(batches / args.gradient_accumulation_steps) * args.num_train_epochs)


def _epochs(args, steps: int, rows: int) -> float:
    if args.max_steps <= 0:
        return args.num_train_epochs
    return steps * args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size / rows


def _kept(args, steps: int) -> int:
    """How many checkpoints stand on the disk at once: one being written, and those not yet rotated away."""
    every = {"no": math.inf, "epoch": max(steps / max(args.num_train_epochs, 1), 1)}.get(str(args.save_strategy.value), args.save_steps)
    every = every * steps if isinstance(every, float) and every < 1 else every
    saves = 0 if math.isinf(every) else math.ceil(steps / every)
    return min(saves, (args.save_total_limit or saves) + 1) + 1


class Spread(Sequence):
    """All rows, or where they are very many so many of them, evenly spread."""

    def __init__(self, rows: Sequence, most: int):
        self.rows, self.count = rows, min(len(rows), most)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int):
        if not 0 <= number < self.count:
            raise IndexError(f"row {number} of {self.count}")
        return self.rows[number * len(self.rows) // self.count]


def _first(rows, count: int) -> list:
    return [row for _, row in zip(range(count), rows, strict=False)]


def _typical(rows, count: int) -> list:
    """Rows spread evenly over the lengths there are."""
    by_length = sorted(range(min(len(rows), 4096)), key=lambda place: tokens_of(rows[place]))
    count = min(count, len(by_length))
    return [rows[by_length[(2 * i + 1) * len(by_length) // (2 * count)]] for i in range(count)]


def _standing_bytes(trainer: SftTrainer) -> int:
    """Weights, gradients, optimizer state and master copies, and the one chunk of logits of a head over the vocabulary."""
    total = 0
    for p in trainer.model.parameters():
        total += p.numel() * p.element_size()
        if p.requires_grad:
            low = p.dtype.itemsize == 2
            total += p.numel() * (8 + 4 + (4 if low else 0))  # two moments, a gradient, a master copy
    head = trainer.model.get_output_embeddings()
    vocab = 0 if head is None else head.weight.shape[0]
    chunk = getattr(transformers_model(trainer.model), "loss_chunk", CHUNK)
    return total + 2 * chunk * vocab * 4 + _interpreter_bytes()


def _interpreter_bytes() -> int:
    return 400 * 2**20  # Python with torch and transformers imported


def _timed_step(trainer: SftTrainer, rows: list) -> tuple[float, float]:
    """Seconds and bytes kept for the backward pass, a token, of one forward and backward pass."""
    model, device = trainer.model, trainer.args.device
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        batch = trainer._prepare_inputs(trainer.data_collator(rows))
        for _ in range(2):  # the first pass pays for what is set up once
            kept.clear()
            start = time.perf_counter()
            with trainer.accelerator.autocast(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                loss = trainer.mean_loss(model, batch) if hasattr(trainer, "mean_loss") else model(**batch).loss
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    tokens = sum(map(tokens_of, rows))
    return seconds / tokens, sum(kept.values()) / tokens


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.1f} min" if minutes >= 1 else f"{seconds:.0f} s"
