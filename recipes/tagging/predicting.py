"""What a trained tagger finds in the texts of files, a line each."""

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain, islice
from typing import TextIO

from seodang.data.classification.encoding import EncodedText
from seodang.data.errors import UserError
from seodang.data.files.sources import at_a_time
from seodang.data.tagging.encoding import TagEncoding
from seodang.data.tagging.records import TaggedText, tagged_texts
from seodang.data.tagging.schemes import Span, label_set
from seodang.infer.checkpoint.load import load
from seodang.infer.encoders.classify import WINDOW
from seodang.infer.encoders.embedding import TextAccount, unknown_id
from seodang.infer.encoders.tagging import Entity, Tagger, is_tagger
from seodang.recipes.options.classification import PredictionOptions
from seodang.recipes.options.outputs import empty, open_output
from seodang.recipes.options.tagging import TaggerOptions, TaggingOptions
from seodang.train.maths.entity_metrics import decisions_over, entity_metrics
from seodang.train.run.classifier_report import figures_line, score_lines

READ = ("config", "predict", "output", "model", "data", "split", "columns", "encoding", "text_column", "label_column", "scheme", "tag_names")
READ += ("label_all_subwords", "max_length", "stride", "device", "dtype")


def predict(data: TaggingOptions, options: TaggerOptions, prediction: PredictionOptions) -> int:
    """Write a line for each text in their order: its place, the text and its entities; then what there is to say of them all.

    No more than a window of texts is held, of records with tokens a file. Where the records have entities, those found are measured against them.
    """
    if not is_tagger(options.model):
        raise UserError(f"{options.model} has no tagger's head: train one by `seodang tag`, and name its folder")
    with ExitStack() as files:
        output = files.enter_context(open_output(prediction.output)) if prediction.output else None
        model, tokenizer = load(options.model, device=options.device, dtype=options.dtype)
        tagger = Tagger(model, tokenizer, max_length=data.max_length, stride=data.stride, all_subwords=data.label_all_subwords)
        records = tagged_texts(data.data, data.tag_columns(), data.reading()["encoding"], data.split, labelled=False)
        first = list(islice(records, WINDOW))  # a mistake in the first shows before the output is emptied
        if output:
            empty(output)
        totals = Totals(tagger)
        for some in at_a_time(chain(first, records), WINDOW):
            write(tagger, some, totals, output or sys.stdout)
    print(*totals.lines(), sep="\n", file=sys.stdout if prediction.output else sys.stderr)
    return 0


def write(tagger: Tagger, records: list[TaggedText], totals: "Totals", output: TextIO) -> None:
    """Find the entities of some records and write their lines."""
    encoded = tagger.encode([record.text for record in records], [record.words for record in records])
    found = tagger.entities([record.text for record in records], encoded)
    for record, read, entities in zip(records, encoded, found, strict=True):
        totals.count(record, read, entities)
        line = {"record": record.where, "text": record.text, "entities": [asdict(entity) for entity in entities]}
        output.write(json.dumps(line, ensure_ascii=False) + "\n")


class Totals:
    """What is counted over a whole file, in memory that does not grow with it."""

    def __init__(self, tagger: Tagger):
        self.tagger, self.labels = tagger, label_set(tagger.names)
        self.texts = self.windowed = self.entities = self.judged = 0
        self.account = TextAccount()
        self.decisions = decisions_over([], self.labels)

    def count(self, record: TaggedText, read: TagEncoding, entities: list[Entity]) -> None:
        """Count what was found in a text, and what of it is right where its entities are known. Raises UserError for a label that the model does not know."""
        self.windowed, self.entities = self.windowed + (len(read.windows) > 1), self.entities + len(entities)
        tokenizer, ids = self.tagger.tokenizer, [window.input_ids for window in read.windows]
        self.account.add([EncodedText(each, None, len(each)) for each in ids], tokenizer.num_special_tokens_to_add(pair=False), unknown_id(tokenizer))
        self.texts += 1
        if record.entities is None:
            return
        if unknown := next((span.label for span in record.entities if span.label not in self.labels), None):
            raise UserError(f"{record.where}: the label {unknown!r} is none of the model's ({', '.join(self.labels[:10])}): use records of its labels, or leave them out")
        self.judged += 1
        self.decisions += decisions_over([(record.entities, [Span(each.start, each.end, each.label) for each in entities])], self.labels)

    def lines(self) -> list[str]:
        """What was counted, in lines."""
        lines = [f"texts           {self.texts:,}, in which {self.entities:,} entities were found"]
        if self.windowed:
            lines.append(f"windows         {self.windowed:,} texts longer than {self.tagger.encoder.max_length} tokens were read in several")
        lines += [f"warning         {line}" for line in self.account.unknown_lines()]
        if self.judged:
            found = entity_metrics(self.decisions)
            lines += [f"right           {figures_line(found)} of {self.judged:,} texts with entities given", *score_lines(found, self.labels, "entities")]
        return lines
