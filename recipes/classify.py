"""A classifier from labelled texts, or what one makes of texts: one class of several, several labels, a number; texts alone or in pairs.

seodang classify --data reviews.jsonl --label_column sentiment --eval_fraction 0.1
seodang classify --model runs/classify --data more.csv --predict --output predicted.jsonl
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from seodang.data.classification.encoding import TextEncoder
from seodang.data.classification.labels import MULTI, REGRESSION, SINGLE, check_classes, class_weights, label_counts, label_names
from seodang.data.classification.records import text_records
from seodang.data.classification.rows import Labelled, Row, TextCounts, classification_rows, hold_out_by_label, usable_labels, with_labels
from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load, resolve
from seodang.infer.checkpoint.published_diffusion import stored_config
from seodang.infer.encoders.classify import names_of, problem_of, room_for
from seodang.infer.encoders.embedding import unknown_lines
from seodang.infer.runners.paradigm import has_classifier_head
from seodang.recipes.options.classification import ClassificationOptions, ClassifierArguments, ClassifierOptions, ClassPredictionOptions
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.training import RunOptions
from seodang.recipes.run.before_after import picture_line, print_once
from seodang.recipes.run.classifying import READ, predict, refuse_threshold
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.training import checkpoint_to_resume, complete_arguments, early_stopping, held_out_line, plan_lines, train_and_save
from seodang.train.models.classifier import renew_head, set_pooling
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.run.classifier_report import figures_line, pictures, report_lines, write_pictures
from seodang.train.run.run_page import write_page
from seodang.train.stages.classification import ClassifierTrainer, classifier_trainer
from seodang.train.stages.plan import plan

REPORT = "report.html"


@command
def main(argv: list[str] | None = None) -> int:
    classes = (ClassificationOptions, ClassifierOptions, ClassPredictionOptions, RunOptions, ClassifierArguments)
    data, model, prediction, run, args = parse(argv, *classes, prog="seodang classify", description=__doc__)
    if prediction.predict:
        prediction.refuse_training(READ)
        return predict(data, model, prediction)
    args = complete_arguments(args, model, run, evaluates=bool(data.eval_data or data.eval_fraction))
    refuse_threshold(prediction, data.problem)
    run.refuse_samples("a classifier writes no answers")
    found = Examples.read(data, args.seed)
    classifier, tokenizer, names = open_classifier(model, found, data, args)
    rows, eval_rows, counts = found.rows(TextEncoder(tokenizer, room_for(classifier, tokenizer, data.max_length), data.cut), names, data)
    origin = origin_of(data, model, run, args, rows=rows, paradigm="classification")
    resume = checkpoint_to_resume(args, run, origin)
    labels = usable_labels(found.train)
    weights = class_weights(data.class_weights, names, label_counts(labels, names) if names else [], len(labels), data.problem)
    trainer = classifier_trainer(
        classifier, tokenizer, rows, args, eval_rows=eval_rows or None, lora=model.lora(), class_weights=weights, threshold=prediction.threshold,
        provenance=origin, callbacks=early_stopping(run),
    )  # fmt: skip
    unknown = unknown_lines([row["input_ids"] for row in rows], tokenizer, paired=any(1 in row.get("token_type_ids", ()) for row in rows))
    print_once(trainer, *plan_lines(trainer, counts, resume, stage=[*unknown, *stage_lines(data, names, weights, eval_rows)], cost=plan(trainer).lines()))
    if run.dry_run:
        return 0
    folder = train_and_save(trainer, resume)
    lines = write_report(trainer, folder, names, eval_rows)
    print_once(trainer, terminal_curve(folder), *lines, picture_line("loss curve", folder / CURVE), f"classifier      {folder}")
    return 0


@dataclass
class Examples:
    """The records to train on and those held out, with their labels."""

    train: list[Labelled]
    held_out: list[Labelled]

    @classmethod
    def read(cls, data: ClassificationOptions, seed: int) -> "Examples":
        """Read the sources and hold out what is to be held out. Raises UserError for labels that are none, or nothing to tell apart."""
        columns, how = data.text_columns(), {"encoding": data.reading()["encoding"], "split": data.split}
        train, held = with_labels(text_records(data.data, columns, **how), data.problem), []
        if data.eval_data:
            held = with_labels(text_records(data.eval_data, columns, **how), data.problem)
        elif data.eval_fraction:
            order = random.Random(seed).sample(range(len(train)), len(train))
            train, held = hold_out_by_label(train, data.eval_fraction, order, data.problem)
        found, labels = cls(train, held), usable_labels(train)
        if labels:
            check_classes(labels, data.labels or found.names(), data.problem)
        return found

    def names(self) -> list[str]:
        """The names of the classes to train on."""
        return label_names(usable_labels(self.train))

    def rows(self, encoder: TextEncoder, names: list[str], data: ClassificationOptions) -> tuple[list[Row], list[Row], TextCounts]:
        """Rows to train on, held-out rows, and the counts of both."""
        rows, counts = classification_rows(self.train, encoder, names, data.problem, data.unusable)
        eval_rows, counts.held_out = classification_rows(self.held_out, encoder, names, data.problem, data.unusable) if self.held_out else ([], None)
        return rows, eval_rows, counts


def open_classifier(
    options: ClassifierOptions, found: Examples, data: ClassificationOptions, args: ClassifierArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Load the model with a new head, or its own where it is a classifier of these labels already; return it, its tokenizer and the labels' names.

    Raises UserError for a classifier of other labels or another problem.
    """
    options.refuse_adapter()
    names = [] if data.regression else data.labels or found.names()
    own = None if options.new_head else own_labels(options.model)
    if own is not None:
        names = check_own(*own, names, data)
    set_seed(args.seed)  # the new head is random
    named = {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}} if names else {"num_labels": 1}
    model, tokenizer = load(
        options.model, device=str(args.device), dtype=options.dtype, model_class=AutoModelForSequenceClassification, problem_type=data.problem,
        ignore_mismatched_sizes=options.new_head, **named, **options.loading(),
    )  # fmt: skip
    if options.new_head:
        renew_head(model)
    set_pooling(model, options.pooling)
    return model, tokenizer, names


