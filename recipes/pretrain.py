"""Pretraining on plain text: a small decoder or encoder from nothing, its tokenizer included, or a decoder that goes on from where it is.

seodang pretrain --data texts/ --eval_fraction 0.05 --architecture llama --hidden_size 256 --layers 6 --heads 4
accelerate launch recipes/pretrain.py --config recipes/pretrain.yaml --data texts/
"""

import copy
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from seodang.data.errors import UserError
from seodang.data.text.rows import CausalRows, causal_rows, held_out
from seodang.data.text.store import TokenStore, token_store
from seodang.data.text.texts import DocumentTexts
from seodang.data.text.tokenizer_training import train_tokenizer
from seodang.infer import SamplingParams
from seodang.infer.checkpoint.load import load, load_tokenizer
from seodang.infer.kernels.device import choose_dtype
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.text import TrainingTextOptions
from seodang.recipes.options.tokenizing import TokenizerOptions
from seodang.recipes.options.training import Arguments, ModelOptions, RunOptions
from seodang.recipes.run.before_after import picture_line, print_once
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.training import checkpoint_to_resume, complete_arguments, early_stopping, held_out_line, plan_lines, train_and_save
from seodang.recipes.tokenizer import lines as tokenizer_lines
from seodang.train.pretraining.architecture import SUGGESTED, Sizes, config_of_file, is_encoder, small_config, untrained
from seodang.train.pretraining.causal import PretrainTrainer, pretrain_trainer
from seodang.train.pretraining.samples import TextSampler
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.run.crash_safe import Provenance
from seodang.train.stages.plan import plan

NEW = "new"  # in place of a tokenizer's folder
BEGINNING = 8  # tokens of a held-out document that a sample goes on from
STRATEGIES = {"greedy": SamplingParams(), "top-p": SamplingParams(temperature=0.8, top_p=0.95, seed=0)}


@dataclass
class ArchitectureOptions:
    """What is built where no model is given: an architecture in a size, or what a config says."""

    architecture: str | None = field(default=None, metadata={"help": f"A model_type of transformers: {SUGGESTED}; llama by default."})
    config_file: str | None = field(default=None, metadata={"help": "Instead of it and of sizes: a config.json, or a folder, of which nothing else is read."})
    hidden_size: int | None = field(default=None, metadata={"help": f"{Sizes.hidden_size} by default."})
    layers: int | None = field(default=None, metadata={"help": f"{Sizes.layers} by default."})
    heads: int | None = field(default=None, metadata={"help": f"Of attention; {Sizes.heads} by default."})
    key_value_heads: int | None = field(default=None, metadata={"help": "Heads of keys and values; as many as --heads by default."})
    intermediate: int | None = field(default=None, metadata={"help": "Size of feed-forward layers; in the architecture's own proportion by default."})
    tie_embeddings: bool = field(default=True, metadata={"help": "The head shares its weights with the embedding."})

    def __post_init__(self):
        given = [each.name for each in fields(Sizes) if getattr(self, each.name) is not None]
        named = ["architecture"] if self.architecture is not None else []
        if self.config_file is not None and (given or named):
            raise UserError(f"config_file says all of the model: drop {(named + given)[0]}, or the file")
        if self.config_file is None:
            self.sizes()

    def sizes(self) -> Sizes:
        """The sizes given, and by default a small model's."""
        return Sizes(**{each.name: value for each in fields(Sizes) if (value := getattr(self, each.name)) is not None})

    def named(self) -> str | None:
        """The first of these options that was given."""
        return next((each.name for each in fields(self) if getattr(self, each.name) != each.default), None)


