"""Options of the commands that learn from plain text: where it comes from, what is held out of it, and how it is packed."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from seodang.data.errors import UserError
from seodang.data.text.documents import check_documents
from seodang.data.text.store import TokenStore, token_store
from seodang.recipes.options.record import FileOptions, check_held_out


@dataclass
class TextSources(FileOptions):
    """Where plain text comes from."""

    data: list[str] = field(metadata={"help": "Files or folders of text (.txt, or tables and JSON with a column text), or hub names."})
    documents: str = field(default="file", kw_only=True, metadata={"help": "What a document is in .txt files: file, line or paragraph."})
    split: str = field(default="train", kw_only=True, metadata={"help": "Which split of a hub dataset."})

    def __post_init__(self):
        check_documents(self.documents, self.reading()["columns"])

    def documents_read(self) -> dict[str, Any]:
        """What `read_documents` has to know beside the sources."""
        return {"documents": self.documents, "split": self.split, **self.reading()}


@dataclass
class TextOptions(TextSources):
    """Plain text that is learned from."""

    eval_data: list[str] | None = field(default=None, metadata={"help": "Held-out text of the same kinds."})
    eval_fraction: float = field(default=0.0, metadata={"help": "Without --eval_data: the share of documents held out."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of a row; longer documents go on in another. By default 512, or what the model takes."})
    text_cache: str | None = field(default=None, metadata={"help": "Folder of the encoded text, which other runs reuse; in output_dir by default."})

    def __post_init__(self):
        super().__post_init__()
        check_held_out(self.eval_fraction, self.eval_data)
        if self.max_length is not None and self.max_length < 1:
            raise UserError(f"max_length must be at least 1, got {self.max_length}")

    def row_length(self, limit: int | None, default: int = 512) -> int:
        """How many tokens a row has, where the model takes so many. Raises UserError for more than it takes."""
        if self.max_length is not None and limit is not None and self.max_length > limit:
            raise UserError(f"max_length {self.max_length} is more than the model's context of {limit}: set {limit} or less, longer documents go on in further pieces")
        return self.max_length or min(default, limit or default)

    def store(self, sources: list[str], tokenizer: PreTrainedTokenizerBase, output_dir: str, *, words: bool = False) -> tuple[TokenStore, str]:
        """The tokens of some sources, and what there is to say about where they lie."""
        cache = Path(os.path.expanduser(self.text_cache or Path(output_dir) / "text"))
        store, was_there = token_store(sources, tokenizer, cache, words=words, **self.documents_read())
        return store, f"encoded text    {store.folder}, {store.size / 2**20:.1f} MiB{', as a run before left it' if was_there else ''}"
