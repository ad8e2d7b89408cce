"""What a trained classifier makes of the texts of files, a line each."""

import json
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain, islice
from typing import Any, TextIO

import torch

from seodang.data.classification.encoding import EncodedText
from seodang.data.classification.labels import MULTI, REGRESSION, SINGLE, Label, parse_label, to_target
from seodang.data.classification.records import TextColumns, TextRecord, text_records
from seodang.data.errors import UserError
from seodang.data.files.sources import at_a_time
from seodang.infer.checkpoint.load import load
from seodang.infer.encoders.classify import WINDOW, Classified, Classifier, check_classifier, is_classifier, problem_of
from seodang.infer.encoders.embedding import TextAccount, unknown_id
from seodang.recipes.options.classification import ClassificationOptions, ClassifierOptions, ClassPredictionOptions
from seodang.recipes.options.outputs import empty, open_output
from seodang.train.maths.classification_metrics import accuracy, confusion_matrix, decisions_of, macro_f1

READ = ("config", "predict", "output", "threshold", "model", "data", "split", "columns", "encoding", "text_column", "pair_column", "label_column")
READ += ("max_length", "cut", "device", "dtype")


def predict(data: ClassificationOptions, options: ClassifierOptions, prediction: ClassPredictionOptions) -> int:
    """Write a line for each text in their order: its place, its label and the probabilities; then what there is to say of them all.

    No more than a window of texts is held. Where the records have labels, what is right among the predictions is counted.
    """
    if not is_classifier(options.model):
        raise UserError(f"{options.model} has no classifier's head: train one by `seodang classify`, and name its folder")
    columns = data.text_columns()
    asked = data.label_column is not None or any(word.startswith("label=") for word in data.columns or ())
    columns = TextColumns(columns.text, columns.text_pair, columns.label if asked else None)
    with ExitStack() as files:
        output = files.enter_context(open_output(prediction.output)) if prediction.output else None
        model, tokenizer = load(options.model, device=options.device, dtype=options.dtype)
        refuse_threshold(prediction, problem_of(check_classifier(model).config))
        classifier = Classifier(model, tokenizer, max_length=data.max_length, cut=data.cut, threshold=prediction.threshold)
        records = text_records(data.data, columns, data.reading()["encoding"], data.split, streaming=True)
        first = list(islice(records, WINDOW))  # a mistake in the first shows before the output is emptied
        if output:
            empty(output)
        totals = Totals(classifier, asked)
        for some in at_a_time(chain(first, records), WINDOW):
            write(classifier, some, totals, output or sys.stdout)
    print(*totals.lines(data.cut), sep="\n", file=sys.stdout if prediction.output else sys.stderr)
    return 0


def refuse_threshold(prediction: ClassPredictionOptions, problem: str) -> None:
    """Raise UserError for a threshold that was given where no label is judged by one."""
    if "threshold" in prediction.given and problem != MULTI:
        raise UserError(f"threshold {prediction.threshold} is for several labels, and this is {problem}: leave it out")


def write(classifier: Classifier, records: list[TextRecord], totals: "Totals", output: TextIO) -> None:
    """Classify some records and write their lines. Raises UserError naming the record that cannot be read."""
    texts = [record.text if record.text_pair is None else (record.text, record.text_pair) for record in records]
    try:
        encoded = classifier.encode(texts)
    except UserError as error:
        named = re.sub(r"^text (\d+)", lambda found: records[int(found[1]) - 1].where, str(error))
        raise UserError(named) from None
    totals.read(encoded, paired=not isinstance(texts[0], str))
    totals.empty += sum(not any(map(str.strip, (record.text, record.text_pair or ""))) for record in records)
    for record, said in zip(records, map(classifier.said, classifier.logits(encoded), encoded), strict=True):
        totals.count(record, said)
        line = {"record": record.where, "label": list(said.label) if isinstance(said.label, tuple) else said.label}
        output.write(json.dumps({**line, **({"probs": said.probs} if said.probs else {})}, ensure_ascii=False) + "\n")


class Totals:
    """What is counted over a whole file, in memory that does not grow with it: of one class of several the confusions, else how many are right."""

    def __init__(self, classifier: Classifier, labelled: bool):
        self.classifier, self.labelled = classifier, labelled
        self.judged = self.right = self.empty = 0
        self.account = TextAccount()
        self.squares = 0.0
        self.matrix = torch.zeros(len(classifier.names), len(classifier.names), dtype=torch.int64)

    def read(self, encoded: Sequence[EncodedText], paired: bool) -> None:
        """Count some texts as they were read."""
        tokenizer = self.classifier.tokenizer
        self.account.add(encoded, tokenizer.num_special_tokens_to_add(pair=paired), unknown_id(tokenizer))

    def count(self, record: TextRecord, said: Classified) -> None:
        """Count what was said of a text, where it has a label."""
        label: Label | None = parse_label(record.label, self.classifier.problem, record.where) if self.labelled else None
        if label is None:
            return
        target: Any = to_target(label, self.classifier.names, self.classifier.problem, record.where)
        self.judged += 1
        if self.classifier.problem == SINGLE:
            self.matrix += confusion_matrix(torch.tensor([target]), torch.tensor([self.classifier.names.index(said.label)]), len(self.matrix))
        elif self.classifier.problem == MULTI:
            self.right += set(label) == set(said.label)
        else:
            self.squares += (said.label - target) ** 2

    def lines(self, cut: str) -> list[str]:
        """What was counted, in lines."""
        account, most = self.account, self.classifier.max_length
        lines = [f"texts           {account.texts:,}"]
        if account.truncated:
            lines.append(f"truncated       {account.truncated:,} texts longer than {most} tokens (cut: {cut})")
        if self.empty:
            lines.append(f"warning         {self.empty:,} texts are empty, and what is predicted of them says nothing")
        lines += [f"warning         {line}" for line in account.unknown_lines()]
        if self.judged:
            problem = self.classifier.problem
            found = f"mse {self.squares / self.judged:.4f}" if problem == REGRESSION else f"exact match {self.right / self.judged:.4f}"
            if problem == SINGLE:
                found = f"accuracy {accuracy(self.matrix):.4f}, macro F1 {macro_f1(decisions_of(self.matrix)):.4f}"
            lines.append(f"right           {found} of {self.judged:,} texts with a label")
        return lines