@dataclass
class PretrainedModelOptions(ModelOptions):
    """Which model goes on; by default none, and one is built from nothing."""

    model: str | None = field(default=None, metadata={"help": "Go on from a decoder: its folder, hub name or default; without, from nothing."})
    tokenizer: str = field(default=NEW, metadata={"help": "From nothing: new (learned from the training text), or a folder or hub name."})

    def __post_init__(self):
        super().__post_init__()
        if self.model is None and self.lora_r > 0:
            raise UserError(f"lora_r {self.lora_r}: an adapter needs weights beneath that know something: give --model, or train all weights")
        if self.model is not None and self.tokenizer != NEW:
            raise UserError(f"tokenizer {self.tokenizer}: {self.model} brings its own, by which its weights were trained: drop one of them")


@dataclass
class SampleOptions:
    """What is written by the model while it is trained."""

    sample_prompts: list[str] | None = field(default=None, metadata={"help": "Beginnings that are continued at each evaluation; of held-out text by default."})
    sample_tokens: int = field(default=40, metadata={"help": "Tokens of each continuation; 0 writes none."})


@dataclass
class PretrainArguments(Arguments):
    """transformers' arguments with defaults for a small model from nothing."""

    output_dir: str | None = field(default="runs/pretrain", metadata={"help": "Folder of the checkpoints and the final model."})
    learning_rate: float = field(default=1e-3, metadata={"help": "The highest learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Of all weights but norms and biases."})
    adam_beta2: float = field(default=0.95, metadata={"help": "How long squares of gradients are remembered."})


@command
def main(argv: list[str] | None = None) -> int:
    classes = TrainingTextOptions, ArchitectureOptions, TokenizerOptions, SampleOptions, PretrainedModelOptions, RunOptions, PretrainArguments
    text, architecture, tokens, samples, model, run, args = parse(argv, *classes, prog="seodang pretrain", description=__doc__)
    args = complete_arguments(args, model, run, evaluates=bool(text.eval_data or text.eval_fraction))
    if model.model is not None and (name := architecture.named()):
        raise UserError(f"{name} is of a model from nothing, and --model {model.model} has its own: drop one of them")
    tokenizer = chosen_tokenizer(text, architecture, tokens, model, args)
    rows, eval_rows, counts = load_rows(text, tokenizer, args)
    tokenizer = exact(tokenizer)
    origin = origin_of(text, architecture, tokens, model, run, args, rows=rows)
    resume = checkpoint_to_resume(args, run, origin)
    trainer = build(text, architecture, model, samples, run, args, tokenizer, rows, eval_rows, origin)
    told = [*tokenizer_lines(tokenizer), *rows.counts().lines(), *held_out_lines(eval_rows)]
    print_once(trainer, *plan_lines(trainer, counts, resume, stage=told, cost=plan(trainer).lines()))
    if run.dry_run:
        return 0
    folder = train_and_save(trainer, resume)
    print_once(trainer, terminal_curve(folder), picture_line("loss curve", folder / CURVE), f"checkpoint      {folder}")
    return 0


# Text


def chosen_tokenizer(
    text: TrainingTextOptions, architecture: ArchitectureOptions, tokens: TokenizerOptions, model: PretrainedModelOptions, args: TrainingArguments
) -> PreTrainedTokenizerBase:
    """The model's tokenizer, the one named, or one learned from the text that is trained on, of which nothing is held out."""
    if model.model is not None:
        return load_tokenizer(model.model)
    if model.tokenizer != NEW:
        return load_tokenizer(model.tokenizer)
    texts = DocumentTexts(text.data, **text.reading())
    if text.eval_fraction:
        texts = texts.without_held_out(text.eval_fraction, args.seed)
    return train_tokenizer(texts, tokens.settings(family="decoder"))


