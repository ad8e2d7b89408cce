"""The results of tasks counted by the tasks' names, and beside those that they should be."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seodang.data.tasks.forms import answer_text
from seodang.data.tasks.records import TaskRecord, same_value
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.recipes.prompts.references import ENDING
from seodang.recipes.tasks.results import RecordAnswers


@dataclass
class OfName:
    """The results of all tasks of a name: what was generated beside what should have been, "" for what failed, and how many."""

    texts: list[tuple[str, str]] = field(default_factory=list)
    right: int = 0
    results: int = 0
    errors: Counter = field(default_factory=Counter)


class TasksMeasured:
    """Takes note of each record's results; `references` says that they are measured by the records' own outputs."""

    def __init__(self, records: Sequence[TaskRecord], references: bool) -> None:
        self._records, self._references = records, references
        self._found: dict[str, OfName] = {}

    def beside(self, show: Callable[[Any], None]) -> Callable[[Any], None]:
        """What shows a record's results and takes note of them."""

        def shown(result: RecordAnswers) -> None:
            for place, each in enumerate(result.answers.results):
                self._note(result.prompt_index, place, each.output, each.error)
            show(result)

        return shown

    def read(self, path: str, asked: Prompts) -> None:
        """Take note of a finished file of results, whichever run of the command wrote it."""
        with open(path, encoding="utf-8") as lines:
            for line in map(json.loads, lines):
                for place, task in enumerate(line["tasks"]):
                    self._note(asked.index_of(line[asked.unit_written]), place, task.get("output"), task.get("error"))

    def _note(self, index: int, place: int, output: Any, error: str | None) -> None:
        task = self._records[index].tasks[place]
        of = self._found.setdefault(task.name, OfName())
        of.results += 1
        if error is not None:
            of.errors[error.partition(":")[0]] += 1
        if self._references and task.output is not None:
            of.right += error is None and same(output, task.output)
            of.texts.append(("" if error is not None else answer_text(output), answer_text(task.output)))

    def values(self) -> dict[str, dict[str, Any]]:
        """By the tasks' names: how many results and errors, exact match in [0, 1] and chrF in [0, 100] of all that have a reference, errors being wrong."""
        from seodang.train.maths.chrf import chrf, chrf_counts

        values: dict[str, dict[str, Any]] = {}
        for name, of in self._found.items():
            values[name] = {"results": of.results, "errors": sum(of.errors.values())}
            if of.texts:
                near = float(chrf(sum(chrf_counts(*pair) for pair in of.texts)))
                values[name] |= {"measured": len(of.texts), "exact": of.right / len(of.texts), "chrf": near}
        return values

    def tell(self, path: str | None) -> None:
        """Print a line a name, on stderr where the results are printed, and keep the figures beside the file of results."""
        values = self.values()
        out = sys.stderr if path is None else sys.stdout
        width = max(16, *(len(name) + 2 for name in values)) if values else 16
        for name, of in values.items():
            told = f"exact {of['exact']:.3f}, chrf {of['chrf']:.1f} of {of['measured']:,}" if "exact" in of else f"{of['results']:,} results"
            errors = ", ".join(f"{count:,} {error}" for error, count in self._found[name].errors.most_common(3))
            print(f"{name:<{width}}{told}" + (f" ({of['errors']:,} errors: {errors})" if errors else ""), file=out)
        if path is not None and self._references:
            Path(f"{path}{ENDING}").write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def same(output: Any, expected: Any) -> bool:
    """Whether a result is what was expected: texts but for their white space, other values as JSON has them."""
    if isinstance(output, str) or isinstance(expected, str):
        return answer_text(output).split() == answer_text(expected).split()
    return same_value(output, expected)