def own_labels(name: str) -> tuple[str, list[str]] | None:
    """The problem and the labels of a checkpoint that is a classifier already, None where it is none."""
    config = stored_config(resolve(name))
    return (problem_of(config), names_of(config)) if has_classifier_head(config) else None


def check_own(problem: str, own: list[str], names: list[str], data: ClassificationOptions) -> list[str]:
    """The names of a classifier that is trained further, in its own order. Raises UserError where the data's are others."""
    remedy = "--new_head begins its head anew"
    if problem != data.problem:
        option = {MULTI: "give --multi_label", REGRESSION: "give --regression", SINGLE: "leave --multi_label and --regression out"}[problem]
        raise UserError(f"the model is a classifier already, of {problem}, and the data is read as {data.problem}: {option}, or {remedy}")
    if problem == REGRESSION:
        return []
    if sorted(own) != sorted(names):
        raise UserError(f"the model is a classifier already, of the {len(own)} labels {', '.join(own[:8])}, and the data has the {len(names)} labels "
                        f"{', '.join(names[:8])}: {remedy}")  # fmt: skip
    return own


def stage_lines(data: ClassificationOptions, names: list[str], weights: list[float] | None, eval_rows: list[Row]) -> list[str]:
    """What is learned, and what is held out, in lines."""
    weighed = [] if weights is None else ["class weights   " + ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, weights, strict=True))]
    return [f"problem         {data.problem}", *weighed, *held_out_line(f"{len(eval_rows):,} texts", eval_rows)]


def write_report(trainer: ClassifierTrainer, folder: Path, names: list[str], eval_rows: list[Row]) -> list[str]:
    """Measure what is held out, draw the pictures and the page into the run's folder; return it all in lines."""
    if not eval_rows:
        return []
    found, _ = trainer.measured(eval_rows)
    told = f"held out        {figures_line(found)} of {len(eval_rows):,} texts"
    if not trainer.is_world_process_zero():
        return []
    drawn = write_pictures(folder, found, names)
    figures = [(name, f"{value:.4f}") for name, value in found.values.items()]
    page = write_page(folder / REPORT, {folder.name: folder}, title="Classifier", figures=figures, pictures=pictures(found, names))
    return [told, *report_lines(found, names), "", *(picture_line(path.stem, path) for path in drawn), f"report          {page}"]


if __name__ == "__main__":
    sys.exit(main())
