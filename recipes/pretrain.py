"""Pretraining on plain text: a small decoder, encoder or both from nothing, its tokenizer included, or a decoder or encoder-decoder that goes on.

seodang pretrain --data texts/ --eval_fraction 0.05 --architecture llama --hidden_size 256 --layers 6 --heads 4
seodang pretrain --data texts/ --eval_fraction 0.05 --architecture t5 --kind unigram
accelerate launch recipes/pretrain.py --config recipes/pretrain.yaml --data texts/
"""

import copy
import sys
from dataclasses import dataclass, field, fields, replace
from functools import partial

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from seodang.data.errors import UserError
from seodang.data.text.around import around_documents
from seodang.data.text.corruption import Masking, MaskingOptions
from seodang.data.text.rows import CausalRows, SpanRows, causal_rows, masked_rows, span_rows
from seodang.data.text.span_corruption import LEAST, SpanCorruption, SpanOptions, sentinels_of
from seodang.data.text.texts import DocumentTexts
from seodang.data.text.tokenizer_training import TokenizerSettings, says, train_tokenizer
from seodang.infer import SamplingParams
from seodang.infer.checkpoint.load import load_tokenizer, resolve
from seodang.infer.checkpoint.published_diffusion import stored_config
from seodang.infer.checkpoint.without_weights import weight_bytes
from seodang.infer.kernels.device import choose_dtype
from seodang.infer.runners.architecture import text_limit
from seodang.infer.runners.encoder_decoder import decoder_start, position_limit
from seodang.recipes.diffusion import load_model
from seodang.recipes.mlm import build as build_encoder
from seodang.recipes.mlm import lines as masking_lines
from seodang.recipes.mlm import load_rows
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.text import TextOptions
from seodang.recipes.options.tokenizing import TokenizerOptions
from seodang.recipes.options.training import Arguments, ModelOptions, RunOptions
from seodang.recipes.planning.fit import fit
from seodang.recipes.planning.options import PlanningOptions
from seodang.recipes.run.before_after import picture_line, print_once
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.training import checkpoint_to_resume, complete_arguments, early_stopping, only_planned, train_and_save
from seodang.recipes.tokenizer import lines as tokenizer_lines
from seodang.train.pretraining.architecture import (
    DECODER,
    ENCODER,
    ENCODER_DECODER,
    SUGGESTED,
    Sizes,
    config_of_file,
    kind_of,
    read_config,
    refuse_architecture,
    refuse_sizes,
    small_config,
    untrained,
)
from seodang.train.pretraining.causal import pretrain_trainer
from seodang.train.pretraining.fill_ins import SpanSampler
from seodang.train.pretraining.samples import TextSampler
from seodang.train.pretraining.spans import SpanTrainer, span_trainer
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.stages.plan import plan

NEW = "new"  # in place of a tokenizer's folder
BEGINNING = 8  # tokens of a held-out document that a sample goes on from
PARADIGMS = {DECODER: "causal", ENCODER: "masked", ENCODER_DECODER: "seq2seq"}
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
        given = [name for name in ("architecture", *(each.name for each in fields(Sizes))) if getattr(self, name) is not None]
        if self.config_file is not None and given:
            raise UserError(f"config_file says all of the model: drop {given[0]}, or the file")
        sizes = self.sizes()
        if self.config_file is None:
            refuse_sizes(self.model_type(), sizes)
        else:
            refuse_architecture(self.model_type())

    def model_type(self) -> str:
        """Which architecture it is."""
        return (self.architecture or "llama") if self.config_file is None else read_config(self.config_file)["model_type"]

    def sizes(self) -> Sizes:
        """The sizes given, and by default a small model's."""
        return Sizes(**{each.name: value for each in fields(Sizes) if (value := getattr(self, each.name)) is not None})


