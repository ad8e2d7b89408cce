"""Classification: a trunk and its head on labelled texts, single or in pairs."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from typing_extensions import override

from ...data.classification.labels import MULTI, SINGLE
from ...data.classification.rows import Row
from ...data.errors import UserError
from ...data.packing import pad_right, padded_rows
from ...infer.checkpoint.adapter_head import HEAD, head_to
from ...infer.encoders.classify import check_classifier, problem_of, room_for
from ...infer.encoders.unpadded import unpad
from ...infer.filters.logits import wide
from ...infer.runners.architecture import transformers_model
from ..maths.classification_metrics import ClassifierMetrics, measure
from ..maths.classifier_loss import classifier_losses, record_weights
from ..models.classifier import head_layers, head_names
from ..models.reference import has_adapter
from ..models.reward_model import with_distinct_padding
from ..run.crash_safe import CrashSafeCheckpoints, Provenance
from .build import Stage, labelled_size

Rows = Sequence[Row]


class HeadCollator:
    """Rows to a batch, the longest first, padded on the right: input_ids, attention_mask and, if `typed`, token_type_ids, [rows, longest], and labels.

    A subclass says what the labels are.
    """

    def __init__(self, pad_token_id: int, typed: bool = True):
        self.pad, self.typed = pad_token_id, typed

    def labels_of(self, rows: Sequence[Any]) -> Tensor:
        """The labels of rows in their order."""
        raise NotImplementedError

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        rows = sorted(rows, key=lambda row: -len(row["input_ids"]))  # texts of one length lie beside each other
        batch = padded_rows([row["input_ids"] for row in rows], self.pad)
        if self.typed and "token_type_ids" in rows[0]:
            batch["token_type_ids"] = pad_right([row["token_type_ids"] for row in rows], 0)
        return {**batch, "labels": self.labels_of(rows)}


class TextCollator(HeadCollator):
    """Texts to a batch, with a label each, [rows]; of several labels [rows, labels]."""

    def __init__(self, pad_token_id: int, problem: str, typed: bool = True):
        super().__init__(pad_token_id, typed)
        self.dtype = torch.int64 if problem == SINGLE else torch.float32

    def labels_of(self, rows: Rows) -> Tensor:
        """A class's place, zeros and ones, or a number, of each."""
        return torch.tensor([row["label"] for row in rows], dtype=self.dtype)


class HeadTrainer(CrashSafeCheckpoints, Trainer):
    """Train a head on labels: the mean loss over what has them in the whole accumulated batch, of all processes. A subclass says what that is."""

    loss_is_scaled_for_ga = True  # by the weights of the whole accumulated batch

    def weights_of(self, labels: Tensor) -> Tensor:
        """What each label counts in the mean, of the labels' shape."""
        raise NotImplementedError

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of every label, weighted, in float32 at least."""
        raise NotImplementedError

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """The weight of all labels of the whole accumulated batch of all processes."""
        total = sum(self.weights_of(batch["labels"].to(device)).sum() for batch in batch_samples)
        return self.accelerator.reduce(total)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch: Tensor | None = None):
        """This batch's part of the mean over the accumulated batch, a scalar."""
        total = self._get_num_items_in_batch([inputs], self.args.device) if num_items_in_batch is None else num_items_in_batch
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        loss = self.losses(logits, labels).sum() / total * self.args.world_size  # processes average their gradients
        return (loss, {"logits": logits}) if return_outputs else loss

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        model = self.accelerator.unwrap_model(self.model)
        if self.args.should_save and has_adapter(model):
            told = json.dumps(head_to(transformers_model(model).config), ensure_ascii=False, indent=2)
            (Path(output_dir) / HEAD).write_text(told + "\n", encoding="utf-8")


