"""Turn texts into vectors, or find the texts of a file that are nearest to a query.

seodang embed --data reviews.jsonl --column text --output vectors.npy
seodang embed --data reviews.jsonl --search "a comedy that is not funny" --top_k 5
seodang embed --data reviews.jsonl --search questions.txt --output found.jsonl

Row n of the file is the vector of record n. What an interrupted run has written is gone on with by --resume. A search compares by cosine, with every text.
Where the model has prompts of its own, "query" stands before what is searched for and "document" before the texts of the file.
"""

import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seodang.data.classification.records import TextColumns, TextRecord, text_records
from seodang.data.errors import UserError
from seodang.data.files.sources import READERS, at_a_time
from seodang.data.files.text_files import lines_of
from seodang.infer.checkpoint.load import load
from seodang.infer.encoders.embedding import SentenceEncoder, TextAccount, embed, makes_vectors
from seodang.infer.encoders.search import Hit, Nearest
from seodang.infer.encoders.tagging import is_tagger
from seodang.infer.engine.embedding import embedding_size
from seodang.recipes.options.contrastive import EncoderOptions
from seodang.recipes.options.decoding import option, say_dtype
from seodang.recipes.options.outputs import empty, open_output
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.record import FileOptions
from seodang.recipes.run.stopping import Stopping
from seodang.recipes.run.vectors_file import VectorsFile, kind

WINDOW = 2048  # texts that are held at a time, and sorted by length
DOCUMENTS = ("document", "passage", "corpus")  # prompts that sentence-transformers puts before what is searched


@dataclass
class Embed(FileOptions):
    """The texts, and what becomes of their vectors."""

    data: list[str] = field(metadata={"help": "Files, folders or hub names of records with a text; .txt, a text a line."})
    column: str = option("The column that holds the text.", "text")
    split: str = option("Which split of a hub dataset.", "train")
    output: str | None = option("Write the vectors to this .npy, .safetensors or .jsonl file, or with --search what was found to a .jsonl file.")
    resume: bool | None = field(default=None, metadata={"help": "Go on with what an interrupted run has written; false: begin anew.", "nargs": "?", "const": True})
    search: str | None = option("A query, or a file of them: find the nearest texts of --data.")
    top_k: int = option("With --search: how many texts are found.", 10)
    prompt: str | None = option("Which of the model's own prompts stands before each text.")
    max_length: int | None = option("Tokens of a text at most; without, as many as the model says.")
    too_long: str = option("truncate (and count) or error: texts with more tokens.", "truncate")
    given: ClassVar[Collection[str]] = ()  # the options that were written down, set where they are parsed

    def __post_init__(self):
        if self.too_long not in ("truncate", "error"):
            raise UserError(f"too_long must be truncate or error, got {self.too_long!r}")
        if self.search is None and self.output is None:
            raise UserError("give --output, the file of the vectors (.npy, .safetensors, .jsonl), or --search, what is to be found")
        if self.search is not None and (self.resume is not None or self.prompt is not None):
            raise UserError(f"{'resume' if self.resume is not None else 'prompt'} does not go with search: leave it out")
        if self.search is None:
            kind(self.output)
        if self.top_k < 1:
            raise UserError(f"top_k must be at least 1, got {self.top_k}")


class OfEncoder:
    """The vectors of an encoder."""

    def __init__(self, options: EncoderOptions, asked: Embed):
        how = {"pooling": options.pooling, "normalise": options.normalise, "max_length": asked.max_length}
        self.encoder = SentenceEncoder.open(options.model, device=options.device, dtype=options.dtype, **how)
        settle_dtype(options, self.encoder.model)
        if not makes_vectors(options.model):
            kind = "tagger" if is_tagger(options.model) else "classifier"
            print(f"{options.model} is a {kind}: its vectors are of states that learned to tell its classes apart", file=sys.stderr)
        self.size, self._account, self._too_long = self.encoder.size, TextAccount(), asked.too_long

    def vectors(self, records: Sequence[TextRecord], prompt: str | None) -> Tensor:
        """The vectors of some records, [n, size]."""
        encoded = self.encoder.encode([record.text for record in records], prompt)
        self.encoder.refuse_too_long(encoded, self._too_long, lambda place: records[place].where)
        self.encoder.count(self._account, encoded)
        return self.encoder.vectors(encoded)

    def named(self, *names: str) -> str | None:
        """The first of some prompts that the model has."""
        return next((name for name in names if self.encoder.readout.prompts.get(name)), None)

    def lines(self) -> list[str]:
        """What was lost, in lines."""
        return self._account.lines(self.encoder.max_length)


class OfDecoder:
    """The vectors of a model that speaks: the mean of its last layer. Raises UserError for options that only encoders have."""

    def __init__(self, options: EncoderOptions, asked: Embed):
        given = {"pooling": options.pooling, "prompt": asked.prompt, "max_length": asked.max_length}
        if told := [f"{name} {value}" for name, value in given.items() if value is not None]:
            raise UserError(f"{told[0]} is for encoders, and {options.model} speaks: its vectors are the mean of the last layer, leave it out")
        self.model, self.tokenizer = load(options.model, device=options.device, dtype=options.dtype)
        settle_dtype(options, self.model)
        self.size, self._normalise = embedding_size(self.model), options.normalise

    def vectors(self, records: Sequence[TextRecord], prompt: str | None) -> Tensor:
        """The vectors of some records, [n, size]."""
        found = embed(self.model, self.tokenizer, [record.text for record in records])
        return torch.nn.functional.normalize(found, dim=-1) if self._normalise else found

    def named(self, *names: str) -> str | None:
        """None: it has no prompts."""
        return None

    def lines(self) -> list[str]:
        """Nothing: what is too long was refused."""
        return []