@dataclass
class PretrainedModelOptions(ModelOptions):
    """Which model goes on; by default none, and one is built from nothing."""

    model: str | None = field(default=None, metadata={"help": "Go on from a decoder or encoder-decoder: its folder, hub name or default; without, from nothing."})
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
    of_model = ArchitectureOptions, TokenizerOptions, MaskingOptions, SpanOptions, SampleOptions, PretrainedModelOptions
    classes = TextOptions, *of_model, RunOptions, PlanningOptions, PretrainArguments
    text, architecture, tokens, masking, spans, samples, options, run, planning, args = parse(argv, *classes, prog="seodang pretrain", description=__doc__)
    args = complete_arguments(args, options, run, evaluates=bool(text.eval_data or text.eval_fraction))
    kind = trained_kind(architecture, options)
    planning.begin(run, of_shapes=kind == DECODER, chooses=True)
    refuse_idle(tokens, {ENCODER: masking, ENCODER_DECODER: spans}, samples, options, kind, evaluates=bool(text.eval_data or text.eval_fraction))
    tokenizer = chosen_tokenizer(text, tokens.settings(kind), options, args)
    spoken = exact(tokenizer)
    refuse_tokenizer(tokenizer, kind, masking)  # before the text is read
    positions = positions_for(text.row_length(None), spoken, spans) if kind == ENCODER_DECODER else text.row_length(None)
    model_of = lambda: load_model(options, args) if options.model is not None else from_nothing(architecture, options, spoken, positions, args)
    model = model_of()
    rows_of = {DECODER: causal_rows, ENCODER: masked_rows, ENCODER_DECODER: partial(span_rows, options=spans)}[kind]
    length = text.row_length(position_limit(model, "encoder") if kind == ENCODER_DECODER else text_limit(model))
    words = kind == ENCODER and masking.whole_words
    rows, eval_rows, told = load_rows(text, tokenizer, length, args, words=words, rows_of=rows_of, held_tokenizer=spoken)
    origin = origin_of(text, architecture, tokens, masking, spans, options, run, args, rows=rows, paradigm=PARADIGMS[kind])
    resume = checkpoint_to_resume(args, run, origin)
    if kind == ENCODER:
        trainer = build_encoder(model, spoken, rows, eval_rows, masking, args, run, origin)
        told += masking_lines(trainer, masking)
    elif kind == ENCODER_DECODER:
        corruption = SpanCorruption.of(spoken, spans, *decoder_start(model), model.get_input_embeddings().weight.shape[0])
        trainer = span_trainer(
            model, spoken, rows, args, corruption, eval_rows=eval_rows, lora=options.lora(), provenance=origin, callbacks=early_stopping(run),
            sample=span_sampler(samples, spoken, eval_rows, corruption, run.eval_samples, shows=args.process_index == 0),
        )  # fmt: skip
        told += span_lines(trainer, spans)
    else:
        sample = sampler(samples, spoken, eval_rows, run.eval_samples, shows=args.process_index == 0)
        trainer_of = lambda model: pretrain_trainer(
            model, spoken, rows, args, eval_rows=eval_rows, lora=options.lora(), sample=sample, provenance=origin, callbacks=early_stopping(run),
            loss_chunk=planning.chunk,
        )  # fmt: skip
        fit(planning, run, args, rows, lambda: trainer_of(model_of()), held=weight_bytes(model))
        trainer = trainer_of(model)
    told = [*tokenizer_lines(tokenizer), *told]
    if (code := only_planned(trainer, run, planning, rows.store.counts, resume, stage=told, cost=lambda: plan(trainer).lines())) is not None:
        return code
    folder = train_and_save(trainer, resume)
    print_once(trainer, terminal_curve(folder), picture_line("loss curve", folder / CURVE), f"checkpoint      {folder}")
    return 0


def trained_kind(architecture: ArchitectureOptions, options: PretrainedModelOptions) -> str:
    """What is trained, see `kind_of`. Raises UserError for what is asked of a model that is built and of one that goes on, and for an encoder that goes on."""
    if options.model is None:
        kind = kind_of(architecture.model_type())
        if kind == ENCODER and options.lora_r:
            raise UserError("lora_r is for decoders")
        return kind
    if (name := given(architecture)) is not None:
        raise UserError(f"{name} is of a model from nothing, and --model {options.model} has its own: drop one of them")
    options.refuse_adapter()
    config = stored_config(resolve(options.model))
    if config.is_encoder_decoder:
        return ENCODER_DECODER
    if kind_of(config.model_type) == ENCODER and not getattr(config, "is_decoder", False):
        raise UserError(f"{options.model} is an encoder ({config.model_type}), which learns to fill in masks: go on with it by `seodang mlm --model {options.model}`")
    return DECODER


def refuse_tokenizer(tokenizer: PreTrainedTokenizerBase, kind: str, masking: MaskingOptions) -> None:
    """Raise UserError for a tokenizer without the mask token of an encoder, or the sentinels of an encoder-decoder."""
    if kind == ENCODER:
        Masking.of(tokenizer, masking)
    elif kind == ENCODER_DECODER:
        sentinels_of(tokenizer)


def refuse_idle(
    tokens: TokenizerOptions, corruptions: dict[str, object], samples: SampleOptions, options: PretrainedModelOptions, kind: str, evaluates: bool
) -> None:
    """Raise UserError for an option that this run would not look at; `corruptions` are the options of what is hidden, by the kind of model that learns it."""
    theirs = options.model or (options.tokenizer if options.tokenizer != NEW else None)
    if theirs and (name := given(tokens)):
        raise UserError(f"{name} is of a tokenizer that is learned, and {theirs} brings its own: drop one of them")
    for of, corruption in corruptions.items():
        if kind != of and (name := given(corruption)):
            article = "an" if kind[0] == "e" else "a"
            example = {ENCODER: "bert", ENCODER_DECODER: "t5"}[of]
            raise UserError(f"{name} is of {of}s, which learn what is hidden, and {article} {kind} is trained: leave it out, or name an {of}, --architecture {example}")
    if samples.sample_tokens < 0:
        raise UserError(f"sample_tokens must be at least 0, got {samples.sample_tokens}: 0 writes none")
    if samples.sample_prompts and kind != DECODER:
        raise UserError(f"sample_prompts are continued by decoders, and an {kind} is trained, which fills in held-out text: leave them out")
    if samples.sample_prompts and not evaluates:
        raise UserError("sample_prompts are continued at each evaluation, and there is none: give --eval_data or --eval_fraction")


