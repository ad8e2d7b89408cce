"""Options of `seodang tag`: the records, the tagger, what it finds."""

from dataclasses import dataclass, field

from peft import LoraConfig

from seodang.data.accounting import check_unusable
from seodang.data.errors import UserError
from seodang.data.tagging.records import AUTO, TagColumns
from seodang.data.tagging.schemes import OUTSIDE, SCHEMES
from seodang.recipes.options.record import FileOptions, check_held_out
from seodang.recipes.options.training import Arguments, ModelOptions


@dataclass
class TaggingOptions(FileOptions):
    """The records, and what of them are the tokens and the tags, or the text and the entities."""

    data: list[str] = field(metadata={"help": "Files, folders or hub names: {tokens, tags}, {text, entities}, CoNLL (.conll, .tsv); texts, with --predict."})
    eval_data: list[str] | None = field(default=None, metadata={"help": "Held-out sources of the same kind."})
    eval_fraction: float = field(default=0.0, metadata={"help": "Without --eval_data: the share of records held out."})
    split: str = field(default="train", metadata={"help": "Which split of a hub dataset."})
    text_column: str | None = field(default=None, metadata={"help": "The column of the text or the tokens; text, tokens or words by default."})
    label_column: str | None = field(default=None, metadata={"help": "The column of the tags or entities; tags, ner_tags, entities or spans by default."})
    scheme: str = field(default=AUTO, metadata={"help": "Of tags: IOB2 (BIO), IOB1 or BIOES (BILOU); auto takes the one that all tags of a source follow."})
    tag_names: list[str] | None = field(default=None, metadata={"help": "What tags that are numbers are called, in their order: O B-PER I-PER."})
    labels: list[str] | None = field(default=None, metadata={"help": "The labels of entities in their order; by default those that occur."})
    label_all_subwords: bool | None = field(
        default=None,
        metadata={"help": "Tag every token, not words by their first; by default where entities are given by characters.", "nargs": "?", "const": True},
    )
    max_length: int | None = field(default=None, metadata={"help": "Tokens that are read at once; without, as many as the model reads."})
    stride: int | None = field(default=None, metadata={"help": "Tokens that the windows of a longer text have in common; 32, of small windows a fourth."})
    unusable: str = field(default="drop", metadata={"help": "drop or error: records without a text or tags."})

    def __post_init__(self):
        check_unusable(self.unusable)
        check_held_out(self.eval_fraction, self.eval_data)
        schemes = {scheme.casefold(): scheme for scheme in (AUTO, *SCHEMES)} | {"bio": SCHEMES[0], "bilou": SCHEMES[2]}
        if self.scheme.casefold() not in schemes:
            raise UserError(f"scheme must be {AUTO}, {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}, got {self.scheme!r}")
        self.scheme = schemes[self.scheme.casefold()]
        for name in ("labels", "tag_names"):
            given = getattr(self, name) or ()
            if len(set(given)) < len(given):
                raise UserError(f"{name} names one twice: {' '.join(given)}")
        if tag := next((label for label in self.labels or () if label == OUTSIDE or label[:2] in ("B-", "I-")), None):
            raise UserError(f"labels are those of entities, as PER, without B- and I-, got {tag!r}")

    def tag_columns(self) -> TagColumns:
        """Which columns hold what, and how tags are read."""
        return TagColumns.of(self.text_column, self.label_column, self.columns, scheme=self.scheme, tag_names=tuple(self.tag_names or ()))


@dataclass
class TaggerOptions(ModelOptions):
    """Which model becomes a tagger, or is one."""

    model: str = field(default="default-encoder", metadata={"help": "Folder, hub name, default-encoder (all-MiniLM-L6-v2), or default, a decoder."})
    new_head: bool = field(default=False, metadata={"help": "Begin a tagger's head anew, for other labels than it knows."})

    def lora(self) -> LoraConfig | None:
        """peft's settings of the adapter asked for, None where all weights train."""
        lora = super().lora()
        if lora is not None:
            lora.task_type = "TOKEN_CLS"
        return lora


@dataclass
class TaggerArguments(Arguments):
    """transformers' own arguments with defaults that suit a small encoder."""

    output_dir: str | None = field(default="runs/tag", metadata={"help": "Folder of the checkpoints, the final model and the report."})
    learning_rate: float = field(default=1e-4, metadata={"help": "The highest learning rate; with LoRA ten times as much does well."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Texts a step and process, long ones by their windows."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Texts a pass of an evaluation."})
    warmup_steps: float = field(default=0.06, metadata={"help": "Steps, or below 1 the share of all, in which the learning rate rises."})
    weight_decay: float = field(default=0.01, metadata={"help": "By which weights are drawn to zero (AdamW)."})
    metric_for_best_model: str | None = field(default="eval_f1", metadata={"help": "By which figure of an evaluation the best checkpoint is told."})
