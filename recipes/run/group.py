"""A run of GRPO or RLOO: prompts are answered several times each, and answers that are rewarded above their group's become likelier."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback

from seodang.data.chat import set_chat_template
from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load, load_tokenizer
from seodang.recipes.options.parser import parse
from seodang.recipes.options.prompts import PromptOptions, ScoringOptions
from seodang.recipes.options.training import ModelOptions, RunOptions
from seodang.recipes.run.before_after import picture, say, side_by_side, tell
from seodang.recipes.run.identity import origin_of, refuse_other_run
from seodang.recipes.sft import settle
from seodang.train.run.checkpoints import find_resume
from seodang.train.run.logs import CURVE
from seodang.train.stages.grpo import GIVEN


def run_groups(argv: Sequence[str], arguments: type, trainer_of: Callable[..., Any], prog: str, description: str) -> int:
    """`seodang grpo` or `seodang rloo`: `arguments` is trl's config with our defaults, `trainer_of` builds the stage's trainer."""
    classes = PromptOptions, ScoringOptions, ModelOptions, RunOptions, arguments
    data, scoring, model, run, args = parse(argv, *classes, prog=prog, description=description)
    args = settled(args, model, run, evaluates=bool(data.eval_data or data.eval_fraction))
    model.refuse_adapter()
    tokenizer = load_tokenizer(model.model)
    set_chat_template(tokenizer, data.chat_template)
    rows, held, counts = data.rows(tokenizer, args.seed)
    rewards = scoring.rewards(tokenizer, str(args.device), model.dtype, [*rows, *held], GIVEN)
    origin = origin_of(data, scoring, model, run, args, rows=rows)
    resume = find_resume(Path(args.output_dir), run.resume)
    refuse_other_run(resume, origin, run.allow_changes)
    policy, _ = load(model.model, device=str(args.device), dtype=model.dtype, **model.loading())
    stop = [EarlyStoppingCallback(run.early_stopping_patience)] if run.early_stopping_patience else []
    trainer = trainer_of(policy, tokenizer, rows, rewards, args, eval_rows=held or None, lora=model.lora(), provenance=origin, callbacks=stop)
    tell(trainer, *overview(trainer, counts, rows, held, rewards, resume))
    if run.dry_run:
        return 0
    shown = held[: run.eval_samples]
    before, answers = trainer.evaluate() if held else {}, say(trainer, shown, args.max_completion_length)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    folder = trainer.save_final()
    after = trainer.evaluate() if held else {}
    tell(trainer, *side_by_side(tokenizer, shown, answers, say(trainer, shown, args.max_completion_length)))
    tell(trainer, *verdict(before, after), picture("loss curve", folder / CURVE), f"checkpoint      {folder}")
    return 0


def settled(args: Any, model: ModelOptions, run: RunOptions, evaluates: bool) -> Any:
    """What the user left open, as in the other recipes; the best checkpoint is that of the highest held-out reward."""
    if model.device == "cpu" and not args.use_cpu:
        args = replace(args, use_cpu=True, generation_batch_size=None)  # trl works it out anew
    if evaluates and not args.metric_for_best_model:
        args.metric_for_best_model, args.greater_is_better = "eval_reward", True
    count = args.num_generations_eval or args.num_generations
    if evaluates and args.per_device_eval_batch_size * args.world_size % count:
        raise UserError(f"per_device_eval_batch_size {args.per_device_eval_batch_size} must hold whole groups: set it to a multiple of {count}")
    return settle(args, model, run, evaluates)


def overview(trainer, counts, rows: list, held: list, rewards: list, resume: Path | None) -> list[str]:
    """What the run will do, in lines."""
    args = trainer.args
    prompts = args.generation_batch_size // args.num_generations
    steps = args.max_steps if args.max_steps > 0 else steps_of(args, len(rows))
    weights = next(trainer.model.parameters()).dtype
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    shares = args.reward_weights or [1.0] * len(rewards)
    return [
        *counts.lines(),
        f"training        {len(rows):,} prompts, {prompts} at a time with {args.num_generations} answers each, in {steps:,} steps",
        *([f"held out        {len(held):,} prompts"] if held else []),
        "reward          " + " + ".join(f"{share:g} x {reward.__name__}" for share, reward in zip(shares, rewards, strict=True)),
        f"model           {trained:,} weights to train, {str(weights).removeprefix('torch.')} on {args.device}",
        *([f"resume          from {resume}"] if resume else []),
    ]


def steps_of(args, prompts: int) -> int:
    """How many optimizer steps trl takes: whole generation batches alone, each used `num_iterations` times in `steps_per_generation` parts."""
    batches = prompts // (args.generation_batch_size // args.num_generations) * args.num_iterations * args.steps_per_generation
    return -(-int(batches * args.num_train_epochs) // args.gradient_accumulation_steps)


def verdict(before: dict[str, float], after: dict[str, float]) -> list[str]:
    if not after:
        return []
    return [f"held-out reward {before['eval_reward']:.4f} before, {after['eval_reward']:.4f} after"]
