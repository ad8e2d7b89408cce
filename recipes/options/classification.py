"""Options of `seodang classify`: the records, the classifier, the predictions."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

from peft import LoraConfig

from seodang.data.accounting import check_unusable
from seodang.data.classification.encoding import CUTS
from seodang.data.classification.labels import MULTI, REGRESSION, SINGLE
from seodang.data.classification.records import TextColumns
from seodang.data.errors import UserError
from seodang.recipes.options.record import FileOptions, check_held_out
from seodang.recipes.options.training import Arguments, ModelOptions


@dataclass
class ClassificationOptions(FileOptions):
    """The records, and what of them is the text and what the label."""

    data: list[str] = field(metadata={"help": "Files, folders or hub names of records with a text and a label; with --predict texts alone."})
    eval_data: list[str] | None = field(default=None, metadata={"help": "Held-out sources of the same kind."})
    eval_fraction: float = field(default=0.0, metadata={"help": "Without --eval_data: the share of each class held out."})
    split: str = field(default="train", metadata={"help": "Which split of a hub dataset."})
    text_column: str | None = field(default=None, metadata={"help": "The column that holds the text; text by default."})
    pair_column: str | None = field(default=None, metadata={"help": "The column of the second text of a pair; text_pair, where there is one."})
    label_column: str | None = field(default=None, metadata={"help": "The column that holds the label; label by default."})
    multi_label: bool = field(default=False, metadata={"help": "A record has any number of labels: a list, or a text with commas between them."})
    regression: bool = field(default=False, metadata={"help": "The label is a number, and the number is learned."})
    labels: list[str] | None = field(default=None, metadata={"help": "The classes in their order; by default those that occur."})
    class_weights: list[str] | None = field(default=None, metadata={"help": "balanced, NAME=WEIGHT, or a number for each class in their order."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of a text at most; without, as many as the model reads."})
    cut: str = field(default="right", metadata={"help": "What a longer text loses: its right, its middle or its left. Such texts are counted."})
    unusable: str = field(default="drop", metadata={"help": "drop or error: records without a text or a label."})

    def __post_init__(self):
        check_unusable(self.unusable)
        check_held_out(self.eval_fraction, self.eval_data)
        if self.multi_label and self.regression:
            raise UserError("multi_label and regression are two kinds of labels: drop one of them")
        if self.regression and self.labels:
            raise UserError("regression has no classes that labels could name: drop one of them")
        if self.labels and len(set(self.labels)) < len(self.labels):
            raise UserError(f"labels names a class twice: {' '.join(self.labels)}")
        if self.cut not in CUTS:
            raise UserError(f"cut must be {', '.join(CUTS[:-1])} or {CUTS[-1]}, got {self.cut!r}")

    @property
    def problem(self) -> str:
        """What is learned, as transformers calls it."""
        return MULTI if self.multi_label else REGRESSION if self.regression else SINGLE

    def text_columns(self) -> TextColumns:
        """Which columns hold what."""
        return TextColumns.of(self.text_column, self.pair_column, self.label_column, self.columns)


@dataclass
class ClassifierOptions(ModelOptions):
    """Which model becomes a classifier, or is one, and what its head reads."""

    model: str = field(default="default-encoder", metadata={"help": "Folder, hub name, default-encoder (all-MiniLM-L6-v2), or default, a decoder."})
    pooling: str = field(default="auto", metadata={"help": "What the head reads: auto (as the architecture has it), cls, mean, last."})
    new_head: bool = field(default=False, metadata={"help": "Begin a classifier's head anew, for other labels than it knows."})

    def lora(self) -> LoraConfig | None:
        """peft's settings of the adapter asked for, None where all weights train."""
        lora = super().lora()
        if lora is not None:
            lora.task_type = "SEQ_CLS"
        return lora


@dataclass
class PredictionOptions:
    """With --predict: what becomes of the predictions."""

    predict: bool = field(default=False, metadata={"help": "Train nothing: say what a trained --model makes of the texts of --data, a line each."})
    output: str | None = field(default=None, metadata={"help": "With --predict: the file of JSON Lines; without, they are printed."})
    given: ClassVar[Collection[str]] = ()  # the options that were written down, set where they are parsed

    def __post_init__(self):
        if self.output and not self.predict:
            raise UserError("output is where predictions go: add --predict, or leave it out")

    def refuse_training(self, read: Collection[str]) -> None:
        """Raise UserError for options that were written down and are none of those that a prediction reads."""
        if ignored := sorted(set(self.given) - set(read)):
            raise UserError(f"{ignored[0]} is for training, and the model knows what it predicts: leave it out, or leave --predict out")


@dataclass
class ClassPredictionOptions(PredictionOptions):
    """The same, of classes."""

    threshold: float = field(default=0.5, metadata={"help": "Several labels: those at least as likely are taken."})

    def __post_init__(self):
        if not 0 < self.threshold < 1:
            raise UserError(f"threshold must be between 0 and 1, got {self.threshold}")
        super().__post_init__()


@dataclass
class ClassifierArguments(Arguments):
    """transformers' own arguments with defaults that suit a small encoder."""

    output_dir: str | None = field(default="runs/classify", metadata={"help": "Folder of the checkpoints, the final model and the report."})
    learning_rate: float = field(default=5e-5, metadata={"help": "The highest learning rate; with LoRA ten times as much does well."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Texts a step and process."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Texts a pass of an evaluation."})
    warmup_steps: float = field(default=0.06, metadata={"help": "Steps, or below 1 the share of all, in which the learning rate rises."})
    weight_decay: float = field(default=0.01, metadata={"help": "By which weights are drawn to zero (AdamW)."})
