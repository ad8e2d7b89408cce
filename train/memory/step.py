"""The dearest step of a run: the batch that its longest rows make, as the stage's own trainer lays it out, and its loss."""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...data.labels import IGNORE_INDEX
from ..stages.dpo import DpoTrainer
from ..stages.grpo import SharedPrompt
from ..stages.plan import sample_of, tokens_of
from ..stages.ppo import PpoTrainer

Row = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A micro-batch of one device: its loss, the tokens that go through the model, those that are learned from, what it is in words; and what is rolled out before."""

    loss: Callable[[], Tensor]
    tokens: int
    learned: int
    told: str
    rollouts: int = 0  # answers that a device samples at once
    positions: int = 0  # of each of them, its prompt included


def dearest_step(trainer: Any, devices: int) -> Step:
    """The step over the longest rows there are, for answers that are yet to be sampled over the longest prompts and answers as long as they may be."""
    size = trainer.args.per_device_train_batch_size
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps  # which training sets
    if isinstance(trainer, PpoTrainer):
        return _of_ppo(trainer, longest(trainer.prompts, size), devices)
    if isinstance(trainer, SharedPrompt):
        return _of_groups(trainer, longest(trainer.rows, 1)[0])
    rows = longest(trainer.train_dataset, size)
    if isinstance(trainer, DpoTrainer) and trainer._to_score:  # the reference has scored them by then
        rows = [{**row, "reference": [0.0] * len(row["branches"])} for row in rows]
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    return Step(lambda: trainer.compute_loss(trainer.model, batch), tokens_in(batch), learned_in(batch), f"{len(rows)} rows, the longest of {max(map(tokens_of, rows)):,} tokens")


def longest(rows: Iterable[Row], count: int) -> list[Row]:
    """The longest of rows, at most so many; of a stream those of its first ones."""
    return heapq.nlargest(count, sample_of(rows), key=tokens_of)


def tokens_in(batch: dict[str, Any]) -> int:
    """The tokens of a batch, its padding left out."""
    masks = [value for name, value in batch.items() if name.endswith("attention_mask")]
    return int(sum(mask.sum() for mask in masks)) if masks else batch["input_ids"].numel()


def learned_in(batch: dict[str, Any]) -> int:
    """The tokens, or for a reward model the answers, that the loss is taken of."""
    for name in ("labels", "targets", "ends", "completion_mask"):
        if isinstance(value := batch.get(name), Tensor):
            return int((value != IGNORE_INDEX).sum()) if name == "labels" else int(value.sum()) if name == "completion_mask" else value.numel()
    return 0


def _of_ppo(trainer: PpoTrainer, prompts: Sequence[Row], devices: int) -> Step:
    new, settings = trainer.settings.max_new_tokens, trainer.settings
    count = trainer.args.per_device_train_batch_size
    rows = [{"prompt_ids": list(prompts[i % len(prompts)]["prompt_ids"]), "branches": [[0] * new]} for i in range(count)]
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    learned = count * new
    old = {name: torch.zeros(learned, device=batch["input_ids"].device) for name in ("logprobs", "values", "advantages", "returns")}
    inputs = {"batch": {**batch, "temperature": settings.temperature, "wants_entropies": True}, "old": old, "tokens": learned}
    longest_prompt = max(len(row["prompt_ids"]) for row in rows)
    return Step(
        lambda: trainer.compute_loss(trainer.model, inputs), tokens_in(batch), learned, f"{count} answers of {new:,} tokens to prompts of {longest_prompt:,}",
        rollouts=-(-settings.rollouts // devices), positions=longest_prompt + new,
    )  # fmt: skip


def _of_groups(trainer: Any, prompt: Row) -> Step:
    """Answers of one prompt lie in neighbouring lines, as trl has them."""
    args, ids = trainer.args, list(prompt["prompt_ids"])
    count, new = args.per_device_train_batch_size, args.max_completion_length
    prompts = torch.tensor([[*ids[:-1], line // args.num_generations % 2] for line in range(count)])  # neighbouring groups must differ
    answers = torch.ones(count, new, dtype=torch.long)
    zeros = torch.zeros(count, new)
    inputs = {
        "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": answers, "completion_mask": torch.ones_like(answers),
        "advantages": torch.zeros(count), "old_per_token_logps": zeros, "ref_per_token_logps": zeros, "old_logps": torch.zeros(count), "ref_logps": torch.zeros(count),
        "num_items_in_batch": torch.tensor(count * new),
    }  # fmt: skip
    inputs = {name: value.to(args.device) for name, value in inputs.items()}
    groups = -(-count // args.num_generations)
    shared = trainer.shares_prompts
    tokens = (groups if shared else count) * len(ids) + count * new
    return Step(
        lambda: trainer._compute_loss(trainer.model, inputs), tokens, count * new, f"{count} answers of {new:,} tokens to prompts of {len(ids):,}",
        rollouts=args.generation_batch_size // args.world_size, positions=len(ids) + new,
    )  # fmt: skip
