"""What the commands of Diffusion-LM do alike: read texts, with labels or without, and turn them into rows of words; what their runs are known by."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainingArguments

from seodang.data.accounting import Accounting
from seodang.data.errors import UserError
from seodang.data.files.sources import read
from seodang.data.formats import SHAPES, Text
from seodang.infer.diffusion_lm.words import filled, ids_of
from seodang.recipes.options.record import FileOptions, check_held_out
from seodang.recipes.options.training import hold_out
from seodang.recipes.run.identity import content_of, environment_of, options_of
from seodang.train.diffusion_lm.training import PARADIGM
from seodang.train.run.crash_safe import Provenance

TOO_LONG = ("error", "drop")


@dataclass
class TextOptions(FileOptions):
    """Which texts are learned, and which are held out."""

    data: list[str] = field(metadata={"help": "Files, folders or hub names of records with a text (--columns text=COLUMN)."})
    eval_data: list[str] | None = field(default=None, metadata={"help": "Held-out sources of the same kind."})
    eval_fraction: float = field(default=0.0, metadata={"help": "Without --eval_data: the share of texts held out."})
    split: str = field(default="train", metadata={"help": "Which split of a hub dataset."})
    too_long: str = field(default="error", metadata={"help": "error or drop: texts longer than the model, their end counted."})

    def __post_init__(self):
        check_held_out(self.eval_fraction, self.eval_data)
        if self.too_long not in TOO_LONG:
            raise UserError(f"too_long must be error or drop, got {self.too_long!r}")

    def examples(self, seed: int, shape: str = "text") -> tuple[list[Text], list[Text]]:
        """The texts to learn, and those held out."""
        how = {"shapes": FORMS, "shape": shape, "split": self.split, **self.reading()}
        examples = list(read(self.data, **how))
        held = list(read(self.eval_data, **how)) if self.eval_data else []
        return hold_out(examples, self.eval_fraction, seed) if self.eval_fraction else (examples, held)


@dataclass
class LabelledText(Text):
    """A text and the name of its class."""

    label: str = ""


def labelled(record: Mapping[str, Any]) -> LabelledText:
    """{text, label}: a label may be a text, a number or a yes or no."""
    text, label = SHAPES["text"][1](record), record.get("label")
    if not isinstance(label, (str, int)):
        raise UserError(f"label must be a text or a whole number, got {label!r}: name its column, --columns label=COLUMN")
    return LabelledText(text.text, label=str(label))


FORMS = {"labelled": (("text", "label"), labelled), "text": SHAPES["text"]}


@dataclass
class TextCounts(Accounting):
    """What became of texts, and how many of their words have an embedding."""

    words: int = 0
    unknown: int = 0  # words that are too rare, or that training has not seen

    def lines(self) -> list[str]:
        """The counts for people."""
        held = [] if self.held_out is None else [f"held out        {self.held_out.kept:,} texts, {self.held_out.known()}"]
        return [self.records_line(), f"words           {self.known()}", *self.lost_lines(), *held]

    def known(self) -> str:
        """How many words there are, and how many are unknown."""
        return f"{self.words:,} words, {self.unknown:,} of them outside the vocabulary"


def rows_of(examples: Iterable[Text], tokenizer: PreTrainedTokenizerBase, length: int, too_long: str) -> tuple[list[dict[str, Any]], TextCounts]:
    """Rows of texts, their ends behind them and filled up to the model's length, and what became of the records.

    Raises UserError for a text that is longer, unless such are dropped.
    """
    rows, counts = [], TextCounts()
    for example in examples:
        ids, made, reasons = ids_of(example.text, tokenizer), [], Counter()
        if not ids:
            reasons["no words"] = 1
        elif len(ids) < length:
            label = {"label": example.label} if isinstance(example, LabelledText) else {}
            made = [{"input_ids": filled(ids, length, tokenizer), "where": example.where, **label}]
            counts.words += len(ids)
            counts.unknown += ids.count(tokenizer.unk_token_id)
        elif too_long == "error":
            words = f"{len(ids)} words and their end are longer than the model, which has {length} positions"
            raise UserError(f"{example.where}: {words}: raise --length, or leave such texts out with --too_long drop")
        else:
            reasons[f"longer than {length - 1} words"] = 1
        counts.count_record(made, reasons, where=example.where, taken=example.taken)
        rows += made
    counts.refuse_empty()
    return rows, counts


def origin(*parsed: Any, rows: Iterable[Mapping[str, Any]], base: str = "") -> Provenance:
    """What such a run is known by, from its options, a TrainingArguments the last of them, and from its rows."""
    args: TrainingArguments = parsed[-1]
    content = content_of(rows)
    return Provenance(base, content, PARADIGM, options_of(*parsed) | environment_of("float32", args) | {"rows": content})
