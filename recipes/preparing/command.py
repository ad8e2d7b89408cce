"""`seodang prepare --data`: the rows of records, made on disk before anything trains on them."""

from dataclasses import dataclass, field

from seodang.data.chat import set_chat_template
from seodang.data.formats import SHAPES
from seodang.infer.checkpoint.load import load_tokenizer
from seodang.recipes.options.record import RowOptions
from seodang.recipes.preparing.rows import rows_on_disk


@dataclass
class RowsToPrepare(RowOptions):
    """Whose rows are made on disk."""

    data: list[str] | None = field(default=None, metadata={"help": "Files, folders or hub names whose rows are prepared on disk, for training to map."})
    model: str = field(default="default", metadata={"help": "Whose tokenizer and template make rows: a folder, hub name or default."})
    packing: bool = field(default=False, metadata={"help": "Fill rows of max_length with several records, kept apart."})
    streaming: bool = field(default=False, metadata={"help": "Read a hub dataset while it is prepared, and do not download it before."})


def prepare_rows(options: RowsToPrepare) -> int:
    """Make the rows that `seodang sft` would train on with these options, and say what became of the records and where they lie."""
    tokenizer = load_tokenizer(options.model)
    set_chat_template(tokenizer, options.chat_template)
    made = rows_on_disk(options, tokenizer, options.shapes(SHAPES), packing=options.packing, streaming=options.streaming)
    counts, packed = made.rows.counts, f"packed          {len(made.rows):,} rows of up to {options.max_length} tokens"
    print(*counts.lines(), *[packed] * options.packing, *made.lines, sep="\n")
    return 0