class ClassifierTrainer(HeadTrainer):
    """Train a classifier on the mean loss over the records, with class weights the weighted mean.

    An evaluation gives the loss and what `measure` has to say of such a problem, over all held-out rows.
    """

    def __init__(self, model, args: TrainingArguments, *, problem: str, class_weights: Sequence[float] | None = None, threshold: float = 0.5, **kwargs: Any):
        super().__init__(model, args, **kwargs)
        self.problem, self.threshold = problem, threshold
        self.class_weights = None if class_weights is None else torch.tensor(class_weights, device=args.device)

    def weights_of(self, labels: Tensor) -> Tensor:
        """The weight of each record's class, [records]."""
        return record_weights(labels, self.problem, self.class_weights)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of every record, weighted: [records], in float32 at least."""
        logits = wide(logits)
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        labels = labels if self.problem == SINGLE else labels.to(logits)
        return classifier_losses(logits, labels, self.problem, weights, self.args.label_smoothing_factor)

    def logits_of(self, rows: Rows) -> Tensor:
        """What the head gives for each row, [rows, labels] in float64, in every process."""
        with self.in_evaluation() as model:

            def values(some: list[Row]) -> Tensor:
                numbered = [{**row, "label": 0} for row in some]
                order = sorted(range(len(some)), key=lambda place: -len(some[place]["input_ids"]))  # the collator's, back again
                batch = self._prepare_inputs(self.data_collator(numbered))
                batch.pop("labels")
                logits = model(**batch).logits
                return torch.zeros_like(logits).index_copy(0, torch.tensor(order, device=logits.device), logits)

            return self.values_over(rows, values, self.model.config.num_labels)

    def measured(self, rows: Rows) -> tuple[ClassifierMetrics, Tensor]:
        """What is measured on rows, and their logits, [rows, labels]."""
        logits = self.logits_of(rows)
        labels = torch.tensor([row["label"] for row in rows], dtype=torch.int64 if self.problem == SINGLE else torch.float64)
        return measure(logits, labels, self.problem, self.threshold), logits

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The loss over all held-out rows, and what `measure` has to say."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        found, logits = self.measured(rows)
        labels = torch.tensor([row["label"] for row in rows], dtype=torch.int64 if self.problem == SINGLE else torch.float64)
        weights = self.weights_of(labels.to(self.args.device)).cpu()
        loss = self.losses(logits.to(self.args.device), labels.to(self.args.device)).sum().cpu() / weights.sum()
        return self.report({"loss": loss.item(), **found.values}, metric_key_prefix)


CLASSIFICATION = Stage(ClassifierTrainer, "labelled texts to train on", labelled_size, unpad, generates=False, left_to_right=False)


def classification(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, args: TrainingArguments, *, resume: str | None = None, **options: Any
) -> ClassifierTrainer:
    """Train a classifier on rows of `input_ids` and `label`; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `classifier_trainer`.
    """
    trainer = classifier_trainer(model, tokenizer, rows, args, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def classifier_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    args: TrainingArguments,
    *,
    eval_rows: Rows | None = None,
    lora: LoraConfig | None = None,
    class_weights: Sequence[float] | None = None,
    threshold: float = 0.5,
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> ClassifierTrainer:
    """Build the trainer of `classification`; the model is changed in place (its attention, its padding, its adapter).

    `model` is an AutoModelForSequenceClassification whose config says what problem it is and what its labels are called. Rows hold `input_ids`,
    perhaps `token_type_ids`, and `label`: the place of a class, a list of zeros and ones, or a number. Batches are computed without their padding
    where the architecture allows it. With `lora`, the adapter, the head and the pooler are trained and saved. Raises UserError for rows, models or
    settings that do not go together.
    """
    problem, labels = problem_of(check_classifier(model).config), model.config.num_labels
    if args.label_smoothing_factor and problem != SINGLE:
        raise UserError(f"label_smoothing_factor {args.label_smoothing_factor} is for one class of several: leave it out")
    if class_weights is not None and len(class_weights) != labels:
        raise UserError(f"{len(class_weights)} class weights for {labels} labels: give one a label")
    check_labels([*rows, *(eval_rows or ())], problem, labels)
    tokenizer = with_distinct_padding(model, tokenizer)
    CLASSIFICATION.check(model, rows, eval_rows, lora=lora, max_length=room_for(model, tokenizer))
    check_last_tokens([*rows, *(eval_rows or ())], tokenizer)
    lora = None if lora is None else beside_head(lora, model, "SEQ_CLS")
    collator = TextCollator(tokenizer.pad_token_id, problem, typed="token_type_ids" in inspect.signature(model.forward).parameters)
    model = CLASSIFICATION.prepare(model, tokenizer, lora, args)
    return CLASSIFICATION.build(
        model, tokenizer, args, rows, eval_rows, problem=problem, class_weights=class_weights, threshold=threshold, provenance=provenance,
        callbacks=callbacks, data_collator=collator,
    )  # fmt: skip


def beside_head(lora: LoraConfig, model: PreTrainedModel, task: str) -> LoraConfig:
    """peft's settings of an adapter beside which the head is trained whole, and saved; `task` is what peft calls it."""
    whole = [*(lora.modules_to_save or ()), *head_names(model)]
    return replace(lora, task_type=task, modules_to_save=whole, exclude_modules=lora.exclude_modules or head_layers(model))


def check_labels(rows: Rows, problem: str, labels: int) -> None:
    """Raise UserError for a row whose label the head has no output for."""
    for number, row in enumerate(rows, start=1):
        label, where = row["label"], row.get("where") or f"row {number}"
        if problem == SINGLE and not (isinstance(label, int) and 0 <= label < labels):
            raise UserError(f"{where}: the label {label!r} is no place among {labels} classes")
        if problem == MULTI and len(label) != labels:
            raise UserError(f"{where}: {len(label)} labels are given, the model has {labels}")


def check_last_tokens(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError for a row that ends in padding: a head that looks for the last token would read one too early."""
    for number, row in enumerate(rows, start=1):
        if row["input_ids"] and row["input_ids"][-1] == tokenizer.pad_token_id:
            raise UserError(f"{row.get('where') or f'row {number}'} ends in {tokenizer.pad_token}, the padding: take it out of the text")
