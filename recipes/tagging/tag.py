"""A tagger from texts with entities (names, places, slots), or the entities that one finds in texts.

seodang tag --data train.conll --eval_data dev.conll
seodang tag --data names.jsonl --eval_fraction 0.1 --label_column entities
seodang tag --model runs/tag --data texts.txt --predict --output found.jsonl
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from seodang.data.errors import UserError
from seodang.data.tagging.encoding import TagEncoder
from seodang.data.tagging.records import TaggedText, tagged_texts
from seodang.data.tagging.rows import Row, TagCounts, entity_labels, tagging_rows, usable
from seodang.data.tagging.schemes import label_set, tag_names
from seodang.infer.checkpoint.load import load, resolve
from seodang.infer.checkpoint.published_diffusion import stored_config
from seodang.infer.encoders.classify import names_of, room_for
from seodang.infer.encoders.embedding import unknown_lines
from seodang.infer.encoders.tagging import check_tags, labels_all_subwords
from seodang.infer.runners.paradigm import has_tagger_head
from seodang.recipes.options.classification import PredictionOptions
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.tagging import TaggerArguments, TaggerOptions, TaggingOptions
from seodang.recipes.options.training import RunOptions, hold_out
from seodang.recipes.run.before_after import picture_line, print_once
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.training import (
    checkpoint_to_resume,
    complete_arguments,
    early_stopping,
    held_out_line,
    plan_lines,
    refuse_metric,
    train_and_save,
)
from seodang.recipes.tagging.predicting import READ, predict
from seodang.train.models.classifier import renew_head
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.run.classifier_report import figures_line, score_lines, score_table
from seodang.train.run.run_page import write_page
from seodang.train.stages.plan import plan
from seodang.train.stages.tagging import MEASURED, TaggerTrainer, tagger_trainer

REPORT, COUNTED = "report.html", "entities"


@command
def main(argv: list[str] | None = None) -> int:
    classes = (TaggingOptions, TaggerOptions, PredictionOptions, RunOptions, TaggerArguments)
    data, model, prediction, run, args = parse(argv, *classes, prog="seodang tag", description=__doc__)
    if prediction.predict:
        prediction.refuse_training(READ)
        return predict(data, model, prediction)
    args = complete_arguments(args, model, run, evaluates=bool(data.eval_data or data.eval_fraction))
    refuse_metric(args, MEASURED)
    run.refuse_samples("a tagger writes no answers")
    found = Examples.read(data, args.seed)
    tagger, tokenizer, names = open_tagger(model, found, data, args)
    every = labels_all_subwords(tagger.config)
    rows, eval_rows, counts = found.rows(TagEncoder(tokenizer, room_for(tagger, tokenizer, data.max_length), data.stride, every), names, data)
    origin = origin_of(data, model, run, args, rows=rows, paradigm="tagging")
    resume = checkpoint_to_resume(args, run, origin)
    trainer = tagger_trainer(
        tagger, tokenizer, rows, args, eval_rows=eval_rows or None, lora=model.lora(), provenance=origin, callbacks=early_stopping(run)
    )
    unknown = unknown_lines([window["input_ids"] for row in rows for window in row["windows"]], tokenizer)
    stage = [*unknown, f"tags            {len(names)}, {'every token has one' if every else 'a word has one, by its first token'}"]
    stage += held_out_line(f"{len(eval_rows):,} texts", eval_rows)
    print_once(trainer, *plan_lines(trainer, counts, resume, stage=stage, cost=plan(trainer).lines()))
    if run.dry_run:
        return 0
    folder = train_and_save(trainer, resume)
    lines = write_report(trainer, folder, eval_rows)
    print_once(trainer, terminal_curve(folder), *lines, picture_line("loss curve", folder / CURVE), f"tagger          {folder}")
    return 0


@dataclass
class Examples:
    """The texts to train on and those held out, with their entities."""

    train: list[TaggedText]
    held_out: list[TaggedText]

    @classmethod
    def read(cls, data: TaggingOptions, seed: int) -> "Examples":
        """Read the sources and hold out what is to be held out. Raises UserError for what cannot be read, and where there is nothing to find."""
        columns, how = data.tag_columns(), {"encoding": data.reading()["encoding"], "split": data.split}
        train, held = list(tagged_texts(data.data, columns, **how)), []
        if data.eval_data:
            held = list(tagged_texts(data.eval_data, columns, **how))
        elif data.eval_fraction:
            train, held = hold_out(train, data.eval_fraction, seed)
        found, there = cls(train, held), entity_labels(usable(train))
        if not there:
            raise UserError(f"none of the {len(train)} records to train on has an entity: there is nothing to learn")
        if absent := next((label for label in data.labels or () if label not in there), None):
            raise UserError(f"no record to train on has the label {absent!r}: add some, or leave the label out")
        return found

    def labels(self) -> list[str]:
        """The labels of the entities to train on."""
        return entity_labels(usable(self.train))

    def by_characters(self) -> bool:
        """Whether entities of a text to train on may end within a word."""
        return any(each.words is None for each in usable(self.train))

    def rows(self, encoder: TagEncoder, names: Sequence[str], data: TaggingOptions) -> tuple[list[Row], list[Row], TagCounts]:
        """Rows to train on, held-out rows, and the counts of both."""
        rows, counts = tagging_rows(self.train, encoder, names, data.unusable)
        eval_rows, counts.held_out = tagging_rows(self.held_out, encoder, names, data.unusable) if self.held_out else ([], None)
        return rows, eval_rows, counts


def open_tagger(
    options: TaggerOptions, found: Examples, data: TaggingOptions, args: TaggerArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Load the model with a new head, or its own where it is a tagger of these labels already; return it, its tokenizer and the names of the tags.

    Raises UserError for a tagger of other labels.
    """
    options.refuse_adapter()
    config = stored_config(resolve(options.model))
    own = names_of(config) if has_tagger_head(config) and not options.new_head else None
    names = tag_names(data.labels or found.labels()) if own is None else check_own(own, data.labels or found.labels())
    every = data.label_all_subwords
    if every is None:
        every = found.by_characters() if own is None else labels_all_subwords(config)
    set_seed(args.seed)  # the new head is random
    model, tokenizer = load(
        options.model, device=str(args.device), dtype=options.dtype, model_class=AutoModelForTokenClassification, ignore_mismatched_sizes=options.new_head,
        id2label=dict(enumerate(names)), label2id={name: place for place, name in enumerate(names)}, **options.loading(),
    )  # fmt: skip
    if options.new_head:
        renew_head(model)
    model.config.label_all_subwords = every
    return model, tokenizer, names


