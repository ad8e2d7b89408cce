"""The results of records of several tasks: a line a record in a file that can be gone on with, or printed."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seodang.data.tasks.asking import TaskAnswers
from seodang.data.tasks.forms import answer_text
from seodang.data.tasks.records import TaskRecord
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.recipes.run.results_file import ResultsFile


@dataclass(frozen=True)
class RecordAnswers:
    """What became of a record, as whoever follows a run wants it: `prompt_index` counts the records, `error` says that a prompt was not answered."""

    prompt_index: int
    answers: TaskAnswers
    choice: int = 0

    @property
    def error(self) -> str | None:
        """The first prompt's that was not answered; an answer that cannot be read is one."""
        return next((answer.error for answer in self.answers.answers if answer.error is not None), None)

    @property
    def tokens(self) -> int:
        """How many were generated."""
        return sum(answer.tokens for answer in self.answers.answers)


class TaskResultsFile(ResultsFile):
    """A file of results a record: on resuming, a record of which a prompt was not answered is asked again, one whose answer could not be read is not."""

    def _told(self, record: Mapping[str, Any]) -> tuple[int, Any, Any]:
        asked = {"input": record["input"], "tasks": [{"name": task["name"], "instruction": task["instruction"]} for task in record["tasks"]]}
        if "system" in record:
            asked["system"] = record["system"]
        return 0, asked, record["error"]


def line_of(asked: Prompts, records: Sequence[TaskRecord], references: bool) -> Callable[[RecordAnswers], dict[str, Any]]:
    """What makes the object of a line: of each task its output or its error, and where that could not be read, what was answered.

    `tokens` are those generated: of a task where it has an answer of its own, and of the record.
    """

    def line(result: RecordAnswers) -> dict[str, Any]:
        index, found = result.prompt_index, result.answers
        own = len(found.answers) == len(found.results)
        tasks = []
        for place, (task, each) in enumerate(zip(records[index].tasks, found.results, strict=True)):
            told: dict[str, Any] = {"name": task.name, "instruction": task.instruction}
            told |= {"output": each.output} if each.error is None else {"error": each.error}
            answer = found.answers[place] if own else None
            if answer is not None:
                told |= {"tokens": answer.tokens} | ({"text": answer.text} if each.error is not None and answer.error is None else {})
            tasks.append(told | ({"reference": task.output} if references else {}))
        told = {asked.unit_written: asked.numbers[index], "input": records[index].input, "tasks": tasks, "tokens": result.tokens, "error": result.error}
        if not own and (found.unexpected or any(each.error is not None for each in found.results)) and result.error is None:
            told["text"] = found.answers[0].text
        told |= {"unexpected": found.unexpected} if found.unexpected else {}
        return told | ({"system": records[index].system} if records[index].system else {})

    return line


class TasksPrinter:
    """Prints the results of each record under its input, errors on stderr."""

    def __init__(self, asked: Prompts, records: Sequence[TaskRecord]) -> None:
        self._asked, self._records = asked, records

    def __call__(self, result: RecordAnswers) -> None:
        print(f"> {self._records[result.prompt_index].input}")
        for each in result.answers.results:
            if each.error is None:
                print(f"{each.name}: {answer_text(each.output)}", flush=True)
            else:
                number = self._asked.numbers[result.prompt_index]
                print(f"error: {self._asked.unit} {number}, {each.name}: {' '.join(each.error.split())}", file=sys.stderr)