def given(options: object) -> str | None:
    """The first of a dataclass's options that is not as it is by default."""
    return next((each.name for each in fields(options) if getattr(options, each.name) != each.default), None)


def chosen_tokenizer(
    text: TextOptions, settings: TokenizerSettings, options: PretrainedModelOptions, args: TrainingArguments
) -> PreTrainedTokenizerBase:
    """The model's tokenizer, the one named, or one learned from the text that is trained on and from nothing that is held out."""
    if options.model is not None or options.tokenizer != NEW:
        return load_tokenizer(options.model or options.tokenizer)
    texts = DocumentTexts(text.data, **text.documents_read())
    return train_tokenizer(texts.without_held_out(text.eval_fraction, args.seed, partial(says, settings)) if text.eval_fraction else texts, settings)


def exact(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same tokenizer without its dropout of merges, which is for training text: what is held out and what is asked is encoded one way."""
    if getattr(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), "dropout", None):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.backend_tokenizer.model.dropout = None
    return tokenizer


def from_nothing(
    architecture: ArchitectureOptions, options: PretrainedModelOptions, tokenizer: PreTrainedTokenizerBase, positions: int, args: TrainingArguments
) -> PreTrainedModel:
    """A model with random weights that depend on the seed, for the tokenizer's vocabulary, and rows of so many tokens where no file says otherwise."""
    if architecture.config_file is not None:
        config = config_of_file(architecture.config_file, tokenizer)
    else:
        config = small_config(architecture.model_type(), architecture.sizes(), tokenizer, positions, architecture.tie_embeddings)
    return untrained(config, args.seed, choose_dtype(options.dtype, args.device)[0], args.device)


def positions_for(max_length: int, tokenizer: PreTrainedTokenizerBase, options: SpanOptions) -> int:
    """How many positions a model needs for rows of `max_length` tokens whose spans are hidden: with much hidden, a target is longer than its input."""
    puts = len(around_documents(tokenizer))
    longest = max(options.longest_piece(max_length - puts), LEAST)
    return max(max_length, int(options.sizes(longest)[1]) + puts)


def span_sampler(
    options: SampleOptions, tokenizer: PreTrainedTokenizerBase, held: SpanRows | None, corruption: SpanCorruption, most: int, shows: bool
) -> SpanSampler | None:
    """What fills in held-out texts; None where nothing is held out, or nothing is to be written."""
    if held is None or not options.sample_tokens or not most:
        return None
    return SpanSampler(tokenizer, held, corruption, most, (lambda text: tqdm.write(f"  {text}")) if shows else lambda text: None)


def span_lines(trainer: SpanTrainer, options: SpanOptions) -> list[str]:
    """What is hidden, what is left out, and how rows lie where they are padded, in lines."""
    rows, padded = trainer.train_dataset.rows, trainer.data_collator.layout.told
    return [
        f"hidden          {options.noise_density:.0%} of tokens, in spans of {options.mean_noise_span_length:g} on average; drawn anew each epoch",
        f"targets         {rows.target_count():,} tokens, each hidden span behind its sentinel",
        *([f"short           {rows.short:,} pieces of fewer than {LEAST} tokens are left out: nothing of them could be hidden"] if rows.short else []),
        *([f"layout          {padded}"] if padded else []),
    ]


def sampler(options: SampleOptions, tokenizer: PreTrainedTokenizerBase, held: CausalRows | None, most: int, shows: bool) -> TextSampler | None:
    """What continues the beginnings asked for, or those of held-out documents; None where nothing is held out, or nothing is to be written."""
    if held is None or options.sample_tokens <= 0:
        return None
    beginnings: list[str | list[int]] = [*(options.sample_prompts or ())]
    if not beginnings:
        spans, before = held.store.spans(), list(held.puts.before)
        firsts = (held.store.tokens[spans[i] : min(spans[i] + BEGINNING, spans[i + 1])].tolist() for i in held.chosen[: min(most, 3)])
        beginnings = [before + whole_characters(tokenizer, first) for first in firsts]
    if not beginnings:
        return None
    longest = max(len(tokenizer(each)["input_ids"]) if isinstance(each, str) else len(each) for each in beginnings)
    if (room := held.longest - longest) < 1:
        raise UserError(f"sample_prompts: one of them fills the {held.longest} tokens of a row: shorten it, or raise --max_length")
    strategies = {name: replace(each, max_new_tokens=min(options.sample_tokens, room)) for name, each in STRATEGIES.items()}
    return TextSampler(tokenizer, beginnings, strategies, show if shows else None)


def whole_characters(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """The ids without the last ones, where these are half a character; one at least."""
    ends = (end for end in range(len(ids), 0, -1) if not tokenizer.decode(ids[:end]).endswith("\ufffd"))
    return ids[: next(ends, len(ids))]


def show(strategy: str, beginning: str, text: str) -> None:
    """Print a beginning and how the model goes on, above the progress bar."""
    tqdm.write(f"  {strategy:<7} {beginning[:60]!r} -> {text[:160]!r}")


if __name__ == "__main__":
    sys.exit(main())
