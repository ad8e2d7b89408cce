"""DPO and its kin: from pairs of a better and a worse answer, ranked lists, or trees of ranked replies.

seodang dpo --data pairs.jsonl --eval_fraction 0.1 --config recipes/dpo.yaml
accelerate launch recipes/dpo.py --data pairs.jsonl --eval_fraction 0.1 --loss ipo
"""

import sys
from dataclasses import dataclass, field

from seodang.data.chat import set_chat_template
from seodang.data.preference_rows import prepare_preferences
from seodang.data.preferences import PREFERENCE_SHAPES
from seodang.infer.checkpoint.load import load, load_tokenizer
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.preference import PreferenceOptions
from seodang.recipes.options.training import Arguments, ModelOptions, RunOptions
from seodang.recipes.run.before_after import answer_rows, before_and_after, picture_line, print_once
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.training import (
    checkpoint_to_resume,
    complete_arguments,
    early_stopping,
    held_out_line,
    plan_lines,
    ranked_amount,
    train_and_save,
)
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


@dataclass
class DpoArguments(Arguments):
    """transformers' arguments with defaults for DPO."""

    output_dir: str | None = field(default="runs/dpo", metadata={"help": "Folder of the checkpoints and the final model."})
    learning_rate: float = field(default=1e-6, metadata={"help": "The highest learning rate; with LoRA ten times as much does well."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Times through the data."})


@command
def main(argv: list[str] | None = None) -> int:
    classes = DpoOptions, PreferenceSettings, ModelOptions, RunOptions, DpoArguments
    data, settings, model, run, args = parse(argv, *classes, prog="seodang dpo", description=__doc__)
    args = complete_arguments(args, model, run, evaluates=bool(data.eval_data or data.eval_fraction))
    model.refuse_adapter()
    tokenizer = load_tokenizer(model.model)
    set_chat_template(tokenizer, data.chat_template)
    rows, held, counts = data.rows(prepare_preferences, tokenizer, args.seed, data.max_length, PREFERENCE_SHAPES)
    origin = origin_of(data, settings, model, run, args, rows=rows)
    resume = checkpoint_to_resume(args, run, origin)
    trainer = build(model, tokenizer, rows, held, args, settings, data, run, origin)
    stage = f"training        {ranked_amount(rows)} in {steps_of(args, len(rows)):,} steps, loss {settings.loss}"
    print_once(trainer, *plan_lines(trainer, counts, resume, stage=[stage, *held_out_line(ranked_amount(held), held)]))
    if run.dry_run:
        return 0
    shown = held[: run.eval_samples]
    before, answers = trainer.measure() if held else {}, answer_rows(trainer, shown, SHOWN_TOKENS)
    folder = train_and_save(trainer, resume)
    after = trainer.measure() if held else {}
    print_once(trainer, *before_and_after(tokenizer, shown, answers, answer_rows(trainer, shown, SHOWN_TOKENS)), terminal_curve(folder))
    print_once(trainer, *result_lines(before, after), picture_line("loss curve", folder / CURVE), f"checkpoint      {folder}")
    return 0


def build(options: ModelOptions, tokenizer, rows, held, args, settings: PreferenceSettings, data: DpoOptions, run: RunOptions, origin) -> DpoTrainer:
    """Load the model, and the reference where it is another, and set up the trainer."""
    how = {"device": str(args.device), "dtype": options.dtype}
    model, _ = load(options.model, **how, **options.loading())
    reference = load(data.reference, **how)[0] if data.reference is not None else None
    return dpo_trainer(
        model, tokenizer, rows, args, settings, eval_rows=held or None, lora=options.lora(), reference=reference,
        reference_time=data.reference_time, provenance=origin, callbacks=early_stopping(run),
    )  # fmt: skip


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
