"""KTO on trl's trainer: single answers, each judged good or bad (Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization").

The loss and its loop are trl's; the rows are ours, the ids that generation sees.
"""

import copy
import random
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import product
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import KTOConfig, KTOTrainer
from typing_extensions import override

from ...data.errors import UserError
from ...infer.runners.architecture import context_limit
from ..models.reference import frozen_copy, has_adapter
from ..run.crash_safe import CrashSafeCheckpoints, Provenance
from .build import Rows, Stage, unpaired_size


class KtoTrainer(CrashSafeCheckpoints, KTOTrainer):
    """trl's KTOTrainer on rows of `prompt_ids`, `completion_ids` and `label`.

    Beside trl's metrics an evaluation gives eval_accuracy, the share of held-out answers that the policy has made likelier than the reference
    does where they are good, less likely where they are bad; eval_margin, the mean reward of good answers less that of bad ones (trl's
    rewards/margins is a mean of batches' margins); and eval_pair_accuracy, the share of pairs of a good and a bad answer to the same prompt
    of which the good one gained more, where there are such pairs.
    """

    @override
    def _prepare_dataset(self, dataset: Dataset, processing_class, args: KTOConfig, dataset_name: str) -> Dataset:
        """Add the mismatched answers by which trl estimates the KL divergence; the ids stay ours. Prepared once, a dataset is left alone."""
        if not self.calculate_KL or "KL_completion_ids" in dataset.column_names:
            return dataset
        size = args.per_device_train_batch_size if dataset_name == "train" else args.per_device_eval_batch_size
        return dataset.add_column("KL_completion_ids", mismatched(list(dataset["completion_ids"]), size))

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        """As trl's, with the accuracies and margins over all rows added to its metrics."""
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in self.accuracies(dataloader.dataset).items()})
        return output

    def accuracies(self, rows: Rows) -> dict[str, float]:
        """`accuracy`, where there are good and bad answers `margin`, and where one prompt has both `pair_accuracy`, by implicit rewards."""
        rewards = self.implicit_rewards(rows)
        right = sum((reward > 0) == bool(row["label"]) and reward != 0 for reward, row in zip(rewards, rows, strict=True))
        by_prompt: dict[tuple[int, ...], dict[bool, list[float]]] = defaultdict(lambda: {True: [], False: []})
        for reward, row in zip(rewards, rows, strict=True):
            by_prompt[tuple(row["prompt_ids"])][bool(row["label"])].append(reward)
        pairs = [pair for answers in by_prompt.values() for pair in product(answers[True], answers[False])]
        found = {"accuracy": right / len(rewards)}
        good, bad = ([reward for reward, row in zip(rewards, rows, strict=True) if bool(row["label"]) is label] for label in (True, False))
        if good and bad:
            found["margin"] = sum(good) / len(good) - sum(bad) / len(bad)
        return found | ({"pair_accuracy": sum(good > bad for good, bad in pairs) / len(pairs)} if pairs else {})

    def implicit_rewards(self, rows: Rows) -> list[float]:
        """beta times how much likelier each answer is under the policy than under the reference, in nats."""
        with self.in_evaluation() as model:

            def log_ratios(some: Rows) -> Tensor:
                batch = self._prepare_inputs(self.data_collator(some))
                return self._answer_logprobs(model, batch) - self._reference_logprobs(model, batch)

            return (self.beta * self.values_over(rows, log_ratios)).tolist()

    def _answer_logprobs(self, model, batch: dict[str, Tensor]) -> Tensor:
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels, fused_lm_head=True)
        return out.log_probs.sum(-1)

    def _reference_logprobs(self, model, batch: dict[str, Tensor]) -> Tensor:
        if "ref_logps" in batch:  # computed before training
            return batch["ref_logps"]
        with model.disable_adapter() if self.ref_model is None and has_adapter(model) else nullcontext():
            return self._answer_logprobs(self.ref_model or model, batch)


KTO = Stage(KtoTrainer, "judged answers to train on", unpaired_size, trainer_adds_adapter=True)


def kto(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, args: KTOConfig, *, resume: str | None = None, **options: Any
) -> KtoTrainer:
    """Train on judged answers; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `kto_trainer`.
    """
    trainer = kto_trainer(model, tokenizer, rows, args, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def kto_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    args: KTOConfig,
    *,
    eval_rows: Rows | None = None,
    lora: LoraConfig | None = None,
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> KtoTrainer:
    """Build the trainer of `kto`; the model is changed in place.

    Rows hold `prompt_ids`, `completion_ids` and `label`, as `prepare_unpaired` makes them. They are shuffled once, by `args.seed`: trl pairs each
    answer with its neighbour's prompt and keeps their order in every epoch. The reference is the model before training: with `lora` the weights
    beneath the adapter, else a copy (trl would load one from the path that the model's config names), and no copy where
    `args.precompute_ref_log_probs`.
    """
    args = copy.copy(args)
    check_labels(rows, args)
    KTO.check(model, rows, eval_rows, lora=lora, max_length=args.max_length)
    args.max_length = min(filter(None, (args.max_length, context_limit(model))), default=None)  # of an answer behind a longer prompt than its own
    model = KTO.prepare(model, tokenizer, lora, args)
    return KTO.build(
        model, tokenizer, args, as_dataset(random.Random(args.seed).sample(list(rows), len(rows))), as_dataset(eval_rows) if eval_rows else None,
        ref_model=None if lora is not None or args.precompute_ref_log_probs else frozen_copy(model), peft_config=lora, provenance=provenance,
        callbacks=callbacks,
    )  # fmt: skip


def check_labels(rows: Rows, args: KTOConfig) -> None:
    """Refuse answers of one label alone, and a batch in which no answer can be put under its neighbour's prompt."""
    good = sum(bool(row["label"]) for row in rows)
    if rows and good in (0, len(rows)):
        raise UserError(f"all {len(rows)} answers are judged {'good' if good else 'bad'}: KTO learns from good and bad ones, give both")
    if args.per_device_train_batch_size < 2 and args.loss_type == "kto":
        raise UserError("KTO estimates a KL divergence from answers under their neighbours' prompts: set --per_device_train_batch_size to 2 or more")


def as_dataset(rows: Rows) -> Dataset:
    """The rows as trl wants them."""
    return Dataset.from_list([{"label": bool(row["label"]), **{name: row[name] for name in ("prompt_ids", "completion_ids")}} for row in rows])


def mismatched(completions: list[list[int]], size: int) -> list[list[int]]:
    """For each answer that of the row before it in its batch of `size`, for the first that of the last; a batch of one looks to the batch before.

    >>> mismatched([[1], [2], [3], [4], [5]], 2)
    [[2], [1], [4], [3], [4]]
    """
    found = []
    for start in range(0, len(completions), size):
        batch = completions[start : start + size]
        found += [batch[-1], *batch[:-1]] if len(batch) > 1 else completions[start - 1 : start] or batch
    return found


def weight_advice(rows: Rows, args: KTOConfig) -> str | None:
    """What the weights should be so that good and bad answers count alike (eq. 8: their ratio in [1, 4/3]); None where they do."""
    good = sum(bool(row["label"]) for row in rows)
    bad = len(rows) - good
    ratio = args.desirable_weight * good / (args.undesirable_weight * bad)
    if 0.99 <= ratio <= 1.34:
        return None
    wanted = args.undesirable_weight * bad / good
    return f"{good} good, {bad} bad: --desirable_weight {wanted:.2f} to {wanted * 4 / 3:.2f} would let both count alike"
