"""One's own data, read before a recipe is written for it by the code of `preview` and of the commands: what of it can be used."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seodang.data.chat import set_chat_template
from seodang.data.classification.encoding import TextEncoder
from seodang.data.classification.labels import SINGLE, check_classes, label_names
from seodang.data.classification.records import TextColumns, text_records
from seodang.data.classification.rows import classification_rows, usable_labels, with_labels
from seodang.data.errors import UserError
from seodang.data.files.sources import is_source_file, read, records_of
from seodang.data.preview import length_lines, totals
from seodang.infer.checkpoint.load import load_tokenizer
from seodang.recipes.options.training import ModelOptions
from seodang.recipes.preview import PreviewOptions, read_records
from seodang.recipes.starting.tasks import CLASSIFIER, TASKS, refuse_shape

NO_LIMIT = 1_000_000  # tokenizers that know none say 1e30


@dataclass(frozen=True)
class Checked:
    """What the data holds: in lines, how many records can be used, and some of them as they stand."""

    lines: list[str]
    kept: int
    sample: list[Mapping[str, Any]]


def first_record(source: str, encoding: str | None) -> tuple[str, Mapping[str, Any]]:
    """A source's first record and where it stands. Raises UserError where there is none, and for what is no object."""
    found = next(records_of(source, encoding, streaming=True), None)
    if found is None:
        raise UserError(f"{source} has no records")
    if not isinstance(found[1], Mapping):
        raise UserError(f"{found[0]}: a record must be an object with named columns, got {found[1]!r:.60}")
    return found


def check(task: str, sources: Sequence[str], model: str, reading: dict[str, Any], labelled: TextColumns, count: int) -> Checked:
    """Read all records as the task's command will. Raises UserError for what that cannot read, and where nothing can be learned of any."""
    if task == CLASSIFIER:
        lines, kept = labelled_texts(sources, model, reading["encoding"], labelled)
    else:
        where, record = first_record(sources[0], reading["encoding"])
        refuse_shape(task, record, reading["columns"], where)
        lines, kept = records(task, sources, model, reading)
    known = {*reading["columns"].values(), labelled.text, labelled.label}
    stored = [record for source in sources for _, record in records_of(source, reading["encoding"], known)]
    return Checked(lines, kept, spread(stored, count, labelled.label if task == CLASSIFIER else None))


def spread(stored: Sequence[Mapping[str, Any]], count: int, label: str | None = None) -> list[Mapping[str, Any]]:
    """So many of the records, from the first on at equal distances; where these have one `label` alone, the first with another is the last of them.

    >>> spread([{"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}], 2)
    [{'n': 0}, {'n': 2}]
    """
    count = min(count, len(stored))
    sample = [stored[place * len(stored) // count] for place in range(count)]
    if label is not None and count > 1 and all(record[label] == sample[0][label] for record in sample):
        sample[-1] = next((record for record in stored if record[label] != sample[0][label]), sample[-1])
    return sample


def records(task: str, sources: Sequence[str], model: str, reading: dict[str, Any]) -> tuple[list[str], int]:
    """What becomes of records that a model is to learn to answer."""
    tokenizer = ModelOptions(model).decoder_tokenizer()
    set_chat_template(tokenizer, None)
    examples = read(sources, shapes=TASKS[task].family, **reading)
    _, counts, lengths = read_records(examples, tokenizer, PreviewOptions([*sources], model=model, rows=0))
    counts.refuse_empty()
    return totals(counts, lengths), counts.kept


def labelled_texts(sources: Sequence[str], model: str, encoding: str | None, columns: TextColumns) -> tuple[list[str], int]:
    """What becomes of texts with labels."""
    examples = with_labels(text_records(list(sources), columns, encoding), SINGLE)
    labels = usable_labels(examples)
    names = label_names(labels)
    if labels:
        check_classes(labels, names, SINGLE)
    tokenizer = load_tokenizer(model)
    most = tokenizer.model_max_length if tokenizer.model_max_length < NO_LIMIT else None
    rows, counts = classification_rows(examples, TextEncoder(tokenizer, most), names, SINGLE)
    return [*counts.lines(), *length_lines([len(row["input_ids"]) for row in rows])], counts.kept


def local(name: str) -> str:
    """A file, folder or pattern from the root of the file system, wherever a command is run; a name on the hub as it is."""
    path = Path(os.path.expanduser(name))
    return str(path.absolute()) if path.exists() or is_source_file(name) or any(letter in name for letter in "*?[") else name
