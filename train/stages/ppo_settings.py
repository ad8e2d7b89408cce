"""What an iteration of PPO samples, how it learns from it, and how its updates are counted."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from ...data.errors import UserError
from ..maths.kl import KINDS, LARGEST_ERROR, AdaptiveKL, FixedKL


def option(default: Any, help: str) -> Any:
    """A field with what a command line says of it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class PpoSettings:
    """What an iteration samples and how it learns. Raises UserError for values out of range."""

    iterations: int = option(20, "How often the policy is sampled and updated.")
    rollouts: int = option(64, "Answers an iteration, of all processes together.")
    epochs: int = option(2, "Passes over an iteration's answers.")
    minibatches: int = option(4, "Updates a pass.")
    max_new_tokens: int = option(48, "An answer is cut off after so many tokens.")
    temperature: float = option(1.0, "Of the sampler, and of the policy that is trained.")
    kl_coefficient: float = option(0.05, "What a nat of KL to the reference costs.")
    kl_estimator: str = option("k1", "How the KL of a token is estimated: k1, k2 or k3 (Schulman 2020).")
    kl_target: float | None = option(None, "Nats an answer; with it the coefficient adapts (Ziegler et al. 2019).")
    kl_horizon: float = option(10_000.0, "Answers over which the coefficient adapts.")
    clip_range: float = option(0.2, "The policy's ratio to the one that sampled counts within 1 +- this.")
    value_clip_range: float = option(0.2, "A value counts within this of the old one.")
    value_coefficient: float = option(0.1, "Weight of the value loss.")
    entropy_coefficient: float = option(0.0, "Weight of the entropy, which is rewarded.")
    gamma: float = option(1.0, "Discount of later rewards.")
    lam: float = option(0.95, "Decay of generalised advantage estimation.")
    whiten_advantages: bool = option(True, "Give an iteration's advantages mean 0 and variance 1.")
    whiten_rewards: bool = option(False, "Give its rewards variance 1.")
    missing_eos_penalty: float = option(0.0, "Taken off the score of an answer that was cut off.")

    def __post_init__(self) -> None:
        for name in ("iterations", "rollouts", "epochs", "minibatches", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("temperature", "clip_range", "value_clip_range", "kl_horizon"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("kl_coefficient", "value_coefficient", "entropy_coefficient", "missing_eos_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be a number of at least 0, got {getattr(self, name)}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.kl_estimator not in KINDS:
            raise UserError(f"kl_estimator must be one of {', '.join(KINDS)}, got {self.kl_estimator!r}")
        if self.kl_target is not None and not self.rollouts * LARGEST_ERROR < self.kl_horizon:
            raise UserError(f"kl_horizon {self.kl_horizon} is too short for {self.rollouts} rollouts an iteration: set it to some tens of iterations' answers")
        if self.rollouts % self.minibatches:
            raise UserError(f"rollouts {self.rollouts} cannot be cut into {self.minibatches} equal minibatches: make it a multiple")

    @property
    def updates(self) -> int:
        """Optimizer steps an iteration."""
        return self.epochs * self.minibatches

    def controller(self) -> FixedKL | AdaptiveKL:
        """What holds and moves the coefficient of the KL."""
        if self.kl_target is None:
            return FixedKL(self.kl_coefficient)
        return AdaptiveKL(self.kl_coefficient, self.kl_target, self.kl_horizon)


def steps_in_iterations(args: TrainingArguments, settings: PpoSettings) -> TrainingArguments:
    """A copy of the arguments whose steps are updates: logging, saving and evaluating happen where an iteration ends.

    Raises UserError for sizes that do not divide each other, or steps that are no whole iterations.
    """
    args = copy.copy(args)
    share = settings.rollouts // settings.minibatches
    if share % args.world_size or (share // args.world_size) % args.per_device_train_batch_size:
        raise UserError(
            f"a minibatch of {share} answers cannot be cut into {args.world_size} processes x batches of {args.per_device_train_batch_size}: "
            "change --per_device_train_batch_size, --rollouts or --minibatches"
        )
    args.gradient_accumulation_steps = share // args.world_size // args.per_device_train_batch_size
    args.max_steps = settings.iterations * settings.updates
    for name in ("logging_steps", "save_steps", "eval_steps"):
        value = getattr(args, name)
        if value is not None and (value < 1 or value != int(value)):
            raise UserError(f"{name} counts iterations here and must be a whole number from 1, got {value}")
        setattr(args, name, None if value is None else int(value) * settings.updates)
    return args
