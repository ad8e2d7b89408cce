"""What a recipe can be for: its command, the records that it reads, and what is done with what was trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seodang.data.classification.records import LIKELY
from seodang.data.columns import Columns, Names
from seodang.data.errors import UserError
from seodang.data.formats import SHAPES, Shapes, recognise
from seodang.data.preferences import PREFERENCE_SHAPES, UNPAIRED_SHAPES
from seodang.infer.checkpoint.default_encoder import NAME as DEFAULT_ENCODER

CLASSIFIER = "classifier"
DIFFUSION = "diffusion"
FAMILY: Shapes = {**PREFERENCE_SHAPES, **UNPAIRED_SHAPES, **SHAPES}  # a pair has a prompt too: the narrower shapes first
TALKS = ("messages", "sharegpt", "prompt_completion")
ANSWERS = "seodang generate {out} --prompts sample.jsonl --output answers.jsonl --temperature 0 --max_new_tokens {length}{reading}"
SCORES = "seodang score {out} --data sample.jsonl --output scores.jsonl{reading}"
CLASSES = "seodang classify --model {out} --data sample.jsonl --predict --output predicted.jsonl{reading}"


@dataclass(frozen=True)
class Task:
    """A kind of recipe."""

    what: str
    verb: str
    shapes: tuple[str, ...]  # that its records may have; none where they are texts with labels
    family: Shapes  # all that the verb reads
    after: str = ANSWERS  # the command behind the training
    model: str = "default"


TASKS = {
    "chat": Task("questions with answers and dialogues, by fine-tuning (sft)", "sft", TALKS, SHAPES),
    "triplets": Task("instruction, input and output, by fine-tuning (sft)", "sft", ("triplet",), SHAPES),
    "text": Task("plain text, all of it learned (sft)", "sft", ("text",), SHAPES, SCORES),
    "preferences": Task("a better and a worse answer to each prompt, or ranked ones (dpo)", "dpo", tuple(PREFERENCE_SHAPES), PREFERENCE_SHAPES),
    "judged": Task("answers judged good or bad (kto)", "kto", tuple(UNPAIRED_SHAPES), UNPAIRED_SHAPES),
    CLASSIFIER: Task("texts with a label each (classify)", "classify", (), {}, CLASSES, DEFAULT_ENCODER),
    DIFFUSION: Task("the records of chat and triplets, answered by masked diffusion (diffusion)", "diffusion", (*TALKS, "triplet"), SHAPES),
}


def task_named(name: str) -> str:
    """The name of a task. Raises UserError for one that there is not."""
    if name not in TASKS:
        raise UserError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    return name


def shape_of(record: Mapping[str, Any], named: Names) -> str | None:
    """The shape of a record, its columns taken as training takes them; None where it has none."""
    try:
        return recognise(Columns(named, tuple(FAMILY), {}).taken(record)[0], FAMILY)
    except UserError:
        return None


def likely_task(record: Mapping[str, Any], named: Names) -> str | None:
    """The first task that is for records of this kind; None where none is."""
    shape = shape_of(record, named)
    if shape in (None, "text") and all(likely_column(record, key) for key in ("text", "label")):
        return CLASSIFIER
    return next((name for name, task in TASKS.items() if shape in task.shapes), None)


def likely_column(record: Mapping[str, Any], key: str) -> str | None:
    """The column that is called `key` ("text" or "label"), or else as such columns are called elsewhere; None where none is."""
    plain = {str(column).strip().casefold(): str(column) for column in record}
    return next((plain[name] for name in (key, *LIKELY[key]) if name in plain), None)


def refuse_shape(task: str, record: Mapping[str, Any], named: Names, where: str) -> None:
    """Raise UserError for a record of another task's shape. One of no shape is refused where it is read, with what to do about it."""
    shape = shape_of(record, named)
    if TASKS[task].shapes and shape is not None and shape not in TASKS[task].shapes:
        other = likely_task(record, named)
        remedy = f": give --task {other}" if other else ""
        raise UserError(f"{where}: this is a record of the shape {shape}, which --task {task} does not read{remedy}")
