"""Fill in the masks of texts by an encoder: the likeliest tokens with their probabilities.

seodang fill-mask MODEL "The capital of [MASK] is Seoul."
seodang fill-mask MODEL --data texts.jsonl --columns text=sentence --output filled.jsonl

A mask is spelled as the checkpoint spells it ([MASK], <mask>). Of several masks --how says what a filling is: jointly, the product of what one reading
gives each; in_turn, one mask after another, the surest first. Files are read as they are needed, and written as they are done, as JSON Lines: each
text's fillings, and of several masks the candidates of each (masks).
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from seodang.data.errors import UserError
from seodang.data.files.sources import at_a_time, read
from seodang.data.formats import SHAPES, Text
from seodang.recipes.options.decoding import LoadedModel, option
from seodang.recipes.options.outputs import empty, open_output
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.record import FileOptions

TEXTS_A_CALL = 256  # read together and then written


@dataclass
class EncoderModel(LoadedModel):
    """Which encoder fills in, and where it is loaded."""

    model: str = field(metadata={"help": "Folder or hub name of an encoder with its masked-language head (BERT, RoBERTa, ModernBERT, ...)."})

    def open(self):
        """Load the encoder and its tokenizer; raises UserError for a model that fills in no masks, before its weights are read."""
        from seodang.infer.encoders.encoder import refuse_without_masks
        from seodang.infer.engine.checkpoint_settings import known_config

        if (config := known_config(self.model)) is not None:
            refuse_without_masks(config)
        return super().open()


@dataclass
class FillMask(FileOptions):
    """What is filled in, and what is said of it."""

    texts: list[str] = field(default_factory=list, metadata={"help": "The texts, with masks in them."})
    data: list[str] | None = field(default=None, metadata={"help": "Files, folders or hub names of records with a text instead."})
    split: str = option("Which split of a hub dataset.", "train")
    output: str | None = option("Write the fillings to this file, a line of JSON a text.")
    json: bool = option("Print them as such lines too.", False)
    top_k: int = option("How many fillings of each text.", 5)
    how: str = option("Several masks: jointly (the product of one reading) or in_turn (one after another, the surest first).", "jointly")
    targets: list[str] | None = field(default=None, metadata={"help": "The tokens to choose from; their probabilities stay those over the whole vocabulary."})

    def __post_init__(self) -> None:
        from seodang.infer.encoders.fill_mask import check_how, check_top_k

        if bool(self.texts) is bool(self.data):
            raise UserError('give texts ("The capital of [MASK] is Seoul.") or --data, one of them')
        check_top_k(self.top_k)
        check_how(self.how)
        self.source = None if self.data is None else read(self.data, streaming=True, split=self.split, shapes={"text": SHAPES["text"]}, **self.reading())

    def each(self) -> Iterator[Text]:
        """The texts with their places, from the beginning."""
        if self.source is not None:
            return iter(self.source)
        return (Text(text, f"text {number}") for number, text in enumerate(self.texts, 1))


@command
def main(argv: list[str] | None = None) -> int:
    model_options, options = parse(argv, EncoderModel, FillMask, prog="seodang fill-mask", positional=("model", "texts"), description=__doc__)
    from seodang.infer.encoders.encoder import Encoder
    from seodang.infer.encoders.fill_mask import MaskFiller

    with ExitStack() as files:
        output = files.enter_context(open_output(options.output)) if options.output else None
        model, tokenizer = model_options.open()
        filler = MaskFiller(Encoder(model, tokenizer), options.top_k, options.how, options.targets)
        for text in options.each():  # all are looked at before any is filled in; none is kept
            filler.read(text.text, text.where)
        if output:
            empty(output)
        show = shown if output is None and options.data is None and not options.json else lines_to(output or sys.stdout)
        for some in at_a_time(options.each(), TEXTS_A_CALL):
            for text, found in zip(some, filler.fill([filler.read(each.text, each.where) for each in some])):
                show(text, found)
    return 0


def shown(text: Text, found: Any) -> None:
    """Print a text and its fillings for people, the likeliest first."""
    print(text.text)
    told = lambda token: stripped if (stripped := token.strip()) and stripped.isprintable() else repr(token)
    tokens = [" ".join(told(each.token) for each in filling.candidates) for filling in found.fillings]
    width = max(map(len, tokens))
    for filling, names in zip(found.fillings, tokens):
        print(f"  {filling.probability:8.4f}  {names:<{width}}  {filling.text}")


def lines_to(output: Any) -> Callable[[Text, Any], None]:
    """What writes a text's fillings as a line of JSON, which whoever reads may have at once."""

    def write(text: Text, found: Any) -> None:
        line = {"record": text.where, "text": text.text, "fillings": [told(filling) for filling in found.fillings]}
        if len(found.marginals) > 1:
            line["masks"] = [[{"token": each.token, "id": each.id, "probability": each.probability} for each in column] for column in found.marginals]
        output.write(json.dumps(line, ensure_ascii=False) + "\n")
        output.flush()

    return write


def told(filling: Any) -> dict[str, Any]:
    """A filling as JSON: the text, how likely all masks are together, and of each its token, id and probability."""
    each = filling.candidates
    return {
        "text": filling.text, "probability": filling.probability, "logprob": filling.logprob, "tokens": [one.token for one in each],
        "ids": [one.id for one in each], "probabilities": [one.probability for one in each],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
