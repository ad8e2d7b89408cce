"""Learn a tokenizer from plain text: byte-level BPE, WordPiece or Unigram, as a folder that transformers loads.

seodang tokenizer --data texts/ --kind bpe --vocab_size 8192 --output_dir runs/tokenizer
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from seodang.data.errors import UserError
from seodang.data.text.span_corruption import sentinel_ids
from seodang.data.text.texts import DocumentTexts
from seodang.data.text.tokenizer_training import train_tokenizer
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.text import TextSources
from seodang.recipes.options.tokenizing import TokenizerOptions
from seodang.train.run.checkpoints import publish_into, start_staging


@dataclass
class OutputOptions:
    """Where it is written."""

    output_dir: str = field(default="runs/tokenizer", metadata={"help": "Folder of the tokenizer."})


@command
def main(argv: list[str] | None = None) -> int:
    text, options, output = parse(argv, TextSources, TokenizerOptions, OutputOptions, prog="seodang tokenizer", description=__doc__)
    settings, folder = options.settings(), Path(output.output_dir)
    if (folder / "config.json").is_file():
        raise UserError(f"{folder} holds a model, whose tokenizer would be lost: name another --output_dir")
    texts = DocumentTexts(text.data, **text.documents_read())
    tokenizer = train_tokenizer(texts, settings)
    save(tokenizer, folder)
    print(*lines(tokenizer), f"tokenizer       {folder}", sep="\n")
    return 0


def save(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer into a folder, whole or not at all."""
    written = start_staging(folder) / "final"
    tokenizer.save_pretrained(written)
    publish_into(written, folder)


def lines(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What a tokenizer is, in lines."""
    model, dropout = type(tokenizer.backend_tokenizer.model).__name__, getattr(tokenizer.backend_tokenizer.model, "dropout", None)
    sentinels = sentinel_ids(tokenizer)
    special = ", ".join(dict.fromkeys(token for token, id in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True) if id not in sentinels))
    special += f" and {len(sentinels)} sentinels" if sentinels else ""
    left_out = f", {dropout:.0%} of its merges left out at random in training text" if dropout else ""
    return [f"vocabulary      {len(tokenizer):,} tokens ({model}{left_out}), of them special {special}"]


if __name__ == "__main__":
    sys.exit(main())
