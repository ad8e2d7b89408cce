"""Supervised fine-tuning: teacher forcing on answers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from peft import LoraConfig
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from ...data.chat import end_of_turn_ids
from ...data.errors import UserError
from ...data.labels import Row
from ...data.packing import collate, collate_padded
from ...infer.runners.architecture import attention_is_replaceable, carries_state, context_limit
from ..attention.packed_attention import PACKED
from ..models.adapters import with_adapter
from ..models.completion_loss import patch_completion_loss
from ..run.crash_safe import Provenance
from ..run.limits import check_fits
from ..run.logs import RunLog
from ..run.trainer import SftTrainer

Rows = Sequence[Row] | IterableDataset


def sft(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, args: TrainingArguments, *, resume: str | None = None, **options: Any
) -> SftTrainer:
    """Train on rows of `input_ids` and `labels`; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `sft_trainer`.
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
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> SftTrainer:
    """Build the trainer of `sft`; the model is changed in place (its attention, its loss, its adapter).

    With `lora`, only the adapter is trained and saved. Rows lie end to end without padding where the architecture allows
    it, else they are padded on the right. The generation config gets every id that ends a turn, so that the checkpoint stops
    by itself.
    """
    check_rows(rows, model)
    if eval_rows:
        check_rows(eval_rows, model, "held-out row")
    set_eos_token_ids(model, tokenizer)
    collator = lay_out(model, tokenizer)
    patch_completion_loss(model)
    if lora is not None:
        model = with_adapter(model, lora, args.activation_checkpointing)
    args.remove_unused_columns = False  # the Trainer would drop the records' borders
    args.accelerator_config.dispatch_batches = False  # rows laid end to end cannot be cut along the batch
    return SftTrainer(
        model,
        args,
        provenance=provenance,
        sample=sample,
        data_collator=collator,
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        callbacks=[RunLog(), *callbacks],
    )


def check_rows(rows: Rows, model: PreTrainedModel, name: str = "row") -> None:
    """Refuse rows that cannot be trained on: none, or one longer than the model's context, or ids beyond its vocabulary.

    Of a stream it is known how long its rows may be.
    """
    if isinstance(rows, IterableDataset):
        longest, context = getattr(rows, "longest", None), context_limit(model)
        if longest and context and longest > context:
            raise UserError(f"streamed rows may have {longest} tokens, the model's context only {context}: set --max_length {context} or less")
        return
    if not len(rows):
        raise UserError("there are no rows to train on: check the data with `seodang preview`")
    sizes = ((max(row.get("lengths") or [len(row["input_ids"])]), max(row["input_ids"])) for row in rows)
    check_fits(model, ((f"{name} {number}", *size) for number, size in enumerate(sizes, 1)))


def set_eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the generation config every id that ends a turn, those it has already included."""
    had = model.generation_config.eos_token_id
    known = had if isinstance(had, list) else [] if had is None else [had]
    model.generation_config.eos_token_id = list(dict.fromkeys([*known, *end_of_turn_ids(tokenizer)]))


def lay_out(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Row]], dict[str, Any]]:
    """Choose how rows become a batch, and set the attention to it: end to end, or padded where an architecture needs that."""
    if "flash" in (model.config._attn_implementation or ""):
        return collate  # flash attention reads the records' borders itself
    if attention_is_replaceable(model) and not carries_state(model):  # a state would run on from record to record
        model.set_attn_implementation(PACKED)
        return collate
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return partial(collate_padded, pad_token_id=pad)
