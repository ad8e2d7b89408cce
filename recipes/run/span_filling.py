"""What `seodang pretrain` does about encoder-decoders: the trainer that fills in spans, and what there is to say of it."""

from peft import LoraConfig
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from seodang.data.text.around import around_documents
from seodang.data.text.rows import SpanRows
from seodang.data.text.span_corruption import LEAST, SpanCorruption, SpanOptions
from seodang.infer.runners.encoder_decoder import decoder_start
from seodang.recipes.options.training import RunOptions
from seodang.recipes.run.training import early_stopping
from seodang.train.pretraining.fill_ins import SpanSampler
from seodang.train.pretraining.spans import SpanTrainer, span_trainer
from seodang.train.run.crash_safe import Provenance


def build(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: SpanRows,
    eval_rows: SpanRows | None,
    options: SpanOptions,
    args: TrainingArguments,
    run: RunOptions,
    origin: Provenance,
    lora: LoraConfig | None,
    shown: int,
) -> SpanTrainer:
    """The trainer of an encoder-decoder, which shows what it fills into so many held-out texts at each evaluation."""
    corruption = SpanCorruption.of(tokenizer, options, *decoder_start(model), model.get_input_embeddings().weight.shape[0])
    trainer = span_trainer(model, tokenizer, rows, args, corruption, eval_rows=eval_rows, lora=lora, provenance=origin, callbacks=early_stopping(run))
    if eval_rows is not None and shown:
        write = (lambda text: tqdm.write(f"  {text}")) if trainer.is_world_process_zero() else (lambda text: None)
        trainer.sample = SpanSampler(tokenizer, eval_rows, corruption, shown, write)
    return trainer


def positions_for(max_length: int, tokenizer: PreTrainedTokenizerBase, options: SpanOptions) -> int:
    """How many positions a model needs for rows of `max_length` tokens: with much hidden, a target is longer than its input."""
    puts = len(around_documents(tokenizer))
    longest = max(options.longest_piece(max_length - puts), LEAST)
    return max(max_length, int(options.sizes(longest)[1]) + puts)


def lines(trainer: SpanTrainer, options: SpanOptions) -> list[str]:
    """What is hidden, what is left out, and how rows lie, in lines."""
    rows = trainer.train_dataset.rows
    left = [f"short           {rows.short:,} pieces of fewer than {LEAST} tokens are left out: nothing of them could be hidden"] if rows.short else []
    return [
        f"hidden          {options.noise_density:.0%} of tokens, in spans of {options.mean_noise_span_length:g} on average; drawn anew each epoch",
        f"targets         {rows.target_count():,} tokens, each hidden span behind its sentinel",
        *left,
        *([f"layout          {told}"] if (told := trainer.data_collator.layout.told) else []),
    ]
