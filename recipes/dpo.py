"""DPO and its kin: from pairs of a better and a worse answer, ranked lists, or trees of ranked replies.

seodang dpo --data pairs.jsonl --eval_fraction 0.1 --config recipes/dpo.yaml
accelerate launch recipes/dpo.py --data pairs.jsonl --eval_fraction 0.1 --loss ipo
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import EarlyStoppingCallback

from seodang.data.chat import set_chat_template
from seodang.data.preference_rows import prepare_preferences
from seodang.data.preferences import PREFERENCE_SHAPES
from seodang.data.sources import read
from seodang.infer.checkpoint.load import load, load_tokenizer
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.preference import PreferenceOptions, split_dialogues
from seodang.recipes.options.training import Arguments, ModelOptions, RunOptions
from seodang.recipes.reward import amount
from seodang.recipes.run.before_after import picture, say, side_by_side, tell
from seodang.recipes.run.identity import origin_of, refuse_other_run
from seodang.recipes.sft import settle
from seodang.train.maths.preference_losses import PreferenceSettings
from seodang.train.run.checkpoints import find_resume
from seodang.train.run.logs import CURVE, terminal_curve
from seodang.train.stages.dpo import DpoTrainer, dpo_trainer

SAID = 64  # tokens of an answer that is shown


@dataclass
class DpoOptions(PreferenceOptions):
    max_length: int = field(default=1024, metadata={"help": "Longer prompts lose context on the left, no answer is cut."})
    reference: str | None = field(default=None, metadata={"help": "Another model to compare with; by default the model as it is before training."})
    reference_time: str = field(default="before", metadata={"help": "before: the reference scores all pairs once; step: at every step, with a second model."})


@dataclass
class DpoArguments(Arguments):
    output_dir: str | None = field(default="runs/dpo", metadata={"help": "Folder of the checkpoints and the final model."})
    learning_rate: float = field(default=1e-6, metadata={"help": "The highest learning rate; with LoRA ten times as much does well."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Times through the data."})


@command
def main(argv: list[str] | None = None) -> int:
    classes = DpoOptions, PreferenceSettings, ModelOptions, RunOptions, DpoArguments
    data, settings, model, run, args = parse(argv, *classes, prog="seodang dpo", description=__doc__)
    args = settle(args, model, run, evaluates=bool(data.eval_data or data.eval_fraction))
    model.refuse_adapter()
    tokenizer = load_tokenizer(model.model)
    set_chat_template(tokenizer, data.chat_template)
    rows, held, counts = load_rows(data, tokenizer, args.seed)
    origin = origin_of(data, settings, model, run, args, rows=rows)
    resume = find_resume(Path(args.output_dir), run.resume)
    refuse_other_run(resume, origin, run.allow_changes)
    trainer = build(model, tokenizer, rows, held, args, settings, data, run, origin)
    tell(trainer, *overview(trainer, counts, rows, held, resume))
    if run.dry_run:
        return 0
    shown = held[: run.eval_samples]
    before, said = trainer.measure() if held else {}, say(trainer, shown, SAID)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    folder = trainer.save_final()
    after = trainer.measure() if held else {}
    tell(trainer, *side_by_side(tokenizer, shown, said, say(trainer, shown, SAID)), terminal_curve(folder))
    tell(trainer, *verdict(before, after), picture("loss curve", folder / CURVE), f"checkpoint      {folder}")
    return 0


def load_rows(data: DpoOptions, tokenizer, seed: int):
    """Rows to train on, held-out rows, and the counts of what became of the records."""
    examples = read(data.data, weights=data.weights, shape=data.shape, split=data.split, shapes=PREFERENCE_SHAPES)
    held = read(data.eval_data, shape=data.shape, shapes=PREFERENCE_SHAPES) if data.eval_data else []
    if data.eval_fraction:
        examples, held = split_dialogues(examples, data.eval_fraction, seed)
    how = {"max_length": data.max_length, "literal": data.literal, "unusable": data.unusable}
    rows, counts = prepare_preferences(examples, tokenizer, **how)
    held_rows, counts.held_out = prepare_preferences(held, tokenizer, **how) if held else ([], None)
    return rows, held_rows, counts


def build(options: ModelOptions, tokenizer, rows, held, args, settings: PreferenceSettings, data: DpoOptions, run: RunOptions, origin) -> DpoTrainer:
    """Load the model, and the reference where it is another, and set up the trainer."""
    how = {"device": str(args.device), "dtype": options.dtype}
    model, _ = load(options.model, **how, **options.loading())
    reference = load(data.reference, **how)[0] if data.reference is not None else None
    stop = [EarlyStoppingCallback(run.early_stopping_patience)] if run.early_stopping_patience else []
    return dpo_trainer(
        model, tokenizer, rows, args, settings, eval_rows=held or None, lora=options.lora(), reference=reference,
        reference_time=data.reference_time, provenance=origin, callbacks=stop,
    )  # fmt: skip


def overview(trainer: DpoTrainer, counts, rows: list, held: list, resume: Path | None) -> list[str]:
    """What the run will do, in lines."""
    args = trainer.args
    batches = -(-len(rows) // (args.per_device_train_batch_size * args.world_size))
    steps = args.max_steps if args.max_steps > 0 else int(-(-batches // args.gradient_accumulation_steps) * args.num_train_epochs + 0.999)
    weights = next(trainer.model.parameters()).dtype
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return [
        *counts.lines(),
        f"training        {amount(rows)} in {steps:,} steps, loss {trainer.settings.loss}",
        *([f"held out        {amount(held)}"] if held else []),
        f"model           {trained:,} weights to train, {str(weights).removeprefix('torch.')} on {args.device}",
        *([f"resume          from {resume}"] if resume else []),
    ]


def verdict(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """The held-out figures before and after, in lines."""
    if not after:
        return []
    return [
        f"accuracy        {before['accuracy']:.1%} of held-out pairs before, {after['accuracy']:.1%} after",
        f"margin          {before['margin']:.4f} before, {after['margin']:.4f} after; loss {before['loss']:.4f}, {after['loss']:.4f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
