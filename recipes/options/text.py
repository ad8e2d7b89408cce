"""Options for reading plain text: the same for a tokenizer and for training on documents."""

from dataclasses import dataclass, field
from typing import Any

from seodang.data.errors import UserError
from seodang.data.text.documents import check_documents
from seodang.recipes.options.record import FileOptions


@dataclass
class TextOptions(FileOptions):
    """Where documents come from."""

    data: list[str] = field(metadata={"help": "Plain text, or records with a text: files, folders, patterns or hub names."})
    documents: str = field(default="file", metadata={"help": "What a document is in plain text: file, line or paragraph."})
    split: str = field(default="train", metadata={"help": "Which split of a hub dataset."})

    def __post_init__(self):
        check_documents(self.documents)

    def reading(self) -> dict[str, Any]:
        """What `read_documents` has to know beside the sources. Raises UserError for a column under another key than text."""
        reading = super().reading()
        check_documents(self.documents, reading["columns"])
        return {"documents": self.documents, "split": self.split, **reading}


@dataclass
class TrainingTextOptions(TextOptions):
    """What is trained on, what is held out of it, and how long the rows are."""

    eval_data: list[str] | None = field(default=None, metadata={"help": "Held-out sources of the same kinds."})
    eval_fraction: float = field(default=0.0, metadata={"help": "Without --eval_data: the share of documents held out."})
    max_length: int = field(default=512, metadata={"help": "Tokens of a row, which holds several documents, kept apart, or a part of one."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.eval_fraction < 1:
            raise UserError(f"eval_fraction must be in [0, 1), got {self.eval_fraction}")
        if self.eval_fraction and self.eval_data:
            raise UserError(f"eval_fraction {self.eval_fraction} does not go with eval_data: drop one of them")
