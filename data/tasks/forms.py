"""Several results as one text, and the text as results again: under headings, as a JSON object, as lines of a name and a value.

Each way gives back exactly what it was given. Of what a model wrote, each task has its result or an error of its own.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..json_text import parsed
from ..surrogates import refuse_surrogates
from .records import JSON, TEXT, Task, as_json

FORMATS = ("json", "text", "keyed")
CUT = "cut off by the limit of tokens"
ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
HEADING = "### "
LINE_BEGINS = r"(?:(?<=\n)|\A)"
HEADED = r"(?=\\*###)"  # what follows might be taken for a heading, or for one that was kept from being one
BACKSLASH = r"\\"  # in a pattern, and in what takes its place


@dataclass(frozen=True)
class TaskResult:
    """What became of a task: its output, or the error that stands in its place."""

    name: str
    output: Any = None
    error: str | None = None


@dataclass(frozen=True)
class Parsed:
    """A result a task, in their order, and what else the text holds: names that no task has, text that belongs to none."""

    results: list[TaskResult]
    unexpected: list[str] = field(default_factory=list)


def check_format(task_format: str) -> None:
    """Raise UserError for a format that there is not."""
    if task_format not in FORMATS:
        raise UserError(f"task_format must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got {task_format!r}")


def render_tasks(tasks: Sequence[Task], outputs: Sequence[Any], task_format: str) -> str:
    """Write the outputs of tasks as one text.

    text: each under a heading of the task's name; a line that begins with ### has a backslash before it, one that begins with backslashes and ### one
    more. json: an object by the tasks' names, of texts and other values as they are. keyed: a line `name: value` each, in which a backslash, a new line and
    a carriage return are written as \\\\, \\n and \\r. Values that are no texts are JSON text in the first and the last.

    >>> render_tasks([Task("mood", "?"), Task("names", "?")], ["good", ["Kim"]], "keyed")
    'mood: good\\nnames: ["Kim"]'
    """
    check_format(task_format)
    if task_format == "json":
        return as_json({task.name: output for task, output in zip(tasks, outputs, strict=True)})
    texts = [(task.name, answer_text(output)) for task, output in zip(tasks, outputs, strict=True)]
    if task_format == "keyed":
        return "\n".join(f"{name}: {_escaped(text)}" for name, text in texts)
    return "\n\n".join(f"{HEADING}{name}\n{re.sub(f'{LINE_BEGINS}{HEADED}', BACKSLASH, text)}" for name, text in texts)


def answer_text(output: Any) -> str:
    """An output as the answer that it is alone: a text as it stands, another value as JSON text."""
    return output if isinstance(output, str) else as_json(output)


def parse_answer(text: str, task: Task, complete: bool = True) -> TaskResult:
    """Read an answer to one task alone; one that is not `complete` was cut off."""
    return TaskResult(task.name, error=CUT) if not complete else _read(task, text)


def parse_tasks(text: str, tasks: Sequence[Task], task_format: str, complete: bool = True) -> Parsed:
    """Read the results of tasks out of one text, whoever wrote it: what is missing, twice there, cut off or of another kind is that task's error.

    Of a text that is not `complete`, cut off by a limit of tokens, what was whole before the cut is kept.
    """
    check_format(task_format)
    return {"json": _parse_json, "text": _parse_text, "keyed": _parse_keyed}[task_format](text, tasks, complete)


def _read(task: Task, text: str) -> TaskResult:
    """A task's answer from its text: JSON where its outputs are."""
    if task.kind != JSON:
        return TaskResult(task.name, text)
    try:
        return TaskResult(task.name, strict_json(text))
    except ValueError as error:
        return TaskResult(task.name, error=f"not JSON: {error}")


def _gathered(tasks: Sequence[Task], found: dict[str, list[TaskResult]], lacking: Callable[[str], str]) -> list[TaskResult]:
    """A result a task: the one found; an error where there is none, or more than one."""
    results = []
    for task in tasks:
        there = found.get(task.name, [])
        error = lacking(task.name) if not there else f"{task.name!r} is there {len(there)} times" if len(there) > 1 else None
        results.append(there[0] if error is None else TaskResult(task.name, error=error))
    return results


def _parse_text(text: str, tasks: Sequence[Task], complete: bool) -> Parsed:
    named = {task.name: task for task in tasks}
    parts = re.split(rf"{LINE_BEGINS}{HEADING}([^\n]*)(?:\n|\Z)", text)
    found: dict[str, list[TaskResult]] = {}
    unexpected = [parts[0].strip()] if parts[0].strip() else []
    for place, (name, body) in enumerate(zip(parts[1::2], parts[2::2], strict=True), 1):
        last = place == len(parts) // 2
        if not last:
            body = body.removesuffix("\n\n") if body.endswith("\n\n") else body.removesuffix("\n")
        name = name.strip()
        task = named.get(name)
        if task is None:
            unexpected.append(name)
        elif last and not complete:
            found.setdefault(name, []).append(TaskResult(name, error=CUT))
        else:
            found.setdefault(name, []).append(_read(task, re.sub(f"{LINE_BEGINS}{BACKSLASH}{HEADED}", "", body)))
    return Parsed(_gathered(tasks, found, lambda name: f"no heading {HEADING}{name}" if complete else CUT), unexpected)


