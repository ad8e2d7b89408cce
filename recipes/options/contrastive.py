"""Options of `seodang contrastive`: the pairs, the encoder, what it learns by."""

from dataclasses import dataclass, field

from seodang.data.accounting import check_unusable
from seodang.data.errors import UserError
from seodang.recipes.options.record import FileOptions, check_held_out
from seodang.recipes.options.training import Arguments


@dataclass
class PairOptions(FileOptions):
    """The pairs, and what is held out of them."""

    data: list[str] = field(metadata={"help": "Files, folders or hub names: anchor, positive[, negative]; query, document; sentence1, sentence2[, score]."})
    eval_data: list[str] | None = field(default=None, metadata={"help": "Held-out sources of the same kind."})
    eval_fraction: float = field(default=0.0, metadata={"help": "Without --eval_data: the share of pairs held out, those of one anchor together."})
    split: str = field(default="train", metadata={"help": "Which split of a hub dataset."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of a text at most; without, as many as the model says. Longer ones are counted."})
    min_score: float | None = field(default=None, metadata={"help": "Of pairs with a score: from which one on two texts belong together."})
    unusable: str = field(default="drop", metadata={"help": "drop or error: records with an empty text, or with one text twice."})

    def __post_init__(self):
        check_unusable(self.unusable)
        check_held_out(self.eval_fraction, self.eval_data)


@dataclass
class EncoderOptions:
    """Which encoder, where, and how its vectors are made."""

    model: str = field(default="default-encoder", metadata={"help": "Folder, hub name, or default-encoder (all-MiniLM-L6-v2)."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights: auto, float32, bfloat16, float16."})
    pooling: str | None = field(default=None, metadata={"help": "mean, cls, max, lasttoken: for a folder that does not say (mean)."})
    normalise: bool | None = field(default=None, metadata={"help": "Vectors of length 1; by default what the folder says.", "nargs": "?", "const": True})


@dataclass
class ContrastiveOptions:
    """What the encoder learns by."""

    temperature: float = field(default=0.05, metadata={"help": "What cosines are divided by: the lower, the more the nearest negatives count."})
    symmetric: bool = field(default=False, metadata={"help": "Have each text find its anchor too."})

    def __post_init__(self):
        if not self.temperature > 0:
            raise UserError(f"temperature must be above 0, got {self.temperature}")


@dataclass
class ContrastiveArguments(Arguments):
    """transformers' own arguments with defaults that suit a small encoder."""

    output_dir: str | None = field(default="runs/contrastive", metadata={"help": "Folder of the checkpoints and the final encoder."})
    learning_rate: float = field(default=2e-5, metadata={"help": "The highest learning rate."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Pairs a step and process, each other's negatives; accumulation adds none."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Pairs a batch of the held-out loss, and texts a pass."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Times through the data."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps, or below 1 the share of all, in which the learning rate rises."})
