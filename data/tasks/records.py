"""Records {input, tasks: [{instruction, output, name}, ...]}: a text and what is to be done with it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UserError
from ..formats import as_text, decoded, missing

TEXT, JSON = "text", "json"  # kinds of outputs: a text, or another value of JSON


@dataclass(frozen=True)
class Task:
    """What is to be done, and the `output` that it should have: a text, another JSON value, None where nobody says.

    `kind` says what an answer is read as: "text", "json", and None where that is not known.
    """

    name: str
    instruction: str
    output: Any = None
    kind: str | None = None


@dataclass(frozen=True)
class TaskRecord:
    """A text, the tasks that it shares, and a system message, "" for none."""

    input: str
    tasks: tuple[Task, ...]
    system: str = ""

    @property
    def asked(self) -> dict[str, Any]:
        """The record without its outputs."""
        return {"input": self.input, "tasks": [{"name": task.name, "instruction": task.instruction} for task in self.tasks]} | (
            {"system": self.system} if self.system else {}
        )


def task_record(record: Mapping[str, Any], outputs: bool = True) -> TaskRecord:
    """Read a record; a task without a name is called by its place, "task 1" the first. Without `outputs` a task may lack its own.

    Raises UserError, naming the task, for a missing or mistyped key, for a name that two tasks have, and for one that could not be read back: it is one
    line of printable characters without a colon, without blanks at its ends.
    """
    tasks = decoded(record, "tasks")
    if tasks is None:
        raise missing("tasks", record)
    if not isinstance(tasks, list) or not tasks:
        raise UserError(f"tasks must be a list of {{instruction, output}}, one at least, got {tasks!r:.80}")
    if "input" not in record:
        raise missing("input", record)
    read = tuple(_task(task, place, outputs) for place, task in enumerate(tasks, 1))
    if twice := next((name for name, count in Counter(task.name for task in read).items() if count > 1), None):
        raise UserError(f"two tasks are called {twice!r}: give each a name of its own")
    system = as_text(record, "system") if record.get("system") else ""
    return TaskRecord(as_text(record, "input"), read, system)


def _task(task: Any, place: int, outputs: bool) -> Task:
    where = f"tasks[{place - 1}]"
    if not isinstance(task, Mapping):
        raise UserError(f"{where} must be an object with instruction and output, got {task!r:.80}")
    try:
        instruction = as_text(task, "instruction")
        name = f"task {place}" if task.get("name") is None else as_text(task, "name")
        if outputs and task.get("output") is None:
            raise missing("output", task)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if not instruction.strip():
        raise UserError(f"{where}: the instruction is empty: say what is to be done")
    if not name or name != name.strip() or ":" in name or not name.isprintable():
        raise UserError(f"{where}: the name {name!r} could not be read back: give one line without a colon, and without blanks at its ends")
    output = task.get("output")
    if not isinstance(output, str | None):
        _refuse_no_json(output, where)
    return Task(name, instruction, output, kind_of(output))


def _refuse_no_json(output: Any, where: str) -> None:
    """Raise UserError for an output that JSON text would not give back."""
    try:
        same = json.loads(as_json(output)) == output
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: the output is no JSON: {error}") from None
    if not same:
        raise UserError(f"{where}: the output {output!r:.80} is no JSON: use texts, numbers, lists, and objects whose keys are texts")


def kind_of(output: Any) -> str | None:
    """What an output is; None for none."""
    return None if output is None else TEXT if isinstance(output, str) else JSON


def as_json(value: Any) -> str:
    """JSON text of one line. Raises ValueError for a number that JSON has not."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def same_value(one: Any, other: Any) -> bool:
    """Whether two values are the same in JSON, in which true is not 1.

    >>> same_value([1, 0], [1.0, 0]), same_value([1, 0], [True, False])
    (True, False)
    """
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_value(one[key], other[key]) for key in one)
    return one == other


def with_common_kinds(records: Sequence[TaskRecord]) -> list[TaskRecord]:
    """The records, their tasks of the kind that all of the same name have; of none where outputs differ in theirs, or nobody has one.

    So the kind of an answer says nothing of the one output that it should be.
    """
    kinds: dict[str, set[str]] = {}
    for task in (task for record in records for task in record.tasks if task.kind is not None):
        kinds.setdefault(task.name, set()).add(task.kind)
    common = {name: next(iter(found)) for name, found in kinds.items() if len(found) == 1}
    return [replace(record, tasks=tuple(replace(task, kind=common.get(task.name)) for task in record.tasks)) for record in records]
