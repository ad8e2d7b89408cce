"""Learning from human feedback in rounds: sample answers, have them ranked, train a reward model on the rankings, run PPO against it.

seodang rlhf --config recipes/rlhf.yaml --model runs/sft --data prompts.jsonl --ranker person
accelerate launch recipes/rlhf.py --config recipes/rlhf.yaml --ppo.learning_rate 1e-6

Options of the reward model's training are those of `seodang reward` behind --reward., those of PPO of `seodang ppo` behind --ppo.
Started again with the same options, it goes on where it stopped.
"""

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seodang.data.errors import UserError
from seodang.data.files.sources import read
from seodang.data.preference_rows import prepare_prompts
from seodang.data.preferences import PROMPT_SHAPES
from seodang.infer.checkpoint.load import is_adapter, load_tokenizer, resolve
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.rankers import FORMS, name_ranker
from seodang.recipes.options.record import FileOptions
from seodang.recipes.options.sections import split_sections
from seodang.recipes.options.training import ModelOptions
from seodang.recipes.ppo import PpoArguments
from seodang.recipes.reward import RewardArguments
from seodang.recipes.run.identity import content_of, environment_of, options_of
from seodang.recipes.run.one_writer import only_writer
from seodang.recipes.run.rounds import Rounds, share_out
from seodang.recipes.run.training import ANOTHER
from seodang.train.rewards.ranking import RankingStopped
from seodang.train.rewards.reward_function import check_columns
from seodang.train.stages.ppo_settings import PpoSettings

REWARD_FROM = ("start", "previous")
POLICY_PROMPTS = ("all", "half")


@dataclass
class RlhfOptions(FileOptions):
    """The rounds, their prompts and who ranks."""

    data: list[str] = field(metadata={"help": "Files, folders or hub names of prompts: {prompt} and any columns that a ranker reads."})
    ranker: str = field(metadata={"help": f"Who ranks: {FORMS}."})
    rounds: int = field(default=2, metadata={"help": "How often answers are sampled, ranked and learned from."})
    samples: int = field(default=4, metadata={"help": "Answers sampled to a prompt; the same twice counts once."})
    ranked_prompts: int = field(default=256, metadata={"help": "Prompts a round whose answers are ranked."})
    heldout_prompts: int = field(default=64, metadata={"help": "Prompts that nothing is trained on, answered after each round."})
    policy_prompts: str = field(default="all", metadata={"help": "PPO's prompts: all that are not held out, or half, the other half being ranked."})
    reward_from: str = field(default="start", metadata={"help": "Each round's reward model begins as the start model, or as the previous one."})
    reward_heldout: float = field(default=0.1, metadata={"help": "Share of the ranked prompts held out to measure the reward model."})
    max_prompt_length: int = field(default=512, metadata={"help": "Longer prompts are refused, or left out with --too_long drop."})
    too_long: str = field(default="error", metadata={"help": "error or drop: prompts longer than max_prompt_length."})
    output_dir: str = field(default="runs/rlhf", metadata={"help": "Folder of the rounds and of the final policy."})
    seed: int = field(default=0, metadata={"help": "Of the split, the samples and both trainings."})
    allow_changes: list[str] | None = field(
        default=None, metadata={"help": "Options that may differ from those that the folder was begun with, or all; phases that are done stay as they are."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Print the plan and stop."})

    def __post_init__(self):
        for name, least in (("rounds", 1), ("samples", 2), ("ranked_prompts", 2), ("heldout_prompts", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, allowed in (("policy_prompts", POLICY_PROMPTS), ("reward_from", REWARD_FROM)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0 <= self.reward_heldout < 1:
            raise UserError(f"reward_heldout must be in [0, 1), got {self.reward_heldout}")


@command
def main(argv: list[str] | None = None) -> int:
    words, sections = split_sections(sys.argv[1:] if argv is None else argv, ["reward", "ppo"])
    options, model = parse(words, RlhfOptions, ModelOptions, prog="seodang rlhf", description=__doc__)
    reward_args, settings, ppo_args = read_sections(sections, options, model)
    if is_adapter(resolve(model.model)):
        raise UserError(f"{model.model} is an adapter: merge it first, `seodang export {model.model} FOLDER`, and start from that folder")
    if model.lora_r and options.reward_from == "previous":
        raise UserError("reward_from previous would put one adapter on another: use start, or train all weights (--lora_r 0)")
    ranker = name_ranker(options.ranker)
    tokenizer = load_tokenizer(model.model)
    how = {"max_prompt_length": options.max_prompt_length, "too_long": options.too_long}
    rows, counts = prepare_prompts(read(options.data, shapes=PROMPT_SHAPES, **options.reading()), tokenizer, **how)
    check_columns([] if ranker.reward is None else [ranker.reward], rows)
    prompts = share_out(rows, options.heldout_prompts, options.policy_prompts, options.seed)
    rounds = Rounds(options, model, ranker, tokenizer, prompts, reward_args, ppo_args, settings, rounds_identity(options, model, reward_args, settings, ppo_args, rows))
    rounds.print_once(*counts.lines(), *rounds.plan())
    if options.dry_run:
        return 0
    try:
        with only_writer(Path(options.output_dir), ANOTHER) if rounds.ppo_args.process_index == 0 else nullcontext():
            folder = rounds.run()
    except RankingStopped:
        rounds.print_once("stopped; what was ranked is kept, and the same command goes on from there")
        return 0
    rounds.print_once(f"page            {Path(options.output_dir) / 'page.html'}", f"checkpoint      {folder}")
    return 0


def read_sections(sections: dict[str, list[str]], options: RlhfOptions, model: ModelOptions):
    """The reward model's arguments, PPO's settings and its arguments; folders, seeds and the device are the rounds' own.

    Raises UserError for one of those among them.
    """
    own_words = ["--output_dir", options.output_dir, *(["--use_cpu", "true"] if model.device == "cpu" else [])]
    for name, words in sections.items():
        for own in ("output_dir", "seed"):
            if f"--{own}" in words:
                raise UserError(f"--{name}.{own} is set by the rounds: give --{own}")
    (reward_args,) = parse([*own_words, *sections["reward"]], RewardArguments, prog="seodang rlhf", description=None)
    settings, ppo_args = parse([*own_words, *sections["ppo"]], PpoSettings, PpoArguments, prog="seodang rlhf", description=None)
    return reward_args, settings, ppo_args


def rounds_identity(options: RlhfOptions, model: ModelOptions, reward_args: RewardArguments, settings: PpoSettings, ppo_args: PpoArguments, rows) -> dict[str, Any]:
    """What decides how the rounds go; a folder is only gone on with where it is the same. There may be more rounds than were asked for first."""
    own = {name: value for name, value in options_of(options, model).items() if name != "rounds"}
    sections = {**options_of(reward_args, section="reward."), **options_of(settings, ppo_args, section="ppo.")}
    return {**own, **environment_of(model.dtype, ppo_args), "rows": content_of(rows), **sections}


if __name__ == "__main__":
    sys.exit(main())
