"""Encoder-decoders that write what is hidden of a text: span corruption (Raffel et al. 2020, T5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from ...data.text.rows import SpanRows
from ...data.text.span_corruption import SpanCorruption
from ..diffusion.order import NumberedRows
from ..encoder_decoder.pairs import pair_collator
from ..encoder_decoder.seq2seq import SEQ2SEQ, Seq2SeqTrainer, of_seq2seq
from ..run.crash_safe import Provenance
from .collator import CorruptingCollator, LearnsCorrupted


class SpanTrainer(LearnsCorrupted, Seq2SeqTrainer):
    """The trainer of sources and targets on texts of which spans are hidden anew each epoch."""


SPANS = replace(SEQ2SEQ, trainer=SpanTrainer, trains_on="rows of text to train on")


@dataclass(frozen=True)
class PairLayout:
    """Corrupted rows to a batch, in the way that is found to suit the architecture."""

    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]

    def batch(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """As `collate_pairs` or `collate_padded_pairs` has it."""
        return self.collate(rows)

    @property
    def told(self) -> str | None:
        """Why the pairs are padded, where they are."""
        return getattr(self.collate, "told", None)


def span_corruption(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: SpanRows, args: TrainingArguments, corruption: SpanCorruption, *, resume: str | None = None, **options: Any
) -> SpanTrainer:
    """Train an encoder-decoder on rows of text, see `span_rows`; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `span_trainer`. Ctrl-C saves a checkpoint, then KeyboardInterrupt is raised.
    """
    trainer = span_trainer(model, tokenizer, rows, args, corruption, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def span_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: SpanRows,
    args: TrainingArguments,
    corruption: SpanCorruption,
    *,
    eval_rows: SpanRows | None = None,
    lora: LoraConfig | None = None,
    sample: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> SpanTrainer:
    """Build the trainer of `span_corruption`; the model is changed in place (its attention, its loss, its adapter).

    The pieces of a row lie end to end without padding where the architecture is found to give each what it gives it alone, else they are padded on the
    right. What is hidden of a row hangs on the seed, the epoch and the row's number. With `lora`, only the adapter is trained and saved.
    """
    SPANS.check(model, rows, eval_rows, lora=lora)
    layout = PairLayout(pair_collator(model, tokenizer))
    seed = args.seed if args.data_seed is None else args.data_seed
    model = SPANS.prepare(model, tokenizer, of_seq2seq(lora), args)
    return SPANS.build(
        model, tokenizer, args, NumberedRows(rows), eval_rows, sample=sample, provenance=provenance or Provenance(paradigm="seq2seq"), callbacks=callbacks,
        data_collator=CorruptingCollator(corruption, layout, seed),
    )  # fmt: skip
