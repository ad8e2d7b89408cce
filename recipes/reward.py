"""A reward model from ranked answers: pairs, ranked lists, or trees of ranked replies.

seodang reward --data pairs.jsonl --eval_fraction 0.2 --config recipes/reward.yaml
accelerate launch recipes/reward.py --data pairs.jsonl --eval_fraction 0.2
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoModelForSequenceClassification, set_seed
from trl import RewardConfig

from seodang.data.chat import set_chat_template
from seodang.data.errors import UserError
from seodang.data.preference_rows import preference_pairs, prepare_preferences
from seodang.data.preferences import PREFERENCE_SHAPES
from seodang.infer.checkpoint.load import load, load_tokenizer
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.preference import PreferenceOptions
from seodang.recipes.options.training import Arguments, ModelOptions, RunOptions
from seodang.recipes.planning.options import PlanningOptions
from seodang.recipes.run.before_after import picture_line, print_once
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.training import (
    checkpoint_to_resume,
    complete_arguments,
    early_stopping,
    held_out_line,
    only_planned,
    ranked_amount,
    train_and_save,
)
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.run.crash_safe import Provenance
from seodang.train.stages.plan import steps_of
from seodang.train.stages.reward import RewardModelTrainer, reward_trainer


@dataclass
class RewardOptions(PreferenceOptions):
    """The data, and how its pairs are weighed."""

    pair_weights: str = field(default="prompt", metadata={"help": "prompt (each prompt weighs the same) or pair (each pair does)."})


@dataclass
class RewardArguments(Arguments, RewardConfig):
    """trl's RewardConfig with the defaults of our other stages: the weights' own dtype, nothing computed twice."""

    output_dir: str | None = field(default="runs/reward", metadata={"help": "Folder of the checkpoints and the final model."})
    learning_rate: float = field(default=1e-5, metadata={"help": "The highest learning rate; with LoRA ten times as much does well."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Times through the data; a second one overfits (Ouyang et al. 2022)."})


@command
def main(argv: list[str] | None = None) -> int:
    classes = RewardOptions, ModelOptions, RunOptions, PlanningOptions, RewardArguments
    data, model, run, planning, args = parse(argv, *classes, prog="seodang reward", description=__doc__)
    planning.begin(run)
    args = complete_arguments(args, model, run, evaluates=bool(data.eval_data or data.eval_fraction))
    if run.eval_samples != RunOptions.eval_samples:
        raise UserError(f"eval_samples {run.eval_samples}: a reward model writes no answers, leave it out")
    tokenizer = load_tokenizer(model.model)
    set_chat_template(tokenizer, data.chat_template)
    if args.max_length is None:
        raise UserError("max_length is empty: set it, to the model's context at most")
    rows, eval_rows, counts = data.rows(prepare_preferences, tokenizer, args.seed, args.max_length, PREFERENCE_SHAPES)
    origin = origin_of(data, model, run, args, rows=rows, paradigm="reward")
    resume = checkpoint_to_resume(args, run, origin)
    trainer = build(model, tokenizer, rows, eval_rows, args, run, origin, data.pair_weights)
    stage = f"training        {ranked_amount(rows)} in {steps_of(args, len(rows)):,} steps"
    if (code := only_planned(trainer, run, planning, counts, resume, stage=[stage, *held_out_line(ranked_amount(eval_rows), eval_rows)])) is not None:
        return code
    folder = train_and_save(trainer, resume)
    result = trainer.evaluate() if eval_rows else {}
    print_once(trainer, terminal_curve(folder), *result_lines(result, eval_rows), picture_line("loss curve", folder / CURVE), f"reward model    {folder}")
    return 0


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
    return reward_trainer(
        model,
        tokenizer,
        rows,
        args,
        eval_rows=eval_rows or None,
        lora=options.lora(),
        pair_weights=pair_weights,
        provenance=origin,
        callbacks=early_stopping(run),
    )


def result_lines(result: dict[str, float], eval_rows: Sequence[dict]) -> list[str]:
    """The held-out figures, in lines; chance is a pair accuracy of a half."""
    if not result:
        return []
    count = sum(len(preference_pairs(row["ranks"])) for row in eval_rows)
    best = f", best answer first {result['eval_best_of']:.1%} of {len(eval_rows):,} prompts" if "eval_best_of" in result else ""
    return [
        f"pair accuracy   {result['eval_accuracy']:.1%} of {count:,} held-out pairs{best}",
        f"by length       {longer_is_better(eval_rows):.1%} of them, did the longer answer always win (ties count half)",
        f"margin          {result['eval_margin']:.3f} on average, loss {result['eval_loss']:.4f} (chance {math.log(2):.4f})",
    ]


def longer_is_better(rows: Sequence[dict]) -> float:
    """The share of pairs whose better answer has more tokens, as many for a half: what a reward model should beat."""
    leads = [len(row["branches"][better]) - len(row["branches"][worse]) for row in rows for better, worse in preference_pairs(row["ranks"])]
    return sum((lead > 0) + 0.5 * (lead == 0) for lead in leads) / len(leads)


if __name__ == "__main__":
    sys.exit(main())
