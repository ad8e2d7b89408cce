"""A run of GRPO or RLOO: prompts are answered several times each, and answers that are rewarded above their group's become likelier."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from seodang.data.chat import set_chat_template
from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load
from seodang.recipes.options.parser import parse
from seodang.recipes.options.prompts import PromptOptions, ScoringOptions
from seodang.recipes.options.rollouts import RolloutOptions
from seodang.recipes.options.training import ModelOptions, RunOptions
from seodang.recipes.planning.options import PlanningOptions
from seodang.recipes.run.before_after import answer_rows, before_and_after, picture_line, print_once
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.training import (
    checkpoint_to_resume,
    complete_arguments,
    early_stopping,
    held_out_line,
    only_planned,
    train_and_save,
)
from seodang.train.run.callbacks import CURVE
from seodang.train.stages.grpo import TRL_ARGUMENTS


def run_groups(argv: Sequence[str], arguments: type, trainer_of: Callable[..., Any], prog: str, description: str) -> int:
    """`seodang grpo` or `seodang rloo`: `arguments` is trl's config with our defaults, `trainer_of` builds the stage's trainer."""
    classes = PromptOptions, ScoringOptions, RolloutOptions, ModelOptions, RunOptions, PlanningOptions, arguments
    data, scoring, rollouts, model, run, planning, args = parse(argv, *classes, prog=prog, description=description)
    planning.begin(run)
    args = complete_group_arguments(args, model, run, evaluates=bool(data.eval_data or data.eval_fraction))
    model.refuse_adapter()
    rollouts.settle(args, planned=bool(run.dry_run))
    tokenizer = model.decoder_tokenizer()
    set_chat_template(tokenizer, data.chat_template)
    rows, held, counts = data.rows(tokenizer, args.seed)
    rewards = scoring.rewards(tokenizer, str(args.device), model.dtype, [*rows, *held], TRL_ARGUMENTS)
    origin = origin_of(data, scoring, rollouts, model, run, args, rows=rows)
    resume = checkpoint_to_resume(args, run, origin)
    policy, _ = load(model.model, device=str(args.device), dtype=model.dtype, **model.loading())
    trainer = trainer_of(policy, tokenizer, rows, rewards, args, eval_rows=held or None, lora=model.lora(), provenance=origin, callbacks=early_stopping(run))
    if (code := only_planned(trainer, run, planning, counts, resume, stage=stage_lines(args, rows, held, rewards))) is not None:
        return code
    shown = held[: run.eval_samples]
    before, answers = trainer.evaluate() if held else {}, answer_rows(trainer, shown, args.max_completion_length)
    folder = train_and_save(trainer, resume)
    after = trainer.evaluate() if held else {}
    print_once(trainer, *before_and_after(tokenizer, shown, answers, answer_rows(trainer, shown, args.max_completion_length)))
    print_once(trainer, *result_lines(before, after), picture_line("loss curve", folder / CURVE), f"checkpoint      {folder}")
    return 0


def complete_group_arguments(args: Any, model: ModelOptions, run: RunOptions, evaluates: bool) -> Any:
    """As `complete_arguments`, for trl's settings of groups; raises UserError for an evaluation that would cut groups apart."""
    if model.device == "cpu" and not args.use_cpu:
        args = replace(args, use_cpu=True, generation_batch_size=None)  # trl works it out anew
    count = args.num_generations_eval or args.num_generations
    if evaluates and args.per_device_eval_batch_size * args.world_size % count:
        raise UserError(f"per_device_eval_batch_size {args.per_device_eval_batch_size} must hold whole groups: set it to a multiple of {count}")
    return complete_arguments(args, model, run, evaluates, best="eval_reward")


def stage_lines(args: Any, rows: list, held: list, rewards: list) -> list[str]:
    """What the stage trains on and measures, in lines."""
    prompts = args.generation_batch_size // args.num_generations
    steps = args.max_steps if args.max_steps > 0 else group_steps(args, len(rows))
    shares = args.reward_weights or [1.0] * len(rewards)
    return [
        f"training        {len(rows):,} prompts, {prompts} at a time with {args.num_generations} answers each, in {steps:,} steps",
        *held_out_line(f"{len(held):,} prompts", held),
        "reward          " + " + ".join(f"{share:g} x {reward.__name__}" for share, reward in zip(shares, rewards, strict=True)),
    ]


def group_steps(args, prompts: int) -> int:
    """How many optimizer steps trl takes: whole generation batches alone, each used `num_iterations` times in `steps_per_generation` parts."""
    batches = prompts // (args.generation_batch_size // args.num_generations) * args.num_iterations * args.steps_per_generation
    return -(-int(batches * args.num_train_epochs) // args.gradient_accumulation_steps)


def result_lines(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """The held-out reward before and after, in lines."""
    if not after:
        return []
    return [f"held-out reward {before['eval_reward']:.4f} before, {after['eval_reward']:.4f} after"]
