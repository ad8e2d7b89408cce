"""Fine-tuning of encoder-decoders: teacher forcing on targets, each read from its source."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from peft import LoraConfig, TaskType
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from ...data.seq2seq.packing import Row
from ..models.seq2seq_loss import patch_seq2seq_loss
from ..run.crash_safe import Provenance
from ..stages.sft import Rows, SftTrainer
from .pairs import PairStage, pair_collator, pair_size


class Seq2SeqTrainer(SftTrainer):
    """The trainer of SFT on sources and targets."""


SEQ2SEQ = PairStage(Seq2SeqTrainer, "rows to train on", pair_size, patch_seq2seq_loss, left_to_right=False)


def seq2seq(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, args: TrainingArguments, *, resume: str | None = None, **options: Any
) -> Seq2SeqTrainer:
    """Train an encoder-decoder on rows of sources and targets; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `seq2seq_trainer`. Ctrl-C saves a checkpoint, then KeyboardInterrupt is raised.
    """
    trainer = seq2seq_trainer(model, tokenizer, rows, args, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def seq2seq_trainer(
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
) -> Seq2SeqTrainer:
    """Build the trainer of `seq2seq`; the model is changed in place (its attention, its loss, its adapter).

    A row has `input_ids`, which the encoder reads, and of one length `decoder_input_ids`, which the decoder is shown, and `labels`, what it is to say at
    each of them, -100 where nothing is learned; packed rows (`pack_seq2seq`) have `lengths` and `target_lengths` as well. The loss is the model's own on
    these three. Rows lie end to end without padding where the architecture is found to give each pair what it gives it alone, else they are
    padded on the right. With `lora`, only the adapter is trained and saved.
    """
    SEQ2SEQ.check(model, rows, eval_rows, lora=lora)
    collator = pair_collator(model, tokenizer)
    model = SEQ2SEQ.prepare(model, tokenizer, of_seq2seq(lora), args)
    provenance = provenance or Provenance(paradigm="seq2seq")
    return SEQ2SEQ.build(model, tokenizer, args, rows, eval_rows, sample=sample, provenance=provenance, callbacks=callbacks, data_collator=collator)


def of_seq2seq(lora: LoraConfig | None) -> LoraConfig | None:
    """The settings of an adapter, for what peft calls this kind of model."""
    if lora is not None:
        lora = copy.copy(lora)
        lora.task_type = TaskType.SEQ_2_SEQ_LM
    return lora
