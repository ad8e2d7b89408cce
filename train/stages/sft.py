"""Supervised fine-tuning: teacher forcing on answers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from ...data.errors import UserError
from ...data.labels import Row
from ...data.packing import collate, collate_padded, padding_id
from ...infer.kernels.device import in_float64
from ...infer.runners.architecture import attention_is_replaceable, carries_state
from ..attention.packed_attention import PACKED
from ..maths.logprobs import CHUNK
from ..models.completion_loss import patch_completion_loss
from ..run.crash_safe import CrashSafeCheckpoints, Provenance
from .build import Stage, labelled_size

Rows = Sequence[Row] | IterableDataset


class StreamedRows(IterableDataset):
    """Rows from a function that starts the stream anew each time; a resumed run reads past what it has trained on.

    No row is longer than `longest`, where that is given. `batch` is how many rows all processes take together in a micro-step. With worker
    processes the batches go round among them, as the loader collects them: the rows come once and in the same order with any number of
    workers. Each of them reads the whole stream.
    """

    def __init__(self, start: Callable[[], Iterable[Row]], batch: int = 1, longest: int | None = None):
        self.start, self.batch, self.longest = start, batch, longest

    def __iter__(self) -> Iterator[Row]:
        worker = get_worker_info()
        if worker is None:
            return iter(self.start())
        return (row for i, row in enumerate(self.start()) if i // self.batch % worker.num_workers == worker.id)


class SftTrainer(CrashSafeCheckpoints, Trainer):
    """Train on rows of answers: exact means over trained tokens, and checkpoints that are complete or not there.

    `sample` is called at each evaluation with the model and returns further metrics (exact match of generated answers, say).
    Labels are smoothed in training, where `label_smoothing_factor` asks for it, and in no evaluation.
    The model must return an `AnswerLoss` (see `patch_completion_loss`).
    """

    smooths_labels = True  # its loss is the cross entropy of labels

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        provenance: Provenance | None = None,
        sample: Callable[[PreTrainedModel], dict[str, float]] | None = None,
        **kwargs: Any,
    ):
        factor = args.label_smoothing_factor
        if not 0 <= factor < 1:
            raise UserError(f"label_smoothing_factor must be in [0, 1), got {factor}: 0.1 is usual")
        if factor and not self.smooths_labels:
            raise UserError(f"label_smoothing_factor {factor} is for the cross entropy of a text's tokens, which this model does not learn by: leave it out")
        super().__init__(model, args, provenance=provenance, **kwargs)
        self.label_smoother = None  # transformers' takes the labels away and asks for all logits; the loss at label positions smooths by itself
        self.sample = sample

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of a micro-batch, of smoothed labels where that is asked for."""
        factor = self.args.label_smoothing_factor
        return super().compute_loss(model, {**inputs, "label_smoothing": factor} if factor else inputs, *args, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """What is measured on the held-out rows, and what `sample` measures."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        with self.in_evaluation() as model:
            metrics = self.measure(model, rows)
            if self.sample is not None:
                metrics |= self.sampled(self.sample)
        return self.report(metrics, metric_key_prefix)

    def measure(self, model: nn.Module, rows: Sequence[Row]) -> dict[str, float]:
        """Held-out loss and token accuracy over all answer tokens."""
        loss, correct, tokens = self.token_sums(model, rows, self.data_collator)
        return {"loss": loss / tokens, "token_accuracy": correct / tokens}

    def token_sums(self, model: nn.Module, rows: Sequence[Row], collate: Callable[[list[Any]], dict[str, Any]]) -> list[float]:
        """The loss of all labelled tokens of rows, how many of them are guessed, and how many there are."""

        def sums_of(some: list[Any]) -> Tensor:
            out = model(**self._prepare_inputs(collate(some)))
            return torch.stack([in_float64(part) for part in (out.loss_sum, out.correct, out.tokens)])

        return self.sums_over(rows, 3, sums_of)


SFT = Stage(SftTrainer, "rows to train on", labelled_size, patch_completion_loss)


def sft(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, args: TrainingArguments, *, resume: str | None = None, **options: Any
) -> SftTrainer:
    """Train on rows of `input_ids` and `labels`; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `sft_trainer`. Ctrl-C saves a checkpoint, then KeyboardInterrupt is raised.
    """
    trainer = sft_trainer(model, tokenizer, rows, args, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def sft_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    args: TrainingArguments,
    *,
    eval_rows: Sequence[Row] | None = None,
    lora: LoraConfig | None = None,
    sample: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    loss_chunk: int = CHUNK,
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> SftTrainer:
    """Build the trainer of `sft`; the model is changed in place (its attention, its loss, its adapter).

    With `lora`, only the adapter is trained and saved. Rows lie end to end without padding where the architecture allows
    it, else they are padded on the right. The logits of `loss_chunk` positions are made at a time. The generation
    config gets every id that ends a turn, so that the checkpoint stops by itself.
    """
    SFT.check(model, rows, eval_rows, lora=lora)
    collator = choose_collator(model, tokenizer)
    model = SFT.prepare(model, tokenizer, lora, args, loss_chunk)
    return SFT.build(model, tokenizer, args, rows, eval_rows, sample=sample, provenance=provenance, callbacks=callbacks, data_collator=collator)


def choose_collator(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Row]], dict[str, Any]]:
    """Choose how rows become a batch, and set the attention to it: end to end, or padded where an architecture needs that."""
    if "flash" in (model.config._attn_implementation or ""):
        return collate  # flash attention reads the records' borders itself
    if attention_is_replaceable(model) and not carries_state(model):  # a state would run on from record to record
        model.set_attn_implementation(PACKED)
        return collate
    return partial(collate_padded, pad_token_id=padding_id(tokenizer))
