"""A reward model from ranked answers: pairs, ranked lists, or trees of ranked replies.

seodang reward --data pairs.jsonl --eval_fraction 0.2 --config recipes/reward.yaml
accelerate launch recipes/reward.py --data pairs.jsonl --eval_fraction 0.2
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, EarlyStoppingCallback, set_seed
from trl import RewardConfig

from seodang.data.chat import set_chat_template
from seodang.data.errors import UserError
from seodang.data.preference_rows import pairs, prepare_preferences
from seodang.data.preferences import PREFERENCE_SHAPES
from seodang.data.sources import read
from seodang.infer.checkpoint.load import load, load_tokenizer
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.preference import PreferenceOptions, split_dialogues
from seodang.recipes.options.training import Arguments, ModelOptions, RunOptions
from seodang.recipes.run.before_after import picture, tell
from seodang.recipes.run.identity import origin_of, refuse_other_run
from seodang.recipes.sft import settle
from seodang.train.run.checkpoints import find_resume
from seodang.train.run.crash_safe import Provenance
from seodang.train.run.logs import CURVE, terminal_curve
from seodang.train.stages.reward import RewardModelTrainer, reward_trainer


@dataclass
class RewardOptions(PreferenceOptions):
    pair_weights: str = field(default="prompt", metadata={"help": "prompt (each prompt weighs the same) or pair (each pair does)."})


@dataclass
class RewardArguments(Arguments, RewardConfig):
    """trl's RewardConfig with the defaults of our other stages: the weights' own dtype, nothing computed twice."""

    output_dir: str | None = field(default="runs/reward", metadata={"help": "Folder of the checkpoints and the final model."})
    learning_rate: float = field(default=1e-5, metadata={"help": "The highest learning rate; with LoRA ten times as much does well."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Times through the data; a second one overfits (Ouyang et al. 2022)."})


@command
def main(argv: list[str] | None = None) -> int:
    data, model, run, args = parse(argv, RewardOptions, ModelOptions, RunOptions, RewardArguments, prog="seodang reward", description=__doc__)
    args = settle(args, model, run, evaluates=bool(data.eval_data or data.eval_fraction))
    if run.eval_samples != RunOptions.eval_samples:
        raise UserError(f"eval_samples {run.eval_samples}: a reward model writes no answers, leave it out")
    tokenizer = load_tokenizer(model.model)
    set_chat_template(tokenizer, data.chat_template)
    rows, eval_rows, counts = load_rows(data, tokenizer, args)
    origin = origin_of(data, model, run, args, rows=rows, paradigm="reward")
    resume = find_resume(Path(args.output_dir), run.resume)
    refuse_other_run(resume, origin, run.allow_changes)
    trainer = build(model, tokenizer, rows, eval_rows, args, run, origin, data.pair_weights)
    tell(trainer, *overview(trainer, counts, rows, eval_rows, resume))
    if run.dry_run:
        return 0
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    folder = trainer.save_final()
    result = trainer.evaluate() if eval_rows else {}
    tell(trainer, terminal_curve(folder), *verdict(result, eval_rows), picture("loss curve", folder / CURVE), f"reward model    {folder}")
    return 0


def load_rows(data: RewardOptions, tokenizer, args: RewardArguments):
    """Rows to train on, held-out rows, and the counts of what became of the records."""
    if args.max_length is None:
        raise UserError("max_length is empty: set it, to the model's context at most")
    examples = read(data.data, weights=data.weights, shape=data.shape, split=data.split, shapes=PREFERENCE_SHAPES)
    held = read(data.eval_data, shape=data.shape, shapes=PREFERENCE_SHAPES) if data.eval_data else []
    if data.eval_fraction:
        examples, held = split_dialogues(examples, data.eval_fraction, args.seed)
    how = {"max_length": args.max_length, "literal": data.literal, "unusable": data.unusable}
    rows, counts = prepare_preferences(examples, tokenizer, **how)
    eval_rows, counts.held_out = prepare_preferences(held, tokenizer, **how) if held else ([], None)
    return rows, eval_rows, counts


def build(
    options: ModelOptions,
    tokenizer,
    rows: list[dict],
    eval_rows: list[dict],
    args: RewardArguments,
    run: RunOptions,
    origin: Provenance,
    pair_weights: str,
) -> RewardModelTrainer:
    """Load the model with a new head, or its own where it is a reward model already, and set up its trainer."""
    options.refuse_adapter()
    set_seed(args.seed)  # the new head is random
    new_head: dict[str, Any] = {"model_class": AutoModelForSequenceClassification, "num_labels": 1}
    model, _ = load(options.model, device=str(args.device), dtype=options.dtype, **new_head, **options.loading())
    stop = [EarlyStoppingCallback(run.early_stopping_patience)] if run.early_stopping_patience else []
    return reward_trainer(
        model,
        tokenizer,
        rows,
        args,
        eval_rows=eval_rows or None,
        lora=options.lora(),
        pair_weights=pair_weights,
        provenance=origin,
        callbacks=stop,
    )


def overview(trainer: RewardModelTrainer, counts, rows: Sequence[dict], eval_rows: Sequence[dict], resume: Path | None) -> list[str]:
    """What the run will do, in lines."""
    args = trainer.args
    weights = next(trainer.model.parameters()).dtype
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    batches = math.ceil(len(rows) / (args.per_device_train_batch_size * args.world_size))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(math.ceil(batches / args.gradient_accumulation_steps) * args.num_train_epochs)
    return [
        *counts.lines(),
        f"training        {amount(rows)} in {steps:,} steps",
        *([f"held out        {amount(eval_rows)}"] if eval_rows else []),
        f"model           {trained:,} weights to train, {str(weights).removeprefix('torch.')} on {args.device}",
        *([f"resume          from {resume}"] if resume else []),
    ]


def amount(rows: Sequence[dict]) -> str:
    """How many prompts, answers and pairs there are, in words."""
    return f"{len(rows):,} prompts, {sum(len(row['branches']) for row in rows):,} answers, {sum(len(pairs(row['ranks'])) for row in rows):,} pairs"


def verdict(result: dict[str, float], eval_rows: Sequence[dict]) -> list[str]:
    """The held-out figures, in lines; chance is a pair accuracy of a half."""
    if not result:
        return []
    count = sum(len(pairs(row["ranks"])) for row in eval_rows)
    best = f", best answer first {result['eval_best_of']:.1%} of {len(eval_rows):,} prompts" if "eval_best_of" in result else ""
    return [
        f"pair accuracy   {result['eval_accuracy']:.1%} of {count:,} held-out pairs{best}",
        f"margin          {result['eval_margin']:.3f} on average, loss {result['eval_loss']:.4f} (chance {math.log(2):.4f})",
    ]


if __name__ == "__main__":
    sys.exit(main())
