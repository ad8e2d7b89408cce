"""PPO against a reward: a rule, a Python function, or a reward model.

seodang ppo --model runs/sft --data prompts.jsonl --reward_model runs/reward --config recipes/ppo.yaml
accelerate launch recipes/ppo.py --model runs/sft --data questions.jsonl --reward exact_answer --reward length:40:words

logging_steps, save_steps and eval_steps count iterations; per_device_train_batch_size is how many answers go through the model at once.
"""

import sys
from dataclasses import dataclass, field

from transformers import AutoModelForSequenceClassification

from seodang.data.chat import set_chat_template
from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.prompts import PromptOptions, ScoringOptions
from seodang.recipes.options.rollouts import RolloutOptions
from seodang.recipes.options.training import Arguments, ModelOptions, RunOptions
from seodang.recipes.planning.options import PlanningOptions
from seodang.recipes.run.before_after import answer_rows, before_and_after, picture_line, print_once
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.training import (
    checkpoint_to_resume,
    complete_arguments,
    held_out_line,
    only_planned,
    refuse_metric,
    train_and_save,
)
from seodang.train.rewards.rules import combined
from seodang.train.run.crash_safe import Provenance
from seodang.train.run.run_page import draw_curves
from seodang.train.stages.ppo import MEASURED, PpoTrainer, ppo_trainer
from seodang.train.stages.ppo_settings import PpoSettings


@dataclass
class PpoArguments(Arguments):
    """transformers' arguments with defaults for PPO."""

    output_dir: str | None = field(default="runs/ppo", metadata={"help": "Folder of the checkpoints and the final model."})
    learning_rate: float = field(default=3e-6, metadata={"help": "The highest learning rate; with LoRA ten times as much does well."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Answers that go through the model at once, a process."})
    logging_steps: float = field(default=1, metadata={"help": "Iterations between two lines of the log."})
    save_steps: float = field(default=10, metadata={"help": "Iterations between two checkpoints."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})


@dataclass
class PolicyOptions:
    """How rewards are weighed, and the models beside the policy."""

    reward_weights: list[float] | None = field(default=None, metadata={"help": "Weight of each reward, the reward model's last; 1 without."})
    reference: str | None = field(default=None, metadata={"help": "Another model that the KL is taken to; by default the model as it is before training."})
    value_model: str | None = field(
        default=None, metadata={"help": "A reward model's folder as a critic of its own; without, the critic is a head on the policy."}
    )


@command
def main(argv: list[str] | None = None) -> int:
    classes = PromptOptions, ScoringOptions, PolicyOptions, RolloutOptions, PpoSettings, ModelOptions, RunOptions, PlanningOptions, PpoArguments
    data, scoring, policy, rollouts, settings, model, run, planning, args = parse(argv, *classes, prog="seodang ppo", description=__doc__)
    planning.begin(run)
    rollouts.refuse_vllm("ppo")
    if run.early_stopping_patience:
        raise UserError(f"early_stopping_patience {run.early_stopping_patience}: PPO runs its iterations to their end, leave it out")
    args = complete_arguments(args, model, run, evaluates=bool(data.eval_data or data.eval_fraction), best="eval_reward")
    refuse_metric(args, MEASURED)
    model.refuse_adapter()
    tokenizer = model.decoder_tokenizer()
    set_chat_template(tokenizer, data.chat_template)
    rows, held, counts = data.rows(tokenizer, args.seed)
    rewards = scoring.rewards(tokenizer, str(args.device), model.dtype, [*rows, *held])
    reward = combined(rewards, policy.reward_weights)
    origin = origin_of(data, scoring, policy, settings, model, run, args, rows=rows)
    resume = checkpoint_to_resume(args, run, origin)
    trainer = build(model, tokenizer, rows, held, reward, args, settings, policy, origin)
    if (code := only_planned(trainer, run, planning, counts, resume, stage=stage_lines(settings, rows, held, [each.__name__ for each in rewards]))) is not None:
        return code
    shown = held[: run.eval_samples]
    before, answers = trainer.evaluate() if held else {}, answer_rows(trainer, shown, settings.max_new_tokens)
    folder = train_and_save(trainer, resume)
    after = trainer.evaluate() if held else {}
    print_once(trainer, *before_and_after(tokenizer, shown, answers, answer_rows(trainer, shown, settings.max_new_tokens)))
    if trainer.is_world_process_zero():
        print_once(trainer, *result_lines(before, after), picture_line("curves", draw_curves(folder)), f"checkpoint      {folder}")
    return 0


def build(options: ModelOptions, tokenizer, rows, held, reward, args, settings: PpoSettings, policy: PolicyOptions, origin: Provenance) -> PpoTrainer:
    """Load the policy, and the reference and the critic where they are models of their own, and set up the trainer."""
    how = {"device": str(args.device), "dtype": options.dtype}
    model, _ = load(options.model, **how, **options.loading())
    reference = load(policy.reference, **how)[0] if policy.reference is not None else None
    value_model = None
    if policy.value_model is not None:
        value_model, _ = load(policy.value_model, **how, model_class=AutoModelForSequenceClassification, num_labels=1)
    return ppo_trainer(
        model, tokenizer, rows, reward, args, settings, eval_rows=held or None, lora=options.lora(), reference=reference, value_model=value_model,
        provenance=origin,
    )  # fmt: skip


def stage_lines(settings: PpoSettings, rows: list, held: list, rewards: list[str]) -> list[str]:
    """What the stage trains on and measures, in lines."""
    return [
        f"training        {settings.iterations} iterations of {settings.rollouts} answers to {len(rows):,} prompts, {settings.updates} updates each",
        *held_out_line(f"{len(held):,} prompts", held),
        f"reward          {' + '.join(rewards)}",
    ]


def result_lines(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """The held-out figures before and after, in lines."""
    if not after:
        return []
    kl = f"KL {after['eval_kl']:.3f} nats an answer, length {before['eval_length']:.1f} before, {after['eval_length']:.1f} after"
    return [f"held-out reward {before['eval_reward']:.4f} before, {after['eval_reward']:.4f} after; {kl}"]


if __name__ == "__main__":
    sys.exit(main())
