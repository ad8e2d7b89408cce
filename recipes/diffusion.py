"""Teach a model to speak by masked diffusion, on the records of SFT: one that speaks left to right, one of diffusion, or an untrained one.

seodang diffusion --data records.jsonl --mask_token '<|mask|>'
accelerate launch recipes/diffusion.py --data records.jsonl --mask_token '<|mask|>'
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, TrainingArguments

from seodang.data.chat import set_chat_template
from seodang.data.labels import Row
from seodang.infer.checkpoint.load import load, load_tokenizer, resolve
from seodang.infer.kernels.device import choose_dtype
from seodang.infer.runners.paradigm import Diffusion
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.training import Arguments, DataOptions, ModelOptions, RunOptions
from seodang.recipes.run.before_after import picture_line, print_once
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.training import checkpoint_to_resume, complete_arguments, early_stopping, plan_lines, train_and_save
from seodang.recipes.sft import load_rows, show, stage_lines
from seodang.train.diffusion.adapt import adapt
from seodang.train.diffusion.canvas import Canvas, canvas_length, longest_canvas, refuse_mask
from seodang.train.diffusion.objective import DenoisingObjective
from seodang.train.diffusion.trainer import diffusion_trainer
from seodang.train.pretraining.architecture import untrained
from seodang.train.rollouts.eval_generation import MAX_NEW_TOKENS, AnswerSampler, answerable
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.stages.plan import plan


@dataclass
class DiffusionOptions:
    """What kind of diffusion model it becomes; one that is of diffusion already stays what it is."""

    mask_token: str | None = field(default=None, metadata={"help": "An unused special token, or a new one; else its own."})
    attention: str | None = field(default=None, metadata={"help": "bidirectional (default), prompt_causal, block_causal."})
    block_length: int | None = field(default=None, metadata={"help": "block_causal: how many tokens a block has."})
    shift: int | None = field(default=None, metadata={"help": "1 (unless from scratch) reads token i at i - 1, 0 at i."})
    end_of_text: str | None = field(default=None, metadata={"help": "The token that answers are filled up with. The one that ends a text by default."})
    scratch: bool = field(default=False, metadata={"help": "Begin from random weights. Of the model only its config and tokenizer are used."})


@dataclass
class DiffusionArguments(Arguments):
    """transformers' arguments with defaults for diffusion, which needs more passes over the records than SFT."""

    output_dir: str | None = field(default="runs/diffusion", metadata={"help": "Folder of the checkpoints and the final model."})
    learning_rate: float = field(default=1e-4, metadata={"help": "The highest learning rate."})


@command
def main(argv: list[str] | None = None) -> int:
    classes = DataOptions, DenoisingObjective, DiffusionOptions, ModelOptions, RunOptions, DiffusionArguments
    data, objective, options, model_options, run, args = parse(argv, *classes, prog="seodang diffusion", description=__doc__)
    args = complete_arguments(args, model_options, run, evaluates=bool(data.eval_data or data.eval_fraction))
    model_options.refuse_adapter()
    tokenizer = load_tokenizer(model_options.model)
    set_chat_template(tokenizer, data.chat_template)
    model = untrained_like(model_options, args) if options.scratch else load_model(model_options, args)
    says = adapt(
        model, tokenizer, mask_token=options.mask_token, shift=options.shift, attention=options.attention, block_length=options.block_length,
        autoregressive=objective.co_loss > 0, trained=not options.scratch, may_grow=model_options.lora_r <= 0,
    )  # fmt: skip
    canvas = Canvas.of(tokenizer, canvas_length(says, objective.canvas), options.end_of_text)
    rows, eval_rows, questions, counts = load_rows(data, tokenizer, args, partial(canvas.rows, max_length=data.max_length))
    if not data.streaming:
        refuse_mask([*rows, *eval_rows], says.mask_token_id, tokenizer.mask_token)
    origin = origin_of(data, objective, options, model_options, run, args, rows=rows, paradigm="diffusion")
    resume = checkpoint_to_resume(args, run, origin)
    length = canvas_to_speak(list(islice(rows, 256)) if data.streaming else rows, canvas.multiple)
    questions = list(islice(answerable(questions, tokenizer, model, length), run.eval_samples))
    trainer = diffusion_trainer(
        model, tokenizer, rows, args, objective, canvas=canvas, eval_rows=eval_rows or None, lora=model_options.lora(), provenance=origin,
        sample=AnswerSampler(tokenizer, questions, length, show) if questions else None, callbacks=early_stopping(run),
    )  # fmt: skip
    told = [*stage_lines(data, counts), *lines(says, tokenizer, objective, canvas, length)]
    print_once(trainer, *plan_lines(trainer, counts, resume, stage=told, cost=plan(trainer).lines()))
    if run.dry_run:
        return 0
    folder = train_and_save(trainer, resume)
    print_once(trainer, terminal_curve(folder), picture_line("loss curve", folder / CURVE), f"checkpoint      {folder}")
    return 0


def load_model(options: ModelOptions, args: TrainingArguments) -> PreTrainedModel:
    """The checkpoint's model on the device that it is trained on."""
    return load(options.model, device=str(args.device), dtype=options.dtype, **options.loading())[0]


def untrained_like(options: ModelOptions, args: TrainingArguments, kind: type = AutoModelForCausalLM) -> PreTrainedModel:
    """A model by the checkpoint's config, of a kind that builds it, with random weights that depend on the seed."""
    config = AutoConfig.from_pretrained(resolve(options.model))
    return untrained(config, args.seed, choose_dtype(options.dtype, args.device)[0], args.device, kind)


def canvas_to_speak(rows: Sequence[Row], multiple: int) -> int:
    """How long a canvas held-out answers are spoken on while training: the longest of the rows', but no more than answers of SFT may have."""
    return min(longest_canvas(rows), max(MAX_NEW_TOKENS, multiple))


def lines(says: Diffusion, tokenizer, objective: DenoisingObjective, canvas: Canvas, length: int) -> list[str]:
    """What kind of diffusion it is, in lines."""
    mask, filling = (tokenizer.convert_ids_to_tokens(id) for id in (says.mask_token_id, canvas.filling))
    beside = f", and from left to right with weight {objective.co_loss:g}" if objective.co_loss else ""
    cropped = ", cropped at random" if objective.crop else ""
    blocks = f" of {says.block_length}" if says.block_length else ""
    return [
        f"diffusion       {says.attention}{blocks}, shift {says.shift}, mask token {mask} ({says.mask_token_id})",
        f"objective       {objective.schedule} schedule, weights {objective.weighting}{', complementary masks' if objective.complementary else ''}{beside}",
        f"canvas          answers filled up with {filling} to a multiple of {canvas.multiple}{cropped}; the longest spoken has {length}",
    ]


if __name__ == "__main__":
    sys.exit(main())
