"""Teach an encoder what is hidden of a text: BERT-style pretraining on plain text, gone on with or begun from random weights.

seodang mlm --model ENCODER --data texts/
accelerate launch recipes/mlm.py --model ENCODER --data texts/
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tqdm import tqdm
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from seodang.data.errors import UserError
from seodang.data.text.corruption import Masking, MaskingOptions
from seodang.data.text.rows import MaskedRows, TextRows, held_out, masked_rows, shared_documents
from seodang.infer.checkpoint.load import is_adapter, load, load_tokenizer, resolve
from seodang.infer.runners.architecture import text_limit
from seodang.recipes.diffusion import untrained_like
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.text import TextOptions
from seodang.recipes.options.training import Arguments, RunOptions
from seodang.recipes.run.before_after import picture_line, print_once
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.training import checkpoint_to_resume, complete_arguments, early_stopping, held_out_line, plan_lines, train_and_save
from seodang.train.pretraining.fill_ins import FillInSampler
from seodang.train.pretraining.layout import refuse_other_models
from seodang.train.pretraining.mlm import MlmTrainer, mlm_trainer
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.run.crash_safe import Provenance
from seodang.train.stages.plan import plan

Rows = TypeVar("Rows", bound=TextRows)


@dataclass
class EncoderOptions:
    """Which encoder is trained, and where."""

    model: str = field(metadata={"help": "Folder or hub name of an encoder (BERT, RoBERTa, DistilBERT, ModernBERT, ELECTRA's generator)."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights: auto, float32, bfloat16. Low precision keeps float32 master copies."})
    scratch: bool = field(default=False, metadata={"help": "Begin from random weights. Of the model only its config and tokenizer are used."})

    def checked(self) -> None:
        """Raise UserError for a model that fills in no masks, by its config, and for an adapter."""
        if is_adapter(resolve(self.model)):
            raise UserError(f"{self.model} is an adapter: mlm teaches whole encoders")
        try:
            config = AutoConfig.from_pretrained(resolve(self.model))
        except (OSError, ValueError):
            return  # what is wrong shows when the weights are loaded
        refuse_other_models(config)


@dataclass
class MlmArguments(Arguments):
    """transformers' arguments with defaults for an encoder."""

    output_dir: str | None = field(default="runs/mlm", metadata={"help": "Folder of the checkpoints and the final model."})
    learning_rate: float = field(default=1e-4, metadata={"help": "The highest learning rate."})


@command
def main(argv: list[str] | None = None) -> int:
    classes = TextOptions, MaskingOptions, EncoderOptions, RunOptions, MlmArguments
    text, masking, encoder, run, args = parse(argv, *classes, prog="seodang mlm", description=__doc__)
    args = complete_arguments(args, encoder, run, evaluates=bool(text.eval_data or text.eval_fraction))
    encoder.checked()
    tokenizer = load_tokenizer(encoder.model)
    Masking.of(tokenizer, masking)  # refused before the text is read
    model = load_encoder(encoder, args)
    rows, eval_rows, told = load_rows(text, tokenizer, text.row_length(text_limit(model)), args, words=masking.whole_words)
    origin = origin_of(text, masking, encoder, run, args, rows=rows, paradigm="masked")
    resume = checkpoint_to_resume(args, run, origin)
    trainer = build(model, tokenizer, rows, eval_rows, masking, args, run, origin)
    print_once(trainer, *plan_lines(trainer, rows.store.counts, resume, stage=[*told, *lines(trainer, masking)], cost=plan(trainer).lines()))
    if run.dry_run:
        return 0
    folder = train_and_save(trainer, resume)
    print_once(trainer, terminal_curve(folder), picture_line("loss curve", folder / CURVE), f"checkpoint      {folder}")
    return 0


def load_encoder(options: EncoderOptions, args: TrainingArguments) -> PreTrainedModel:
    """The checkpoint's encoder with its head, or one by its config with random weights."""
    if options.scratch:
        return untrained_like(options, args, AutoModelForMaskedLM)
    return load(options.model, device=str(args.device), dtype=options.dtype, model_class=AutoModelForMaskedLM)[0]


def build(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: MaskedRows,
    eval_rows: MaskedRows | None,
    masking: MaskingOptions,
    args: TrainingArguments,
    run: RunOptions,
    origin: Provenance,
) -> MlmTrainer:
    """The trainer of an encoder, which shows what it fills in at each evaluation."""
    corruption = Masking.of(tokenizer, masking, model.get_input_embeddings().weight.shape[0])
    trainer = mlm_trainer(model, tokenizer, rows, args, corruption, eval_rows=eval_rows, provenance=origin, callbacks=early_stopping(run))
    if eval_rows is not None and run.eval_samples:
        shown = show if trainer.is_world_process_zero() else lambda text: None
        trainer.sample = FillInSampler(tokenizer, eval_rows, trainer.data_collator, run.eval_samples, shown)
    return trainer


def load_rows(
    text: TextOptions,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    args: TrainingArguments,
    *,
    words: bool = False,
    rows_of: Callable[..., Rows] = masked_rows,
    held_tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[Rows, Rows | None, list[str]]:
    """Rows to train on, held-out rows where there are any, by another tokenizer where one is given, and what there is to say of both in lines."""
    store, told = text.store(text.data, tokenizer, args.output_dir, words=words)
    train = held = None
    held_store, held_tokenizer = store, held_tokenizer or tokenizer
    if text.eval_fraction:
        train, held = held_out(store, text.eval_fraction, args.seed)
    if text.eval_data or held_tokenizer is not tokenizer:
        held_store, _ = text.store(text.eval_data or text.data, held_tokenizer, args.output_dir, words=words)
    rows = rows_of(store, tokenizer, max_length, train)
    eval_rows = rows_of(held_store, held_tokenizer, max_length, held) if text.eval_data or text.eval_fraction else None
    said = [told, *rows.counts().lines()]
    if eval_rows is not None:
        counts = eval_rows.counts()
        said += held_out_line(f"{counts.documents:,} documents in {counts.rows:,} rows, {counts.split:,} of the documents in several pieces", [eval_rows])
        if leaked := shared_documents(eval_rows, rows):
            said.append(f"warning         {leaked:,} of the documents held out are trained on, word for word: it is no measure")
    return rows, eval_rows, said


def lines(trainer: MlmTrainer, masking: MaskingOptions) -> list[str]:
    """What is hidden, and how rows lie, in lines."""
    keep = 1 - masking.mask_share - masking.random_share
    layout = trainer.data_collator.layout
    kind = trainer.model.config.model_type
    return [
        f"hidden          {masking.mlm_probability:.0%} of {'words' if masking.whole_words else 'tokens'}: {masking.mask_share:.0%} masked, "
        f"{masking.random_share:.0%} another token, {keep:.0%} as they are; drawn anew each epoch",
        "layout          pieces end to end, each seeing itself alone" if layout.end_to_end else f"layout          padded: the attention of {kind} cannot keep pieces apart",
    ]


def show(text: str) -> None:
    """Print a line above the progress bar."""
    tqdm.write(f"  {text}")


if __name__ == "__main__":
    sys.exit(main())
