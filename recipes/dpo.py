"""DPO and its kin: from pairs of a better and a worse answer, ranked lists, or trees of ranked replies.

seodang dpo --data pairs.jsonl --eval_fraction 0.1 --config recipes/dpo.yaml
accelerate launch recipes/dpo.py --data pairs.jsonl --eval_fraction 0.1 --loss ipo
"""

import sys
from dataclasses import dataclass, field, replace

from seodang.data.chat import set_chat_template
from seodang.data.errors import UserError
from seodang.data.preference_rows import prepare_preferences
from seodang.data.preferences import PREFERENCE_SHAPES
from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.without_weights import loads_without_weights
from seodang.infer.runners.paradigm import diffusion_of
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.preference import PreferenceOptions
from seodang.recipes.options.training import Arguments, ModelOptions, RunOptions
from seodang.recipes.planning.fit import fit
from seodang.recipes.planning.options import PlanningOptions
from seodang.recipes.run.before_after import answer_rows, before_and_after, picture_line, print_once
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.of_diffusion import canvas_of, drawing, given, refuse_of_diffusion
from seodang.recipes.run.training import (
    checkpoint_to_resume,
    complete_arguments,
    early_stopping,
    held_out_line,
    only_planned,
    ranked_amount,
    train_and_save,
)
from seodang.train.diffusion.dpo import DRAWS, DiffusionDpoTrainer, diffusion_dpo_trainer
from seodang.train.maths.preference_losses import PreferenceSettings
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.stages.dpo import DpoTrainer, dpo_trainer
from seodang.train.stages.plan import steps_of

SHOWN_TOKENS = 64  # tokens of an answer that is shown


@dataclass
class DpoOptions(PreferenceOptions):
    """The data, and what it is compared with."""

    max_length: int = field(default=1024, metadata={"help": "Longer prompts lose context on the left, no answer is cut."})
    reference: str | None = field(default=None, metadata={"help": "Another model to compare with; by default the model as it is before training."})
    reference_time: str = field(default="before", metadata={"help": "before: the reference scores all pairs once; step: at every step, with a second model."})
    draws: int | None = field(default=None, metadata={"help": "Diffusion: masks an answer and step by which its likelihood is estimated, 8."})
    canvas: int | None = field(default=None, metadata={"help": "Diffusion: fill answers up with end-of-text to a multiple of this. By default nothing is added."})

    def __post_init__(self) -> None:
        super().__post_init__()
        drawing(self.of_diffusion())

    def of_diffusion(self) -> dict[str, int]:
        """The options that were given of those that only diffusion has."""
        return given(self, ("draws", "canvas"))


@dataclass
class DpoArguments(Arguments):
    """transformers' arguments with defaults for DPO."""

    output_dir: str | None = field(default="runs/dpo", metadata={"help": "Folder of the checkpoints and the final model."})
    learning_rate: float = field(default=1e-6, metadata={"help": "The highest learning rate; with LoRA ten times as much does well."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Times through the data."})


@command
def main(argv: list[str] | None = None) -> int:
    classes = DpoOptions, PreferenceSettings, ModelOptions, RunOptions, PlanningOptions, DpoArguments
    data, settings, model, run, planning, args = parse(argv, *classes, prog="seodang dpo", description=__doc__)
    planning.begin(run, chooses=True)
    args = complete_arguments(args, model, run, evaluates=bool(data.eval_data or data.eval_fraction))
    model.refuse_adapter()
    tokenizer = model.decoder_tokenizer()
    set_chat_template(tokenizer, data.chat_template)
    rows, held, counts = data.rows(prepare_preferences, tokenizer, args.seed, data.max_length, PREFERENCE_SHAPES)
    origin = origin_of(data, settings, model, run, args, rows=rows)
    resume = checkpoint_to_resume(args, run, origin)
    trainer_of = lambda: build(model, tokenizer, rows, held, args, settings, data, run, origin, planning)
    fit(planning, run, args, rows, trainer_of)
    trainer = trainer_of()
    stage = f"training        {ranked_amount(rows)} in {steps_of(args, len(rows)):,} steps, loss {settings.loss}"
    stages = [stage, *diffusion_lines(trainer), *held_out_line(ranked_amount(held), held)]
    if (code := only_planned(trainer, run, planning, counts, resume, stage=stages)) is not None:
        return code
    shown, length = held[: run.eval_samples], shown_tokens(trainer)
    before, answers = trainer.measure() if held else {}, answer_rows(trainer, shown, length)
    folder = train_and_save(trainer, resume)
    after = trainer.measure() if held else {}
    print_once(trainer, *before_and_after(tokenizer, shown, answers, answer_rows(trainer, shown, length)), terminal_curve(folder))
    print_once(trainer, *result_lines(before, after), picture_line("loss curve", folder / CURVE), f"checkpoint      {folder}")
    return 0


def build(options: ModelOptions, tokenizer, rows, held, args, settings: PreferenceSettings, data: DpoOptions, run: RunOptions, origin, planning) -> DpoTrainer:
    """Load the model, and the reference where it is another, and set up the trainer of the way that the model speaks."""
    how = {"device": str(args.device), "dtype": options.dtype}
    model, _ = load(options.model, **how, **options.loading())
    settled = {"lora": options.lora(), "reference_time": data.reference_time, "callbacks": early_stopping(run)}
    refuse_of_diffusion(model, data.of_diffusion(), "its likelihoods are exact")
    if data.reference is not None:
        settled["reference"] = load(data.reference, **how)[0]
    if diffusion_of(model.config) is None:
        return dpo_trainer(model, tokenizer, rows, args, settings, eval_rows=held or None, provenance=origin, loss_chunk=planning.chunk, **settled)
    if planning.loss_chunk:
        raise UserError(f"loss_chunk {planning.loss_chunk} is for preferences of a model that speaks from left to right, {options.model} is one of diffusion: leave it out")
    if loads_without_weights():
        raise UserError(f"{options.model} is a model of diffusion, whose preferences are planned with its weights: --dry_run time")
    canvas = canvas_of(tokenizer, data.canvas)
    if canvas is not None:
        rows, held = ([canvas.ranked(row, data.max_length) for row in some] for some in (rows, held))
    settled |= {"draws": data.draws or DRAWS, "provenance": replace(origin, paradigm="diffusion")}
    return diffusion_dpo_trainer(model, tokenizer, rows, args, settings, eval_rows=held or None, **settled)


def diffusion_lines(trainer: DpoTrainer) -> list[str]:
    """The line that says what kind of diffusion is trained, where it is."""
    if not isinstance(trainer, DiffusionDpoTrainer):
        return []
    says, draws = trainer.data_collator.collate.diffusion, trainer.data_collator.collate.draws
    return [f"diffusion       {says.attention}, shift {says.shift}, {draws.count} masks an answer and step, the reference's the same"]


def shown_tokens(trainer: DpoTrainer) -> int:
    """How long answers that are shown may be: a canvas no longer than the longest answer to learn from."""
    if not isinstance(trainer, DiffusionDpoTrainer):
        return SHOWN_TOKENS
    return min(SHOWN_TOKENS, max(len(answer) for row in trainer.train_dataset.rows for answer in row["branches"]))


def result_lines(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """The held-out figures before and after, in lines."""
    if not after:
        return []
    return [
        f"accuracy        {before['accuracy']:.1%} of held-out pairs before, {after['accuracy']:.1%} after",
        f"margin          {before['margin']:.4f} before, {after['margin']:.4f} after; loss {before['loss']:.4f}, {after['loss']:.4f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
