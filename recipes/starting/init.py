"""Write a recipe for one's own data: a folder with settings, commands and a sample that run as they stand.

seodang init
seodang init my-recipe --task triplets --data questions.csv --model default
seodang init reviews --task classifier --data reviews.csv --encoding cp949 --text_column 문장 --label_column 평가

On a terminal it asks what is not given (with --yes it takes what is likeliest). All records are read first, as the command will read them, and
what was found is said. Nothing is written over.
"""

import os
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from seodang.data.classification.records import TextColumns
from seodang.data.columns import parse_columns
from seodang.data.errors import UserError
from seodang.data.files.sources import check_source
from seodang.data.files.text_files import checked_encoding
from seodang.infer.checkpoint.load import resolve
from seodang.recipes.options.outputs import check_outputs
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.record import FileOptions
from seodang.recipes.starting.checking import Checked, check, first_record, local
from seodang.recipes.starting.folder import Recipe, refuse_existing
from seodang.recipes.starting.questions import ask, encoding_named, is_terminal
from seodang.recipes.starting.tasks import CLASSIFIER, TASKS, likely_column, likely_task, task_named

FOLDER = "recipe"


@dataclass
class InitOptions(FileOptions):
    """What the recipe is for, and where it is written."""

    output_dir: str | None = field(default=None, metadata={"help": f"Folder of the recipe; {FOLDER} by default."})
    task: str | None = field(default=None, metadata={"help": f"What is learned: {', '.join(TASKS)}."})
    data: list[str] | None = field(default=None, metadata={"help": "Files, folders or hub names of the records."})
    model: str | None = field(default=None, metadata={"help": "Folder or hub name to start from; by default the default model or encoder."})
    text_column: str | None = field(default=None, metadata={"help": "Of a classifier: the column that holds the text."})
    label_column: str | None = field(default=None, metadata={"help": "Of a classifier: the column that holds the label."})
    sample: int = field(default=16, metadata={"help": "How many of the records are copied into the folder."})
    yes: bool = field(default=False, metadata={"help": "Ask nothing: take what is likeliest where an option is not given."})

    def __post_init__(self):
        if self.sample < 1:
            raise UserError(f"sample must be at least 1, got {self.sample}")
        if self.task is not None:
            task_named(self.task)
            given = [f"--{name}" for name in ("text_column", "label_column") if getattr(self, name) is not None]
            if given and self.task != CLASSIFIER:
                raise UserError(f"{given[0]} is of a classifier, and the task is {self.task}: name its columns by --columns KEY=COLUMN")
        self.reading()


@command
def main(argv: list[str] | None = None) -> int:
    (options,) = parse(argv, InitOptions, prog="seodang init", positional=("output_dir",), description=__doc__)
    if options.output_dir is not None:
        refuse_existing(Path(options.output_dir))
    if is_terminal() and not options.yes:
        return written(*checked_with_questions(answered(options)))
    refuse_missing(options)
    options = likeliest(replace(options, output_dir=options.output_dir or new_folder(FOLDER)))
    return written(options, checked(options))


def refuse_missing(options: InitOptions) -> None:
    """Raise UserError for what is not given where nobody is asked; with --yes the task may be told from the data."""
    needed = ["data"] if options.yes else ["data", "task"]
    if missing := [f"--{name}" for name in needed if getattr(options, name) is None]:
        why = "with --yes nothing is asked" if options.yes else "there is no terminal to ask on"
        forms = {"--data": "--data FILE", "--task": f"--task {'|'.join(TASKS)}"}
        raise UserError(f"{' and '.join(missing)} missing, and {why}: give {' '.join(forms[name] for name in missing)}")


def likeliest(options: InitOptions) -> InitOptions:
    """The options with what is likeliest in place of what is not given. Raises UserError where that cannot be told."""
    _, record = first_record(options.data[0], options.reading()["encoding"])
    task = options.task or likely_task(record, parse_columns(options.columns))
    if task is None:
        raise UserError(f"what the columns {', '.join(map(str, record))} are for cannot be told: give --task {'|'.join(TASKS)}")
    options = replace(options, task=task, model=options.model or TASKS[task].model)
    if task == CLASSIFIER and not options.columns:
        own = {name: getattr(options, f"{name}_column") or likely_column(record, name) for name in ("text", "label")}
        if lacking := [name for name, column in own.items() if column is None]:
            remedy = " ".join(f"--{name}_column COLUMN" for name in lacking)
            raise UserError(f"which of the columns {', '.join(map(str, record))} holds the {lacking[0]}? Give {remedy}")
        options = replace(options, **{f"{name}_column": column for name, column in own.items()})
    return options


