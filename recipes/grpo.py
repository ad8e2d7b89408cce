"""GRPO: each prompt is answered several times, and what is rewarded above its group's mean becomes likelier.

seodang grpo --data questions.jsonl --reward exact_answer --config recipes/grpo.yaml
accelerate launch recipes/grpo.py --data questions.jsonl --reward length:12 --reward mine.py:polite --reward_weights 1 0.5
"""

import sys
from dataclasses import dataclass, field

from trl import GRPOConfig

from seodang.recipes.options.parser import command
from seodang.recipes.options.training import Arguments
from seodang.recipes.run.group import run_groups
from seodang.train.stages.grpo import grpo_trainer


@dataclass
class GrpoArguments(Arguments, GRPOConfig):
    """trl's GRPOConfig with the defaults of our other stages: the weights' own dtype, nothing computed twice."""

    output_dir: str | None = field(default="runs/grpo", metadata={"help": "Folder of the checkpoints and the final model."})
    learning_rate: float = field(default=1e-6, metadata={"help": "The highest learning rate; with LoRA ten times as much does well."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Times through the prompts."})


@command
def main(argv: list[str] | None = None) -> int:
    return run_groups(argv, GrpoArguments, grpo_trainer, "seodang grpo", __doc__)


if __name__ == "__main__":
    sys.exit(main())