def _parse_keyed(text: str, tasks: Sequence[Task], complete: bool) -> Parsed:
    named, lines = {task.name: task for task in tasks}, text.split("\n")
    cut = None if complete else lines.pop()  # of a line that is not ended nobody knows whether it is whole
    found: dict[str, list[TaskResult]] = {}
    unexpected = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon or name not in named:
            unexpected.append(line)
            continue
        try:
            result = _read(named[name], _unescaped(value.removeprefix(" ")))
        except ValueError as error:
            result = TaskResult(name, error=str(error))
        found.setdefault(name, []).append(result)
    if cut is not None and (name := cut.partition(":")[0]) in named and ":" in cut:
        found.setdefault(name, []).append(TaskResult(name, error=CUT))
    return Parsed(_gathered(tasks, found, lambda name: f"no line {name}:" if complete else CUT), unexpected)


def _escaped(text: str) -> str:
    return "".join(ESCAPES.get(letter, letter) for letter in text)


def _unescaped(text: str) -> str:
    """What a value says. Raises ValueError for a backslash before what has none."""
    meant = {written[1]: letter for letter, written in ESCAPES.items()}

    def letter(found: re.Match) -> str:
        if found[1] not in meant:
            raise ValueError(f"the backslash in {found[0]!r} means nothing: \\\\, \\n and \\r do")
        return meant[found[1]]

    return re.sub(r"(?s)\\(.?)", letter, text)


def _parse_json(text: str, tasks: Sequence[Task], complete: bool) -> Parsed:
    members, trouble, rest = _members(text)
    named = {task.name: task for task in tasks}
    found: dict[str, list[TaskResult]] = {}
    for name, value in members:
        if name in named:
            found.setdefault(name, []).append(_value(named[name], value))
    unexpected = [name for name, _ in members if name not in named] + [rest] * bool(rest)
    lacking = lambda name: CUT if trouble and not complete else ": ".join(filter(None, (f"no key {name!r} in the answer", trouble)))
    return Parsed(_gathered(tasks, found, lacking), unexpected)


def _value(task: Task, text: str) -> TaskResult:
    """A task's result from its member's JSON text."""
    try:
        value = strict_json(text)
    except ValueError as error:
        return TaskResult(task.name, error=f"not JSON: {error}")
    if task.kind == TEXT and not isinstance(value, str):
        return TaskResult(task.name, error=f"must be a text, got {text:.80}")
    return TaskResult(task.name, value)


def _members(text: str) -> tuple[list[tuple[str, str]], str, str]:
    """The names and the values' JSON texts of an object, as far as it can be read; what stands in the way of more, "" for nothing; and what stands behind it."""
    decoder, blanks = json.JSONDecoder(), re.compile(r"[ \t\n\r]*")
    members: list[tuple[str, str]] = []
    at = 0

    def reach(letters: str) -> str:
        """Step over blanks and one of the letters, which is returned."""
        nonlocal at
        at = blanks.match(text, at).end()
        if text[at : at + 1] not in tuple(letters):
            raise ValueError(f"{' or '.join(letters)} expected at character {at + 1}")
        at += 1
        return text[at - 1]

    try:
        reach("{")
        if text[blanks.match(text, at).end() :].startswith("}"):
            reach("}")
            return members, "", text[at:].strip()
        ended = ","
        while ended == ",":
            reach('"')
            name, at = decoder.raw_decode(text, at - 1)
            refuse_surrogates(name)  # which a file could not hold
            reach(":")
            at = start = blanks.match(text, at).end()
            value, at = decoder.raw_decode(text, start)
            member, delimited = (name, text[start:at]), isinstance(value, str | list | dict)
            if delimited:
                members.append(member)
            ended = reach(",}")
            if not delimited:  # of a number more may have been to come
                members.append(member)
    except (ValueError, RecursionError) as error:
        return members, f"not JSON: {error or 'objects lie too deep in one another'}", ""
    return members, "", text[at:].strip()


def strict_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for what is none, for a key that an object has twice, for numbers that JSON has not, and for half a character."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
        return value

    def never(number: str) -> Any:
        raise ValueError(f"{number} is no number of JSON")

    def finite(number: str) -> float:
        if (value := float(number)) in (float("inf"), float("-inf")):  # which could not be written as JSON
            raise ValueError(f"the number {number:.40} is too great")
        return value

    try:
        value = parsed(text, lambda text: json.loads(text, object_pairs_hook=once, parse_constant=never, parse_float=finite))
    except json.JSONDecodeError as error:
        raise ValueError(str(error).removesuffix(": line 1 column 1 (char 0)")) from None  # which says nothing
    refuse_surrogates(value)
    return value
