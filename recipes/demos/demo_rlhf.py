"""Teach the default model to answer in the form that is asked for: SFT, reward model, PPO and DPO in turn, with a page of curves and samples.

seodang demo-rlhf --minutes 10

SFT shows the form that is asked for half of the time only, so following the prompt reliably is left to be learned from preferences. The rule by which
pairs are made is in `data/form_pairs.py`; PPO sees the reward model alone, and the rule tells whether that was worth following.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForSequenceClassification, set_seed

from seodang.data.errors import UserError
from seodang.data.form_pairs import demonstrations, form_preferences, form_reward
from seodang.data.formats import to_example
from seodang.data.json_text import read_json_lines
from seodang.data.labels import prepare
from seodang.data.preference_rows import prepare_preferences, prepare_prompts
from seodang.data.preferences import PromptExample, RankedPreference
from seodang.data.sample_data import sample_path
from seodang.infer.checkpoint.load import load
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.training import Arguments
from seodang.recipes.ppo import PpoArguments
from seodang.recipes.reward import RewardArguments
from seodang.train.maths.preference_losses import PreferenceSettings
from seodang.train.rewards.rules import model_reward
from seodang.train.rewards.scoring import score_answers
from seodang.train.rollouts.rollout import roll_out
from seodang.train.run.callbacks import TimeLimit
from seodang.train.run.crash_safe import Provenance
from seodang.train.run.run_page import Sample, draw_curves, write_page
from seodang.train.stages.dpo import dpo_trainer
from seodang.train.stages.ppo import ppo_trainer
from seodang.train.stages.ppo_settings import PpoSettings
from seodang.train.stages.reward import reward_trainer
from seodang.train.stages.sft import sft_trainer

SHARES = {"sft": 0.15, "reward": 0.2, "ppo": 0.4, "dpo": 0.15}  # of the minutes; the rest is for answering held-out prompts
SHOWN = 12
NEW_TOKENS = 24  # the longest sentences of the sample have 20
TITLES = {"sft": "SFT", "reward": "reward model", "ppo": "PPO", "dpo": "DPO"}


@dataclass
class DemoOptions:
    """The options of `seodang demo-rlhf`."""

    model: str = field(default="default", metadata={"help": "Folder, hub name or default (SmolLM2-135M-Instruct)."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights: auto, float32, bfloat16."})
    minutes: float = field(default=10.0, metadata={"help": "About how long all of it may take, loading aside."})
    heldout: int = field(default=192, metadata={"help": "Held-out prompts and pairs that everything is measured on."})
    rollouts: int = field(default=64, metadata={"help": "Answers an iteration of PPO."})
    seed: int = field(default=0, metadata={"help": "Of the pairs and of all trainings."})
    output_dir: str = field(default="runs/demo-rlhf", metadata={"help": "Folder of the checkpoints and the page."})

    def __post_init__(self):
        if self.heldout < 2 or self.minutes <= 0 or self.rollouts < 4 or self.rollouts % 4:
            raise UserError(
                f"heldout must be 2 or more, minutes above 0 and rollouts a multiple of 4, got {self.heldout}, {self.minutes} and {self.rollouts}"
            )


@command
def main(argv: list[str] | None = None) -> int:
    (options,) = parse(argv, DemoOptions, prog="seodang demo-rlhf", description=__doc__)
    demo = Demo(options)
    demo.sft()
    accuracy = demo.reward_model()
    demo.ppo()
    margins = demo.dpo()
    measured = {stage: demo.measured(stage) for stage in ("sft", "ppo", "dpo")}
    figures = list(lines(accuracy, margins, measured))
    samples = {f"Held-out prompts, before and after {TITLES[stage]}": demo.samples(measured["sft"], measured[stage]) for stage in ("ppo", "dpo")}
    console = Console()
    for heading, some in samples.items():
        console.print(table(heading, some))
    runs = {title: demo.folder(stage) for stage, title in TITLES.items()}
    page = write_page(Path(options.output_dir) / "page.html", runs, samples, title="Learning from preferences", figures=figures)
    print(*(f"{name:<48}{value}" for name, value in figures), page, sep="\n")
    return 0


@dataclass(frozen=True)
class Measured:
    """Sampled answers to the held-out prompts, and what the rule and the reward model make of them."""

    answers: list[str]
    rule: list[float]
    learned: list[float]


class Demo:
    """The four stages and their data; each stage begins from a checkpoint of an earlier one."""

    def __init__(self, options: DemoOptions):
        self.options, self.out = options, Path(options.output_dir)
        model, self.tokenizer = load(options.model, device=options.device, dtype=options.dtype)
        self.device = str(model.device)
        facts, held = triplets("geography"), triplets("geography_heldout")
        self.demonstrations = demonstrations(facts, options.seed)
        self.pairs, self.held_pairs = form_preferences(facts, options.seed), form_preferences(held, options.seed)[: options.heldout]
        self.held_prompts = self.prompts(self.held_pairs)

    def folder(self, stage: str) -> Path:
        """Where a stage's checkpoint and log lie."""
        return self.out / stage

    def load(self, stage: str, **how: Any):
        """The model and the tokenizer that a stage has saved."""
        return load(self.folder(stage), device=self.device, dtype=self.options.dtype, **how)

    # Rows

    def preferences(self, pairs: list[dict[str, str]]) -> list[dict[str, Any]]:
        """Pairs as rows to train on."""
        examples = []
        for pair in pairs:
            answers = [{"role": "assistant", "content": pair[side]} for side in ("chosen", "rejected")]
            examples.append(RankedPreference([{"role": "user", "content": pair["prompt"]}], answers, [0, 1]))
        return prepare_preferences(examples, self.tokenizer, max_length=512)[0]

    def prompts(self, pairs: list[dict[str, str]]) -> list[dict[str, Any]]:
        """The prompts of pairs as rows to answer, each with the form that it asks for."""
        examples = [PromptExample([{"role": "user", "content": pair["prompt"]}], {"form": pair["form"]}) for pair in pairs]
        return prepare_prompts(examples, self.tokenizer, max_prompt_length=512)[0]

    # Stages

    def sft(self) -> None:
        """Teach the answers, and the form that is asked for half of the time."""
        model, _ = load(self.options.model, device=self.device, dtype=self.options.dtype)
        rows, _ = prepare([to_example(record) for record in self.demonstrations], self.tokenizer, max_length=512)
        args = self.arguments(Arguments, "sft", learning_rate=1e-4, per_device_train_batch_size=16)
        trainer = sft_trainer(model, self.tokenizer, rows, args, provenance=self.origin(), callbacks=[self.limit("sft")])
        trainer.train()
        trainer.save_final()

    def reward_model(self) -> float:
        """Train it; return the share of held-out pairs that it gets right."""
        set_seed(self.options.seed)  # the head starts at random
        model, _ = self.load("sft", model_class=AutoModelForSequenceClassification, num_labels=1)
        args = self.arguments(RewardArguments, "reward", learning_rate=2e-5, per_device_train_batch_size=16)
        trainer = reward_trainer(
            model, self.tokenizer, self.preferences(self.pairs), args, eval_rows=self.preferences(self.held_pairs), provenance=self.origin(),
            callbacks=[self.limit("reward")],
        )  # fmt: skip
        trainer.train()
        accuracy = trainer.evaluate()["eval_accuracy"]
        trainer.save_final()
        return accuracy

    def ppo(self) -> None:
        """Learn from the reward model."""
        model, _ = self.load("sft")
        judge = self.load("reward", model_class=AutoModelForSequenceClassification, num_labels=1)
        settings = PpoSettings(
            iterations=1000, rollouts=self.options.rollouts, epochs=2, minibatches=2, max_new_tokens=NEW_TOKENS, kl_coefficient=0.02, missing_eos_penalty=1.0
        )
        size = self.options.rollouts // 2
        args = self.arguments(PpoArguments, "ppo", learning_rate=3e-5, per_device_train_batch_size=size, logging_steps=1)
        limit = self.limit("ppo", every=settings.updates)
        trainer = ppo_trainer(
            model, self.tokenizer, self.prompts(self.pairs), model_reward(*judge, self.tokenizer), args, settings, provenance=self.origin(), callbacks=[limit]
        )
        trainer.train()
        trainer.save_final()
        draw_curves(self.folder("ppo"))

    def dpo(self) -> tuple[dict[str, float], dict[str, float]]:
        """Train by the pairs themselves; return the held-out figures before and after."""
        model, _ = self.load("sft")
        args = self.arguments(Arguments, "dpo", learning_rate=3e-5, per_device_train_batch_size=16)
        trainer = dpo_trainer(
            model, self.tokenizer, self.preferences(self.pairs), args, PreferenceSettings(), eval_rows=self.preferences(self.held_pairs),
            provenance=self.origin(), callbacks=[self.limit("dpo")],
        )  # fmt: skip
        before = trainer.measure(trainer.eval_dataset)
        trainer.train()
        after = trainer.measure(trainer.eval_dataset)
        trainer.save_final()
        return before, after

    def arguments(self, kind: type, stage: str, **settings: Any):
        """A constant rate: how many steps fit into the time is not known before."""
        common = {"logging_steps": 2, "num_train_epochs": 3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "save_strategy": "no"}
        common |= {"seed": self.options.seed, "use_cpu": self.device == "cpu", "weight_decay": 0.0}
        return kind(str(self.folder(stage)), **(common | settings))

    def limit(self, stage: str, every: int = 1) -> TimeLimit:
        """What ends a stage when its share of the minutes is over."""
        return TimeLimit(60 * self.options.minutes * SHARES[stage], every)

    def origin(self) -> Provenance:
        """What the manifests say of where the checkpoints come from."""
        return Provenance(base=self.options.model, data="samples")

    # Measuring

    def measured(self, stage: str) -> Measured:
        """One sampled answer to each held-out prompt, with the same noise whatever the stage, judged by rule and reward model."""
        model, _ = self.load(stage)
        rollouts = roll_out(model, self.tokenizer, self.held_prompts, max_new_tokens=NEW_TOKENS, seed=("held out", self.options.seed))
        prompts, answers = [row["messages"] for row in self.held_prompts], [rollout.text for rollout in rollouts]
        rule = form_reward(prompts, answers, form=[row["columns"]["form"] for row in self.held_prompts])
        judge = self.load("reward", model_class=AutoModelForSequenceClassification, num_labels=1)
        return Measured(answers, rule, score_answers(*judge, prompts, answers))

    def samples(self, before: Measured, after: Measured) -> list[Sample]:
        """Some held-out prompts with the answers of two stages and what the reward model gives them."""
        prompts = [pair["prompt"] for pair in self.held_pairs]
        return [Sample(*each) for each in zip(prompts, before.answers, after.answers, before.learned, after.learned, strict=True)][:SHOWN]


