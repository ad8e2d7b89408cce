"""Text learned from left to right, documents packed and kept apart: from nothing, or by a model that speaks already."""

from collections.abc import Callable, Sequence
from typing import Any

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from ...data.text.rows import CausalRows
from ..maths.bits_per_byte import bits_per_byte
from ..maths.logprobs import CHUNK
from ..models.completion_loss import patch_completion_loss
from ..run.crash_safe import Provenance
from ..stages.build import Stage, labelled_size
from ..stages.sft import SftTrainer, choose_collator


class PretrainTrainer(SftTrainer):
    """The trainer of SFT on rows of text, whose held-out loss is also told in bits a byte (see `bits_per_byte`)."""

    def measure(self, model: nn.Module, rows: CausalRows) -> dict[str, float]:
        """Held-out loss and accuracy a token, ends of documents included, and bits for each byte of the documents."""
        metrics = super().measure(model, rows)
        coded = bits_per_byte(metrics["loss"] * rows.learned(), rows.bytes, uncoded=rows.uncoded(), vocab_size=len(self.processing_class))
        return metrics | {"bits_per_byte": coded}


PRETRAINING = Stage(PretrainTrainer, "rows of text", labelled_size, patch_completion_loss)


def pretrain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: CausalRows, args: TrainingArguments, *, resume: str | None = None, **options: Any
) -> PretrainTrainer:
    """Train a decoder on rows of text; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `pretrain_trainer`. Ctrl-C saves a checkpoint, then KeyboardInterrupt is raised.
    """
    trainer = pretrain_trainer(model, tokenizer, rows, args, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def pretrain_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: CausalRows,
    args: TrainingArguments,
    *,
    eval_rows: CausalRows | None = None,
    lora: LoraConfig | None = None,
    sample: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    loss_chunk: int = CHUNK,
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> PretrainTrainer:
    """Build the trainer of `pretrain`; the model is changed in place (its attention, its loss).

    Rows are those of `causal_rows`: the documents in one are kept apart in attention and positions where the architecture allows it, else each is a
    padded row of its own. With `lora`, only the adapter is trained and saved. `sample` is called at each evaluation with the model (`TextSampler`). `loss_chunk` as in `sft_trainer`.
    """
    PRETRAINING.check(model, rows, eval_rows, lora=lora)
    collator = choose_collator(model, tokenizer)
    model = PRETRAINING.prepare(model, tokenizer, lora, args, loss_chunk)
    return PRETRAINING.build(model, tokenizer, args, rows, eval_rows, sample=sample, provenance=provenance, callbacks=callbacks, data_collator=collator)
