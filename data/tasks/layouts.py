"""Several tasks of one input laid out as prompts and answers: all together, one after another, each seeing the earlier results, each apart.

What is learned and what is asked come out of the same functions, so that a prompt at generation is the one of training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..formats import Dialogue, Family, Message, Shapes, triplet
from .forms import answer_text, check_format, render_tasks
from .records import Task, TaskRecord, task_record
from .wording import ALL, ALL_WITHOUT_INPUT, ANSWER, check_language, language_of

LAYOUTS = ("together", "sequence", "cumulative", "apart")

Done = Sequence[tuple[Task, Any]]  # the earlier tasks, each with its result


@dataclass(frozen=True)
class Layout:
    """How tasks are laid out, how several results are written in one text, in which language that is asked for (None: that of the instructions).

    together: one prompt with the input and all tasks, one answer with all results. sequence: a dialogue, the input with the first task, its result, the
    next task, its result. cumulative: a prompt a task, with the input, the earlier tasks and their results. apart: a prompt a task, of nothing else.
    Raises UserError for what there is not.
    """

    name: str
    task_format: str = "json"
    task_language: str | None = None

    def __post_init__(self) -> None:
        if self.name not in LAYOUTS:
            raise UserError(f"tasks must be {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}, got {self.name!r}")
        check_format(self.task_format)
        check_language(self.task_language)

    def all_asked(self, record: TaskRecord) -> list[Message]:
        """The one prompt of `together`."""
        language = self.task_language or language_of([task.instruction for task in record.tasks])
        listed = "\n".join(f"{task.name}: {task.instruction}" for task in record.tasks)
        begin = (ALL if record.input else ALL_WITHOUT_INPUT)[language]
        return _asked(record, _paragraphs(record.input, f"{begin}\n{listed}", ANSWER[language][self.task_format]))

    def one_asked(self, record: TaskRecord, task: Task, done: Done = ()) -> list[Message]:
        """The prompt of a task in one of the other layouts, where the tasks before it are `done`; of a sequence their results are turns."""
        if self.name == "apart":
            return triplet({"system": record.system, "instruction": task.instruction, "input": record.input, "output": ""}).messages[:-1]
        if self.name == "cumulative":
            earlier = [text for each, output in done for text in (each.instruction, render_tasks([each], [output], self.task_format))]
            return _asked(record, _paragraphs(record.input, *earlier, task.instruction))
        turns = [*(each.instruction for each, _ in done), task.instruction]
        answers = [{"role": "assistant", "content": answer_text(output)} for _, output in done]
        first, *rest = [{"role": "user", "content": text} for text in turns]
        first["content"] = _paragraphs(record.input, first["content"])
        return [*_system(record), first, *(message for pair in zip(answers, rest, strict=True) for message in pair)]

    def dialogues(self, record: TaskRecord) -> list[Dialogue]:
        """What is learned of a record, its results alone: one dialogue of `together` and `sequence`, one a task of the others."""
        outputs = [task.output for task in record.tasks]
        if self.name == "together":
            return [Dialogue([*self.all_asked(record), _answer(render_tasks(record.tasks, outputs, self.task_format))])]
        places = range(len(record.tasks))
        if self.name == "sequence":
            places = places[-1:]
        done = [*zip(record.tasks, outputs, strict=True)]
        return [Dialogue([*self.one_asked(record, task, done[:at]), _answer(answer_text(task.output))]) for at in places for task in [record.tasks[at]]]


def _system(record: TaskRecord) -> list[Message]:
    return [{"role": "system", "content": record.system}] if record.system else []


def _asked(record: TaskRecord, text: str) -> list[Message]:
    return [*_system(record), {"role": "user", "content": text}]


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


def task_dialogues(record: Mapping[str, Any], layout: str, task_format: str = "json", task_language: str | None = None) -> list[Dialogue]:
    """The dialogues of a record {input, tasks: [{instruction, output, name}, ...], system} in a layout. Raises UserError naming what is wrong with it.

    >>> record = {"input": "나무", "tasks": [{"instruction": "Translate.", "output": "tree"}, {"instruction": "Count.", "output": 1}]}
    >>> [message["content"] for message in task_dialogues(record, "sequence")[0].messages]
    ['나무\\n\\nTranslate.', 'tree', 'Count.', '1']
    """
    return Layout(layout, task_format, task_language).dialogues(task_record(record))


class TaskShapes(Family):
    """Records of several tasks beside the shapes of a family; how many were read, and how many examples they gave, is counted.

    `makes` turns a dialogue into what the family's shapes give.
    """

    def __init__(self, layout: Layout, shapes: Shapes, makes: Callable[[Dialogue], Any] = lambda dialogue: dialogue) -> None:
        super().__init__({"tasks": (("tasks",), self._read), **shapes}, getattr(shapes, "beside", ()))
        self.layout, self._makes = layout, makes
        self.records = self.examples = 0
        self.behind = 0  # examples of other shapes that the first of them stands behind, where a stream was read on to it

    def _read(self, record: Mapping[str, Any]) -> list[Any]:
        examples = [self._makes(dialogue) for dialogue in self.layout.dialogues(task_record(record))]
        self.records += 1
        self.examples += len(examples)
        return examples

    def line(self) -> str:
        """What became of the records, in a line. Raises UserError where there was none."""
        if not self.records:
            raise UserError(f"tasks {self.layout.name}: no record has several tasks, {{input, tasks: [{{instruction, output}}, ...]}}: leave it out")
        behind = f", behind {self.behind:,} others" if self.behind else ""
        return f"tasks           {self.layout.name}, {self.examples:,} dialogues of {self.records:,} records{behind}"
