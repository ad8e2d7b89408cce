"""Options of how prompts out of records are put to a model, whoever it is."""

from dataclasses import dataclass
from typing import ClassVar

from seodang.data.errors import UserError
from seodang.recipes.options.decoding import option
from seodang.recipes.options.record import FileOptions


@dataclass
class AskingOptions(FileOptions):
    """How prompts are put, and how many at a time."""

    token_ids: ClassVar[bool] = False  # whether each answer's are wanted too

    raw: bool = option("Continue the prompts as they stand: no chat template (for base models).", False)
    literal: bool | None = option("What looks like a control token in a prompt is text (true) or the token; text, but for --raw.")
    source_prefix: str = option("Encoder-decoders: a text before every source, as in training.", "")
    max_source_length: int | None = option("Encoder-decoders: longer sources lose their end, and are counted; without, they are refused.")
    batch_size: int = option("Answers that grow at the same time; the others wait.", 64)

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.max_source_length is not None and self.max_source_length < 2:
            raise UserError(f"max_source_length must be at least 2, got {self.max_source_length}")
