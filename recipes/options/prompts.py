"""Options for reading prompts that the model is to answer, with the columns that rewards read; and for the rewards."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from seodang.data.errors import UserError
from seodang.data.preference_rows import PreferenceCounts, prepare_prompts
from seodang.data.preferences import PROMPT_SHAPES
from seodang.infer.checkpoint.load import load
from seodang.recipes.options.parser import Repeated
from seodang.recipes.options.preference import read_rows
from seodang.recipes.options.record import FileOptions, check_held_out
from seodang.train.rewards.reward_function import check_columns
from seodang.train.rewards.rules import CheckedReward, model_reward, parse_rewards


@dataclass
class PromptOptions(FileOptions):
    """Where prompts come from and how they are read."""

    data: list[str] = field(metadata={"help": "Files, folders or hub names of prompts (prompt, question, instruction, messages) and columns."})
    eval_data: list[str] | None = field(default=None, metadata={"help": "Held-out sources of the same shapes."})
    eval_fraction: float = field(default=0.0, metadata={"help": "Without --eval_data: the share of prompts held out."})
    weights: list[float] | None = field(default=None, metadata={"help": "Share of each source in the mix."})
    shape: str | None = field(default=None, metadata={"help": "Record shape; recognised from the keys by default."})
    split: str = field(default="train", metadata={"help": "Which split of a hub dataset."})
    chat_template: str | None = field(default=None, metadata={"help": "A built-in template's name or a Jinja file, saved with the checkpoint."})
    literal: bool = field(default=True, metadata={"help": "Encode special-token text inside content as plain text."})
    max_prompt_length: int = field(default=512, metadata={"help": "Longer prompts are refused, or left out with --too_long drop."})
    too_long: str = field(default="error", metadata={"help": "error or drop: prompts longer than max_prompt_length."})

    def __post_init__(self):
        check_held_out(self.eval_fraction, self.eval_data)

    def rows(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], PreferenceCounts]:
        """Prompts to train on, held-out prompts, and the counts of what became of the records."""
        how = {"max_prompt_length": self.max_prompt_length, "literal": self.literal, "too_long": self.too_long}
        return read_rows(self, prepare_prompts, tokenizer, seed, PROMPT_SHAPES, **how)


@dataclass
class ScoringOptions:
    """What rewards answers."""

    reward: list[str] | None = field(
        default=None,
        metadata={
            "help": "May be given several times: exact_answer, format:PATTERN, length:TARGET[:UNIT], contains:TEXT or FILE.py:FUNCTION.",
            "action": Repeated,
        },
    )
    reward_model: str | None = field(default=None, metadata={"help": "Folder or hub name of a reward model, whose score is one more reward."})
    retokenise: bool = field(default=False, metadata={"help": "Let a reward model with another tokenizer read the answers' text."})

    def rewards(
        self, tokenizer: PreTrainedTokenizerBase, device: str, dtype: str, rows: Sequence[dict[str, Any]], given: Sequence[str] = ()
    ) -> list[CheckedReward]:
        """The rewards asked for, the reward model's last; raises UserError where there is none.

        Before a model is loaded, each must find the columns that it needs in the rows, or among what the trainer has `given`.
        """
        found = parse_rewards(self.reward or [])
        check_columns(found, rows, given)
        if self.reward_model is not None:
            judge, its_own = load(self.reward_model, device=device, dtype=dtype, model_class=AutoModelForSequenceClassification, num_labels=1)
            found.append(CheckedReward(model_reward(judge.requires_grad_(False), its_own, tokenizer, self.retokenise)))
        if not found:
            raise UserError("there is no reward to learn from: give --reward or --reward_model")
        return found
