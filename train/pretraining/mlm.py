"""Masked language modelling: an encoder says what is hidden of a text (Devlin et al. 2019, "BERT"; Liu et al. 2019, "RoBERTa")."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from ...data.text.corruption import Masking
from ...data.text.rows import MaskedRows
from ...infer.runners.architecture import transformers_model
from ..diffusion.order import NumberedRows
from ..models.masked_loss import patch_masked_loss
from ..run.crash_safe import Provenance
from ..stages.build import Stage, labelled_size
from ..stages.sft import SftTrainer
from .collator import CorruptingCollator, LearnsCorrupted
from .layout import refuse_other_models, set_layout


class MlmTrainer(LearnsCorrupted, SftTrainer):
    """The trainer of SFT on corrupted rows: exact means over the tokens that are to be said."""


MLM = Stage(MlmTrainer, "rows of text to train on", labelled_size, patch_masked_loss, generates=False, left_to_right=False)


def mlm(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: MaskedRows, args: TrainingArguments, masking: Masking, *, resume: str | None = None, **options: Any
) -> MlmTrainer:
    """Train on rows of text, see `masked_rows`; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `mlm_trainer`. Ctrl-C saves a checkpoint, then KeyboardInterrupt is raised.
    """
    trainer = mlm_trainer(model, tokenizer, rows, args, masking, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def mlm_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: MaskedRows,
    args: TrainingArguments,
    masking: Masking,
    *,
    eval_rows: MaskedRows | None = None,
    sample: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> MlmTrainer:
    """Build the trainer of `mlm`; the model is changed in place (its attention, its loss).

    Rows lie end to end without padding where the encoder is found to give each piece what it gives it alone, else pieces are padded on the right.
    What is hidden of a row hangs on the seed, the epoch and the row's number.
    """
    refuse_other_models(transformers_model(model).config, type(transformers_model(model)).__name__)
    MLM.check(model, rows, eval_rows)
    layout = set_layout(model, tokenizer)
    seed = args.seed if args.data_seed is None else args.data_seed
    model = MLM.prepare(model, tokenizer, None, args)
    return MLM.build(
        model, tokenizer, args, NumberedRows(rows), eval_rows, sample=sample, provenance=provenance or Provenance(paradigm="masked"), callbacks=callbacks,
        data_collator=CorruptingCollator(masking, layout, seed),
    )  # fmt: skip