def check_own(own: list[str], labels: list[str]) -> list[str]:
    """The tags of a tagger that is trained further, in its own order. Raises UserError where the data's are others."""
    remedy = "--new_head begins its head anew"
    check_tags(own)
    if sorted(own) != sorted(tag_names(labels)):
        told = f"of {', '.join(label_set(own)[:8])}" if set(own) == set(tag_names(label_set(own))) else f"whose tags are {', '.join(own[:8])}"
        raise UserError(f"the model is a tagger already, {told}, and the data has entities of {', '.join(labels[:8])}: {remedy}")
    return own


def write_report(trainer: TaggerTrainer, folder: Path, eval_rows: list[Row]) -> list[str]:
    """Measure what is held out and write the page into the run's folder; return it all in lines."""
    if not eval_rows:
        return []
    found, _ = trainer.measured(eval_rows)
    if not trainer.is_world_process_zero():
        return []
    figures = [(name, f"{value:.4f}") for name, value in found.values.items()]
    tables = {"Held-out entities": score_table(found, trainer.labels, COUNTED)}
    page = write_page(folder / REPORT, {folder.name: folder}, title="Tagger", figures=figures, tables=tables)
    return [f"held out        {figures_line(found)} of {len(eval_rows):,} texts", *score_lines(found, trainer.labels, COUNTED), "", f"report          {page}"]


if __name__ == "__main__":
    sys.exit(main())
