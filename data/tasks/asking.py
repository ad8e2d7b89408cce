"""What a model is asked of a record, round by round, and what becomes of its answers: a generator a record, which knows nothing of who answers."""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..formats import Message
from .forms import TaskResult, parse_answer, parse_tasks
from .layouts import Layout
from .records import JSON, TEXT, Task, TaskRecord


@dataclass(frozen=True)
class TaskQuestion:
    """A prompt, and the JSON schema that its answer must have, None for none; `place` counts the questions of a record."""

    place: int
    messages: list[Message]
    schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class TaskAnswer:
    """What was answered in how many tokens, and whether it ended by itself; `error` says why there is no answer."""

    text: str
    complete: bool = True
    tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class TaskAnswers:
    """What became of a record: a result a task, and the answers that they were read from, one of all tasks or one a task.

    `unexpected` is what an answer of all tasks holds beside them.
    """

    results: list[TaskResult]
    answers: list[TaskAnswer]
    unexpected: list[str] = field(default_factory=list)


Asked = Generator[list[TaskQuestion], list[TaskAnswer], TaskAnswers]


def asked_of(record: TaskRecord, layout: Layout, grammar: bool = True) -> Asked:
    """Yield the questions of each round and receive their answers in the same order; return the results.

    together asks once, apart all at once, the others a task at a time with the results so far. A task without a result, because there is no answer or it
    cannot be read, is left out of what later tasks are shown. With `grammar` answers that are JSON have its schema.
    """
    if layout.name == "together":
        schema = together_schema(record) if grammar and layout.task_format == "json" else None
        [answer] = yield [TaskQuestion(0, layout.all_asked(record), schema)]
        if answer.error is not None:
            return TaskAnswers([TaskResult(task.name, error=answer.error) for task in record.tasks], [answer])
        parsed = parse_tasks(answer.text, record.tasks, layout.task_format, answer.complete)
        return TaskAnswers(parsed.results, [answer], parsed.unexpected)
    if layout.name == "apart":
        answers = yield [_one(record, layout, place, [], grammar) for place in range(len(record.tasks))]
        return TaskAnswers([_result(task, answer) for task, answer in zip(record.tasks, answers, strict=True)], answers)
    results, answers, done = [], [], []
    for place, task in enumerate(record.tasks):
        [answer] = yield [_one(record, layout, place, done, grammar)]
        result = _result(task, answer)
        if result.error is None:  # a turn stands as it was said, in its blanks too
            done.append((task, answer.text if layout.name == "sequence" else result.output))
        results.append(result)
        answers.append(answer)
    return TaskAnswers(results, answers)


def _one(record: TaskRecord, layout: Layout, place: int, done: list[tuple[Task, Any]], grammar: bool) -> TaskQuestion:
    task = record.tasks[place]
    return TaskQuestion(place, layout.one_asked(record, task, done), {} if grammar and task.kind == JSON else None)


def _result(task: Task, answer: TaskAnswer) -> TaskResult:
    return TaskResult(task.name, error=answer.error) if answer.error is not None else parse_answer(answer.text, task, answer.complete)


def questions_each(record: TaskRecord, layout: Layout) -> int:
    """How many questions a record comes to."""
    return 1 if layout.name == "together" else len(record.tasks)


def together_schema(record: TaskRecord) -> dict[str, Any]:
    """The schema of the one answer of all tasks: their names, all of them and in their order, each a text where such tasks have texts."""
    kinds = {task.name: {"type": "string"} if task.kind == TEXT else {} for task in record.tasks}
    return {"type": "object", "properties": kinds, "required": [*kinds], "additionalProperties": False}


class Lockstep:
    """The questions of many records, in rounds: those that can be asked now, until every record has its results.

    `answer` takes the answers to what `questions` gave, in any order, and returns what has become of a record once that is certain.
    """

    def __init__(self, records: list[tuple[int, TaskRecord]], layout: Layout, grammar: bool = True) -> None:
        self._asked = {index: asked_of(record, layout, grammar) for index, record in records}
        self._open = {index: next(asked) for index, asked in self._asked.items()}
        self._answers: dict[int, dict[int, TaskAnswer]] = {index: {} for index in self._asked}
        self._fresh = [*self._open]

    def questions(self) -> Iterator[tuple[int, TaskQuestion]]:
        """The questions that nobody was given yet, each with its record's index; none where all is done."""
        fresh, self._fresh = self._fresh, []
        for index in fresh:
            for question in self._open[index]:
                yield index, question

    def answer(self, index: int, place: int, answer: TaskAnswer) -> TaskAnswers | None:
        """Take the answer to a record's question."""
        self._answers[index][place] = answer
        if len(self._answers[index]) < len(self._open[index]):
            return None
        answers, self._answers[index] = self._answers[index], {}
        try:
            self._open[index] = self._asked[index].send([answers[question.place] for question in self._open[index]])
        except StopIteration as over:
            return over.value
        self._fresh.append(index)
        return None

    def run(self, ask: Callable[[list[tuple[int, TaskQuestion]]], Iterable[tuple[int, int, TaskAnswer]]]) -> Iterator[tuple[int, TaskAnswers]]:
        """Have each round's questions answered by `ask`, which gives answers as they come with index and place; yield records as they are done."""
        while questions := [*self.questions()]:
            for index, place, answer in ask(questions):
                if (done := self.answer(index, place, answer)) is not None:
                    yield index, done
