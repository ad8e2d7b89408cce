"""What the training commands do alike around their stages: complete the options, find what to resume, say what will happen, train and save."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainingArguments

from seodang.data.accounting import Accounting
from seodang.data.errors import UserError
from seodang.data.preference_rows import preference_pairs
from seodang.infer.kernels.cpu_threads import threads_line
from seodang.infer.kernels.device import choose_device, choose_dtype
from seodang.recipes.options.training import ModelOptions, RunOptions
from seodang.recipes.planning.options import PlanningOptions
from seodang.recipes.run.before_after import print_once
from seodang.recipes.run.identity import ADDED, refuse_other_run
from seodang.recipes.run.one_writer import only_writer, refuse_busy_folder
from seodang.train.run.checkpoints import find_resume
from seodang.train.run.crash_safe import Provenance
from seodang.train.run.ranks import agree

ANOTHER = "name another --output_dir"  # for a second run in the folder of one that is going on


def complete_arguments(args: Any, model: ModelOptions, run: RunOptions, evaluates: bool, best: str = "eval_loss") -> Any:
    """Fill in what the user left open: the device, and with held-out data an evaluation before every save, the one of the `best` metric kept.

    Raises UserError where training is to stop early and nothing is held out, for a run of no steps, a device that is not here, and what `refuse_numbers` refuses.
    """
    refuse_numbers(args)
    if isinstance(model, ModelOptions):
        model.refuse_missing()
    if getattr(args, "max_steps", 0) <= 0 and getattr(args, "num_train_epochs", 1) <= 0:
        raise UserError(f"num_train_epochs {args.num_train_epochs}: nothing would be trained, give more than 0, or --max_steps")
    choose_device(model.device)  # refuses one that is not here
    if model.device == "cpu" and not args.use_cpu:
        args = replace(args, use_cpu=True)
    if run.early_stopping_patience and not evaluates:
        raise UserError("early_stopping_patience needs held-out data: give --eval_data or --eval_fraction")
    if evaluates and args.eval_strategy == "no":
        args.eval_strategy, args.eval_steps = args.save_strategy.value, args.save_steps
    if evaluates and not args.metric_for_best_model:
        args.metric_for_best_model, args.greater_is_better = best, best != "eval_loss"
    args.load_best_model_at_end |= bool(run.early_stopping_patience)
    return args


def refuse_numbers(args: Any) -> None:
    """Raise UserError for a setting that is NaN, and for a count of 0 or less where there must be some."""
    for name, value in vars(args).items():
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f"{name} must be a number, got {value}")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name, 1) < 1:
            raise UserError(f"{name} must be at least 1, got {getattr(args, name)}")
    if getattr(args, "save_strategy", None) == "steps" and args.save_steps <= 0:
        raise UserError(f"save_steps must be above 0, got {args.save_steps}: to save nothing on the way, give --save_strategy no")


def refuse_metric(args: TrainingArguments, measured: Iterable[str]) -> None:
    """Raise UserError where the best checkpoint is to be told by what no evaluation measures; `measured` are names as in the log, without eval_."""
    name, measured = (args.metric_for_best_model or "").removeprefix("eval_"), list(measured)
    if args.eval_strategy != "no" and name and name not in measured:
        raise UserError(f"metric_for_best_model {args.metric_for_best_model!r} is not measured: an evaluation gives {', '.join(measured)}")


def early_stopping(run: RunOptions) -> list[EarlyStoppingCallback]:
    """The callback that stops a run early, where it may."""
    return [EarlyStoppingCallback(run.early_stopping_patience)] if run.early_stopping_patience else []


def checkpoint_to_resume(args: TrainingArguments, run: RunOptions, origin: Provenance) -> Path | None:
    """The checkpoint that the run goes on from, None where it starts anew.

    Raises UserError for a damaged one, one of another run, a folder that another run writes into, or processes that differ.
    """
    if not run.dry_run and args.process_index == 0:
        refuse_busy_folder(Path(args.output_dir), ANOTHER)  # before a weight is loaded; held from `train_and_save` on
    resume = find_resume(Path(args.output_dir), run.resume)
    refuse_other_run(resume, origin, run.allow_changes)
    options = {ADDED.get(name, f"--{name}"): value for name, value in (origin.options or {}).items() if name not in ("data", "eval_data")}
    agree({"the checkpoint that they go on from": resume and resume.name, **options})
    return resume


def only_planned(
    trainer: Any, run: RunOptions, planning: PlanningOptions, counts: Accounting, resume: Path | None, *, stage: Iterable[str], cost: Callable[[], Iterable[str]] = list
) -> int | None:
    """Print what a run will do, in the lines of `plan_lines`; return the exit code of a dry run, None where the run is to begin.

    `cost` finds out what it will cost, with weights; a plan from shapes does without.
    """
    stage = [*stage, *planning.chosen]
    if run.dry_run == "memory":
        from seodang.recipes.planning.dry_run import dry_run

        return dry_run(trainer, planning, plan_lines(trainer, counts, resume, stage=stage))
    print_once(trainer, *plan_lines(trainer, counts, resume, stage=stage, cost=cost()))
    return 0 if run.dry_run else None


def plan_lines(trainer: Any, counts: Accounting, resume: Path | None, *, stage: Iterable[str] = (), cost: Iterable[str] = ()) -> list[str]:
    """What a run will do, in lines: what became of the records, what the stage says, the weights, what it will cost, and where it goes on from.

    What became of the records is kept for the model card too.
    """
    trainer.provenance = replace(trainer.provenance, records=counts.lines())
    dtype, reason = choose_dtype("auto", trainer.args.device)
    weights = next(trainer.model.parameters()).dtype
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    of_weights = f"{trained:,} weights to train, {str(weights).removeprefix('torch.')} on {trainer.args.device}"
    return [
        *counts.lines(),
        *stage,
        f"model           {of_weights}{f' ({reason})' if weights == dtype else ''}",
        *([f"threads         {threads_line()}"] if trainer.args.device.type == "cpu" else []),
        *cost,
        *([f"resume          from {resume}; its steps are counted above, too"] if resume else []),
    ]


def train_and_save(trainer: Any, resume: Path | None) -> Path:
    """Train, from a checkpoint on where there is one, and save the final model; return its folder, into which no other run may write meanwhile."""
    if trainer.eval_dataset is not None:
        agree({"the number of held-out rows": len(trainer.eval_dataset)})
    trainer.goes_on = "the same command goes on from there (--resume auto)"
    with only_writer(Path(trainer.args.output_dir), ANOTHER) if trainer.is_world_process_zero() else nullcontext():
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return trainer.save_final()


def ranked_amount(rows: Sequence[dict[str, Any]]) -> str:
    """How many prompts, answers and pairs there are, in words."""
    return f"{len(rows):,} prompts, {sum(len(row['branches']) for row in rows):,} answers, {sum(len(preference_pairs(row['ranks'])) for row in rows):,} pairs"


def held_out_line(amount: str, rows: Sequence[Any]) -> list[str]:
    """The line of what is held out, where anything is."""
    return [f"held out        {amount}"] if rows else []