def exact(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same tokenizer without its dropout of merges, which is for training text: what is held out and what is asked is encoded one way."""
    if getattr(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), "dropout", None):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.backend_tokenizer.model.dropout = None
    return tokenizer


def load_rows(
    text: TrainingTextOptions, tokenizer: PreTrainedTokenizerBase, args: TrainingArguments
) -> tuple[CausalRows, CausalRows | None, TokenStore]:
    """Rows to train on, held-out rows, and the counts of what was read."""
    def stored(sources: list[str], tokenizer: PreTrainedTokenizerBase) -> TokenStore:
        return token_store(sources, tokenizer, Path(args.output_dir) / "tokens", **text.reading())[0]

    store, plain = stored(text.data, tokenizer), exact(tokenizer)
    training, held = held_out(store, text.eval_fraction, args.seed) if text.eval_fraction else (None, None)
    rows, eval_rows = causal_rows(store, tokenizer, text.max_length, training), None
    if text.eval_data:
        eval_rows = causal_rows(stored(text.eval_data, plain), plain, text.max_length)
    elif text.eval_fraction:
        eval_rows = causal_rows(stored(text.data, plain), plain, text.max_length, held)
    return rows, eval_rows, store.counts


def held_out_lines(rows: CausalRows | None) -> list[str]:
    """What is held out, in lines."""
    return [] if rows is None else held_out_line(f"{len(rows.chosen):,} documents of {rows.bytes:,} bytes, {rows.token_count():,} tokens in {len(rows):,} rows", [rows])


# The model


def build(
    text: TrainingTextOptions,
    architecture: ArchitectureOptions,
    options: PretrainedModelOptions,
    samples: SampleOptions,
    run: RunOptions,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    rows: CausalRows,
    eval_rows: CausalRows | None,
    origin: Provenance,
) -> PretrainTrainer:
    """Load or make the model, and set up its trainer."""
    if options.model is not None:
        model, _ = load(options.model, device=str(args.device), dtype=options.dtype, **options.loading())
    else:
        model = from_nothing(architecture, options, tokenizer, text.max_length, args)
    sample = sampler(samples, tokenizer, eval_rows, text.max_length, run.eval_samples)
    return pretrain_trainer(
        model, tokenizer, rows, args, eval_rows=eval_rows, lora=options.lora(), sample=sample, provenance=origin, callbacks=early_stopping(run)
    )


def from_nothing(
    options: ArchitectureOptions, model: PretrainedModelOptions, tokenizer: PreTrainedTokenizerBase, positions: int, args: TrainingArguments
) -> PreTrainedModel:
    """A model with random weights that depend on the seed, for the tokenizer's vocabulary and rows of so many tokens."""
    if options.config_file is not None:
        config = config_of_file(options.config_file, tokenizer)
    else:
        config = small_config(options.architecture or "llama", options.sizes(), tokenizer, positions, options.tie_embeddings)
    return untrained(config, args.seed, choose_dtype(model.dtype, args.device)[0], args.device)


def sampler(
    options: SampleOptions, tokenizer: PreTrainedTokenizerBase, held: CausalRows | None, positions: int, most: int
) -> TextSampler | None:
    """What continues the beginnings asked for, or those of held-out documents; None where nothing is held out, or nothing is to be written."""
    if held is None or options.sample_tokens <= 0:
        return None
    beginnings: list[str | list[int]] = [*(options.sample_prompts or ())]
    if not beginnings:
        spans, before = held.store.spans(), list(held.puts.before)
        beginnings = [before + held.store.tokens[spans[i] : min(spans[i] + BEGINNING, spans[i + 1])].tolist() for i in held.chosen[: min(most, 3)]]
    room = positions - max(len(tokenizer(each)["input_ids"]) if isinstance(each, str) else len(each) for each in beginnings)
    if room < 1:
        raise UserError(f"sample_prompts: one of them fills the {positions} tokens of a row: shorten it, or raise --max_length")
    strategies = {name: replace(each, max_new_tokens=min(options.sample_tokens, room)) for name, each in STRATEGIES.items()}
    return TextSampler(tokenizer, beginnings, strategies, show)


def show(strategy: str, beginning: str, text: str) -> None:
    """Print a beginning and how the model goes on, above the progress bar."""
    tqdm.write(f"  {strategy:<7} {beginning[:60]!r} -> {text[:160]!r}")


if __name__ == "__main__":
    sys.exit(main())
