"""Options for reading records and labelling them: the same wherever data is looked at or trained on."""

from dataclasses import dataclass, field
from typing import Any

from seodang.data.columns import parse_columns
from seodang.data.errors import UserError
from seodang.data.files.text_files import checked_encoding
from seodang.recipes.options.tasks import TaskOptions


def check_held_out(eval_fraction: float, elsewhere: Any, named: str = "eval_data") -> None:
    """Raise UserError for a share of records that cannot be held out, and for one beside something `elsewhere` that it does not go with."""
    if not 0 <= eval_fraction < 1:
        raise UserError(f"eval_fraction must be in [0, 1), got {eval_fraction}")
    if eval_fraction and elsewhere:
        raise UserError(f"eval_fraction {eval_fraction} does not go with {named}: drop one of them")


@dataclass
class FileOptions:
    """How files are read that are not in UTF-8, or whose columns have other names."""

    encoding: str | None = field(default=None, kw_only=True, metadata={"help": "Of text files that are not UTF-8 and have no byte order mark: cp949, say."})
    columns: list[str] | None = field(
        default=None, kw_only=True, metadata={"help": "KEY=COLUMN, as instruction=question output=answer: which column holds what a shape reads."}
    )

    def reading(self) -> dict[str, Any]:
        """What `read` has to know of files. Raises UserError for an encoding that there is not, and for what names no column."""
        return {"encoding": self.encoding and checked_encoding(self.encoding), "columns": parse_columns(self.columns)}


AUTO, NEVER = "auto", "never"
NO_FOLDERS = {"", AUTO, NEVER, "no", "none", "false", "off", "yes", "true", "on"}  # in any case of letters: what is meant by them is not a folder of that name


@dataclass
class RecordOptions(TaskOptions, FileOptions):
    """Where records come from and how they are labelled."""

    data: list[str] = field(metadata={"help": "Files, folders or hub names: triplets, prompt-completion, messages, ShareGPT or text."})
    weights: list[float] | None = field(default=None, metadata={"help": "Share of each source in the mix."})
    shape: str | None = field(default=None, metadata={"help": "Record shape; recognised from the keys by default."})
    split: str = field(default="train", metadata={"help": "Which split of a hub dataset."})
    chat_template: str | None = field(default=None, metadata={"help": "A built-in template's name or a Jinja file, saved with the checkpoint."})
    max_length: int = field(default=1024, metadata={"help": "Longer records lose context on the left, never the answer."})
    train_on: str = field(default="assistant", metadata={"help": "assistant (every answer), last (the last one) or all (prompts too)."})
    literal: bool = field(default=True, metadata={"help": "Encode special-token text inside content as plain text."})
    empty_answers: str = field(default="error", metadata={"help": "error or drop."})
    unusable: str = field(default="drop", metadata={"help": "drop or error: records in which nothing can be learned."})

    def labelling(self) -> dict[str, Any]:
        """What `prepare` has to know beside the records and the tokenizer."""
        names = ("max_length", "train_on", "literal", "empty_answers", "unusable")
        return {name: getattr(self, name) for name in names}


@dataclass
class RowOptions(RecordOptions):
    """Where rows of records are prepared on disk, and by how many processes."""

    row_cache: str = field(
        default=AUTO, kw_only=True, metadata={"help": "Rows prepared once on disk: auto (of large files, in the cache folder), never, or a folder."}
    )
    num_proc: int | None = field(default=None, kw_only=True, metadata={"help": "Processes that prepare rows on disk; as many as there are cores by default."})

    def __post_init__(self):
        if self.num_proc is not None and self.num_proc < 1:
            raise UserError(f"num_proc must be at least 1, got {self.num_proc}")
        if self.row_cache not in (AUTO, NEVER) and self.row_cache.strip().lower() in NO_FOLDERS:
            raise UserError(f"row_cache must be {AUTO}, {NEVER} or a folder, got {self.row_cache!r}")