def answered(options: InitOptions) -> InitOptions:
    """The options with a person's answers in place of what is not given."""
    folder = options.output_dir or ask("Folder of the recipe", new_folder, FOLDER)
    data = options.data or [ask("Data (a file, a folder, a name on the hub)", source)]
    options = replace(options, output_dir=folder, data=data)
    options = replace(options, encoding=options.encoding or encoding_of(options.data[0]))
    _, record = first_record(options.data[0], options.encoding)
    columns = ", ".join(map(str, record))
    print(f"  its columns: {columns}")
    if options.task is None:
        print(*(f"  {name:<12} {task.what}" for name, task in TASKS.items()), sep="\n")
        options = replace(options, task=ask("Task", task_named, likely_task(record, parse_columns(options.columns))))
    if options.task == CLASSIFIER and not options.columns:
        one = lambda said: one_of(said, [*map(str, record)])
        for name in ("text", "label"):
            if getattr(options, f"{name}_column") is None:
                options = replace(options, **{f"{name}_column": ask(f"Column of the {name}", one, likely_column(record, name))})
    return replace(options, model=options.model or ask("Model (a folder, a name on the hub)", known_model, TASKS[options.task].model))


def checked(options: InitOptions) -> Checked:
    """What the data holds, read as the task's command reads it."""
    reading = options.reading()
    named = options.text_column, None, options.label_column, options.columns
    labelled = TextColumns.of(*named) if options.task == CLASSIFIER else TextColumns()
    return check(options.task, options.data, options.model, reading, labelled, options.sample)


def checked_with_questions(options: InitOptions) -> tuple[InitOptions, Checked]:
    """The same; where the columns cannot be told, the person is asked for them."""
    try:
        return options, checked(options)
    except UserError as error:
        if "--columns" not in str(error):
            raise
        print(f"  {error}")

    def named(said: str) -> tuple[InitOptions, Checked]:
        other = replace(options, columns=said.split())
        return other, checked(other)

    return ask("Columns (KEY=COLUMN, as prompt=question completion=answer)", named)


def written(options: InitOptions, found: Checked) -> int:
    """Write the recipe and say what there is."""
    folder = Path(os.path.expanduser(options.output_dir))
    model = local(options.model) if Path(os.path.expanduser(options.model)).is_dir() else options.model
    own = (options.encoding, options.columns, options.text_column, options.label_column)
    recipe = Recipe(options.task, [local(name) for name in options.data], model, *own, found)
    recipe.write(folder)
    print(*found.lines, f"recipe          {folder}: README.md, train.yaml, sample.jsonl, run.sh", sep="\n")
    print(f"next            cd {shlex.quote(str(folder))} && {next(iter(recipe.commands().values()))}")
    return 0


def new_folder(said: str) -> str:
    """A folder that can be written, and in which nothing would be written over."""
    check_outputs({"output_dir": said})
    refuse_existing(Path(os.path.expanduser(said)))
    return said


def source(said: str) -> str:
    """A source that is there, whatever its encoding."""
    try:
        check_source(said)
    except UserError as error:
        if encoding_named(error) is None:
            raise
    return said


def encoding_of(name: str) -> str | None:
    """The encoding of a source, asked for where it is not UTF-8."""
    try:
        first_record(name, None)
    except UserError as error:
        if encoding_named(error) is None:
            raise
        print(f"  {error}")

        def readable(said: str) -> str:
            first_record(name, checked_encoding(said))
            return said

        return ask("Encoding", readable, encoding_named(error))
    return None


def one_of(said: str, columns: list[str]) -> str:
    """A column that there is."""
    if said not in columns:
        raise UserError(f"there is no column {said!r} among {', '.join(columns)}")
    return said


def known_model(said: str) -> str:
    """A model that can be had."""
    resolve(said)
    return said


if __name__ == "__main__":
    sys.exit(main())
