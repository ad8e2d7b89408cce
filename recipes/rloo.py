"""RLOO: REINFORCE with a leave-one-out baseline, the mean reward of a prompt's other answers.

seodang rloo --data questions.jsonl --reward exact_answer --config recipes/rloo.yaml
accelerate launch recipes/rloo.py --data questions.jsonl --reward length:12 --reward mine.py:polite --reward_weights 1 0.5
"""

import sys
from dataclasses import dataclass, field

from trl import RLOOConfig

from seodang.recipes.options.parser import command
from seodang.recipes.options.training import Arguments
from seodang.recipes.run.group import run_groups
from seodang.train.stages.grpo import rloo_trainer


@dataclass
class RlooArguments(Arguments, RLOOConfig):
    """trl's RLOOConfig with the defaults of our other stages: the weights' own dtype, nothing computed twice."""

    output_dir: str | None = field(default="runs/rloo", metadata={"help": "Folder of the checkpoints and the final model."})
    learning_rate: float = field(default=1e-6, metadata={"help": "The highest learning rate; with LoRA ten times as much does well."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Times through the prompts."})


@command
def main(argv: list[str] | None = None) -> int:
    return run_groups(argv, RlooArguments, rloo_trainer, "seodang rloo", __doc__)


if __name__ == "__main__":
    sys.exit(main())