def triplets(name: str) -> list[dict[str, str]]:
    """The records of a sample."""
    return read_json_lines(sample_path(name))


def lines(accuracy: float, margins: tuple[dict[str, float], dict[str, float]], measured: dict[str, Measured]) -> Iterator[tuple[str, str]]:
    """The figures of the demo, each with its name; behind a gain its standard error over the prompts."""
    yield "reward model, accuracy on held-out pairs", f"{accuracy:.3f}"
    for stage in ("ppo", "dpo"):
        for judge, name in (("learned", "learned reward"), ("rule", "form as asked for")):
            before, after = getattr(measured["sft"], judge), getattr(measured[stage], judge)
            yield f"{TITLES[stage]}, {name}, before and after", f"{fmean(before):.3f} {fmean(after):.3f} (gain {gain(before, after)})"
    for name in ("accuracy", "margin"):
        yield f"DPO, held-out {name}, before and after", " ".join(f"{each[name]:.3f}" for each in margins)


def gain(before: list[float], after: list[float]) -> str:
    """The mean gain with its standard error, in words."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    return f"{fmean(differences):+.3f} ± {stdev(differences) / len(differences) ** 0.5:.3f}"


def table(heading: str, samples: list[Sample]) -> Table:
    """Samples for the terminal."""
    drawn = Table("prompt", "before", "after", "reward", title=heading, show_lines=True)
    for each in samples:
        texts = (" ".join(text.split())[:120] for text in (each.prompt, each.before, each.after))
        drawn.add_row(*map(Text, texts), f"{each.reward_before:.2f} to {each.reward_after:.2f}")
    return drawn


if __name__ == "__main__":
    sys.exit(main())