@command
def main(argv: list[str] | None = None) -> int:
    options, asked = parse(argv, EncoderOptions, Embed, prog="seodang embed", description=__doc__)
    if "top_k" in asked.given and asked.search is None:
        raise UserError(f"top_k {asked.top_k} is for a search: add --search, or leave it out")
    model = (OfEncoder if makes_vectors(options.model, headed=True) else OfDecoder)(options, asked)
    with Stopping():
        (search if asked.search is not None else write)(model, options, asked)
    print(*(f"warning: {line}" for line in model.lines()), sep="\n", end="\n" if model.lines() else "", file=sys.stderr)
    return 0


def write(model: OfEncoder | OfDecoder, options: EncoderOptions, asked: Embed) -> None:
    """Write the vectors of all texts, a window of them at a time."""
    identity = {name: getattr(options, name) for name in ("model", "dtype", "pooling", "normalise")}  # dtype is what "auto" came to
    identity |= {name: getattr(asked, name) for name in ("data", "column", "split", "prompt", "max_length")}
    with VectorsFile(asked.output, model.size, identity, asked.resume) as file:
        for records in windows(asked.data, asked, skip=file.done):
            file.write(model.vectors(records, asked.prompt), [record.where for record in records])
        file.finish()
        print(f"vectors         {file.done:,} of {model.size} numbers in {asked.output}")


def search(model: OfEncoder | OfDecoder, options: EncoderOptions, asked: Embed) -> None:
    """Print the texts nearest to each query, or write them, a line a query."""
    queries = queries_of(asked)
    with ExitStack() as files:
        output = files.enter_context(open_output(asked.output)) if asked.output else None
        nearest = Nearest(model.vectors(queries, model.named("query")), asked.top_k)
        prompt = model.named(*DOCUMENTS)
        for records in windows(asked.data, asked):
            nearest.add(model.vectors(records, prompt), records)
        if output:
            empty(output)
        for query, hits in zip(queries, nearest.hits(), strict=True):
            if output:
                output.write(json.dumps({"query": query.text, "hits": [told(hit) for hit in hits]}, ensure_ascii=False) + "\n")
            else:
                print(*([query.text] if len(queries) > 1 else []), *(f"{hit.score:7.4f}  {hit.told.where}  {one_line(hit.told.text)}" for hit in hits), sep="\n")
    if asked.output:
        print(f"found           the {min(asked.top_k, nearest.seen):,} nearest of {nearest.seen:,} texts to {len(queries):,} queries, in {asked.output}")


def queries_of(asked: Embed) -> list[TextRecord]:
    """What is searched for: the texts of a file, or the words themselves."""
    if not os.path.exists(asked.search):
        if looks_like_file(asked.search):
            raise UserError(f"search {asked.search}: there is no such file; a query that is called so needs a space before it")
        if not asked.search.strip():
            raise UserError("search is empty: give a query, or a file of them")
        return [TextRecord("the query", asked.search)]
    return [record for records in windows([asked.search], asked) for record in records]


def looks_like_file(query: str) -> bool:
    """Whether a query that is no file was meant to be one: a single word with the ending of a file of texts.

    >>> looks_like_file("questions.txt"), looks_like_file("what is a .txt"), looks_like_file("Mr.")
    (True, False, False)
    """
    return len(query.split()) == 1 and not query[0].isspace() and Path(query).suffix.lower() in (".txt", *READERS)


def windows(sources: Sequence[str], asked: Embed, skip: int = 0) -> Iterator[list[TextRecord]]:
    """The texts of some sources behind the first so many, a window at a time. Raises UserError for an empty one, and where there is none."""
    texts = islice((record for name in sources for record in texts_in(name, asked)), skip, None)
    found = skip > 0
    for some in at_a_time(texts, WINDOW):
        found = True
        if empty_one := next((record for record in some if not record.text.strip()), None):
            raise UserError(f"{empty_one.where}: the text is empty, no vector says anything of it: fill it in, or leave the record out")
        yield some
    if not found:
        raise UserError(f"{', '.join(sources)} has no texts")


def texts_in(name: str, asked: Embed) -> Iterator[TextRecord]:
    """The texts of a source: of plain text each line, empty ones aside."""
    encoding, path = asked.reading()["encoding"], Path(name)
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = enumerate(lines_of(path, encoding), 1)
        return (TextRecord(f"{name} line {number}", line.rstrip("\n")) for number, line in lines if line.strip())
    return text_records([name], TextColumns(asked.column, None, None, text_option="--column"), encoding, asked.split, streaming=True)


def settle_dtype(options: EncoderOptions, model: PreTrainedModel) -> None:
    """Let the options have the dtype that "auto" came to: rows in another one are another run's."""
    if options.dtype == "auto":
        options.dtype = say_dtype(options.model, model.device)


def told(hit: Hit) -> dict[str, object]:
    """A hit as it is written."""
    return {"score": round(hit.score, 6), "record": hit.told.where, "text": hit.told.text}


def one_line(text: str, most: int = 160) -> str:
    """A text on one line, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}..."


if __name__ == "__main__":
    sys.exit(main())
