"""A model's answers to all prompts: asked, kept in a file where one is named, or read from one."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seodang.data.errors import UserError
from seodang.infer.remote.connection import GivenUp
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.recipes.run.following import Straight, follow
from seodang.recipes.run.results_file import ResultsFile, line_of


@dataclass
class Answers:
    """By the prompts' indices the texts of their answers, and of those that failed why."""

    texts: dict[int, dict[int, str]] = field(default_factory=dict)  # by their choice
    failed: dict[int, str] = field(default_factory=dict)

    def note(self, index: int, choice: int, text: str, error: str | None) -> None:
        """Take note of an answer."""
        if error is None:
            self.texts.setdefault(index, {})[choice] = text
        else:
            self.failed[index] = error

    def of(self, index: int) -> list[str]:
        """The answers to a prompt, none where one of them failed."""
        return [] if index in self.failed else [text for _, text in sorted(self.texts.get(index, {}).items())]


def asked_of(
    name: str, backend: Any, asked: Prompts, stack: ExitStack, opened: Callable[[], None], path: Path | None, resume: bool | None
) -> Answers:
    """The answers of a backend, by its name.

    Those that the file has of the same run are not asked again, and what has come is in there whatever ends this one.

    `opened` opens the backend, where there is something to ask. Raises UserError for a file of another run, and GivenUp, with the name, for a server
    that answers no more.
    """
    found, each, everything = Answers(), backend.params.num_return_sequences, range(len(asked.prompts))

    def ask(todo: Sequence[int], begin: Callable[[], None], show: Straight, where: str) -> None:
        opened()
        results = backend.answers(todo, path is not None)  # refuses what it cannot do
        stack.callback(results.close)
        begin()
        try:
            follow(results, show, len(everything) * each, where)
        except GivenUp as reason:
            raise GivenUp(f"{name}: {reason}") from None

    if path is None:
        show = Straight(lambda result: found.note(result.prompt_index, result.choice, result.text, result.error))
        ask(everything, lambda: None, show, "lost: give --output, and they are kept")
        return found
    path.parent.mkdir(exist_ok=True)
    with ResultsFile(str(path), asked, each, True, backend.identity, line_of(asked, backend.params, False), resume) as file:
        if file.todo:
            ask(file.todo, file.begin, file, f"in {path} (--resume goes on from there)")
        else:
            file.begin()
        file.finish()
    return read_answers(path, asked)


def read_answers(path: Path, asked: Prompts, part: bool = False) -> Answers:
    """The answers in a file that `seodang generate` wrote to these prompts; with `part` there may be some to others.

    Raises UserError for a line that is no answer, and one to another prompt.
    """
    found, unit = Answers(), asked.unit_written
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path.name} line {number}"
            try:
                told = json.loads(line)
                place, choice, text, error, prompt = (told[key] for key in (unit, "choice", "text", "error", "prompt"))
            except (ValueError, KeyError, TypeError):
                remedy = f"generate the file with --prompts DATA --output {path}"
                raise UserError(f"{where} is no answer of `seodang generate` to {unit}s of the data: {remedy}") from None
            index = asked.index_of(place)
            if index is None and part:
                continue
            if index is None or prompt != asked.prompts[index]:
                raise UserError(f"{where} answers another prompt than {unit} {place} of the data: give the data that it was generated from")
            found.note(index, choice, text, error)
    return found


def file_name(name: str) -> str:
    """A name as that of a file."""
    return re.sub(r"[^\w.-]+", "_", name)
