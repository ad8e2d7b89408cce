"""Prompts of the command line, or of a file of any shape."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from seodang.data.classification.choices import Choices, choices_of
from seodang.data.columns import ANSWERS, Columns
from seodang.data.errors import UserError
from seodang.data.files.sources import Located, is_source_file, records_of
from seodang.data.files.text_files import lines_of
from seodang.data.formats import to_example
from seodang.data.json_text import parsed
from seodang.data.seq2seq.records import PREFIXES, given_beginning, language_key, translation_sides
from seodang.data.surrogates import refuse_surrogates


@dataclass(frozen=True)
class Asked:
    """A prompt out of a file, the answer that it should get, None where nobody says, and how the answer begins.

    `is_source`: an encoder reads it as the text that it is, whatever chat template there is, for so it is trained.
    """

    prompt: Any
    reference: str | None = None
    prefix: str = ""
    is_source: bool = False
    translated: bool = False  # its keys are languages
    choices: Choices | None = None


@dataclass
class Prompts:
    """Prompts as the engine takes them, each with the number by which whoever gave it finds it, of what `unit` says.

    By a prompt's index: the `references` are the answers that they should get, `prefixes` what answers begin with where that is given, `choices` what may
    be chosen from, `schemas` what JSON the answers are to be; `sources` are those that an encoder reads without a chat template. `records` are those that
    the prompts were taken out of.
    """

    prompts: list[Any]
    numbers: list[int]
    unit: str = "prompt"  # of the command line; else line or record, of a file
    references: dict[int, str] = field(default_factory=dict, compare=False)
    prefixes: dict[int, str] = field(default_factory=dict, compare=False)
    sources: frozenset[int] = field(default=frozenset(), compare=False)
    translated: bool = field(default=False, compare=False)  # the keys of records were languages
    choices: dict[int, Choices] = field(default_factory=dict, compare=False)
    records: list[Any] = field(default_factory=list, compare=False, repr=False)
    schemas: dict[int, dict[str, Any]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, asked: list[Asked], numbers: list[int], unit: str, records: list[Any]) -> "Prompts":
        """The prompts of a file, with what it says of them."""
        return cls(
            [each.prompt for each in asked], numbers, unit,
            references={index: each.reference for index, each in enumerate(asked) if each.reference is not None},
            prefixes={index: each.prefix for index, each in enumerate(asked) if each.prefix},
            sources=frozenset(index for index, each in enumerate(asked) if each.is_source),
            translated=any(each.translated for each in asked),
            choices={index: each.choices for index, each in enumerate(asked) if each.choices is not None},
            records=records,
        )  # fmt: skip

    def first(self, count: int) -> "Prompts":
        """So many of the prompts, or as many as there are."""
        of = {name: {index: value for index, value in getattr(self, name).items() if index < count} for name in ("references", "prefixes", "choices")}
        of |= {name: getattr(self, name)[:count] for name in ("prompts", "numbers", "records")}
        return replace(self, **of, sources=frozenset(index for index in self.sources if index < count))

    @property
    def unit_written(self) -> str:
        """The key of a prompt's number in a file of results."""
        return "line" if self.unit == "line" else "record"

    def index_of(self, number: int) -> int | None:
        """Which prompt, counted from 0, has a number; None for a number of none."""
        return self._indices.get(number)

    @cached_property
    def _indices(self) -> dict[int, int]:
        return {number: index for index, number in enumerate(self.numbers)}


@dataclass(frozen=True)
class Reading:
    """How prompts are taken out of records: as texts to be continued (`raw`), with the answers that they should get, of translations in which languages.

    With `choices` answers to choose from are no part of the prompt, and the right one is the reference.
    """

    raw: bool = False
    references: bool = False
    source_lang: str | None = None
    target_lang: str | None = None
    choices: bool = False


def read_prompts(
    given: list[str], raw: bool, encoding: str | None = None, columns: Mapping[str, str] | None = None, reading: Reading | None = None
) -> Prompts:
    """Return prompts as the engine takes them: messages, or with `raw` texts.

    A single argument that names a .txt, .jsonl or .json file, or any other file of records that there is, is read. Raises UserError for none at all, and
    for none with a reference where `reading` asks for these.
    """
    reading = reading or Reading(raw)
    found = Prompts(list(given), [*range(1, len(given) + 1)])
    if (path := prompts_file(given)) is not None:
        found = read_prompt_file(path, reading, encoding, prompt_columns(columns))
    if not found.prompts:
        raise no_prompts()
    if reading.references and not reading.choices:  # who reads choices knows later whether it needs the others
        refuse_without_references(len(found.references))
    found.prompts = [as_turns(prompt, raw) for prompt in found.prompts]
    return found


def stream_prompts(given: list[str], encoding: str | None, columns: Mapping[str, str] | None, reading: Reading) -> tuple[str, Iterator[tuple[int, Asked]]]:
    """As `read_prompts`, but each prompt is read when it is asked for: what their numbers count, and each with its number. Whether any has a reference is not looked at."""
    if (path := prompts_file(given)) is None:
        return "prompt", ((number, Asked(as_turns(prompt, reading.raw))) for number, prompt in enumerate(given, 1))
    named = prompt_columns(columns)
    unit, located = located_records(path, encoding, named.named.values())

    def read() -> Iterator[tuple[int, Asked]]:
        for number, where, record in located:
            asked = prompt_of(record, where, reading, named)
            yield number, replace(asked, prompt=as_turns(asked.prompt, reading.raw))
        named.refuse_absent()

    return unit, read()


def prompts_file(given: list[str]) -> Path | None:
    """The file that the prompts given are: a single argument that names one of records, or of another ending that there is; None for prompts themselves.

    Raises UserError for the path of a folder.
    """
    if len(given) == 1 and os.sep in given[0] and os.path.isdir(os.path.expanduser(given[0])):
        raise UserError(f"prompts {given[0]} is a folder: name a file in it")
    return Path(given[0]) if len(given) == 1 and (Path(given[0]).suffix in (".txt", ".jsonl", ".json") or is_source_file(given[0])) else None


def prompt_columns(columns: Mapping[str, str] | None) -> Columns:
    """The columns of a file of prompts, some of them as the user names them."""
    named = dict(columns or {})
    return Columns(named, ("prompt", "instruction", "messages"), dict.fromkeys(named, ()), PREFIXES)


def no_prompts() -> UserError:
    return UserError('no prompts: give some ("..."), or --prompts FILE')


def as_turns(prompt: Any, raw: bool) -> Any:
    """A prompt as the engine takes it: a text is a user's turn, but with `raw`."""
    return prompt if raw or not isinstance(prompt, str) else [{"role": "user", "content": prompt}]


def refuse_without_references(references: int) -> None:
    """Raise UserError for prompts of which none has the answer that it should get."""
    if not references:
        raise UserError("references: no prompt has the answer that it should get (target, completion, output, answer): give a file of records that have one, or name its column, --columns answer=COLUMN")


def read_prompt_file(path: Path, reading: Reading, encoding: str | None, columns: Columns) -> Prompts:
    """Read prompts from a file, empty lines passed over; raises UserError naming the line that is wrong."""
    unit, numbers, located = numbered_records(path, encoding, columns.named.values())
    asked = [prompt_of(record, where, reading, columns) for where, record in located]
    columns.refuse_absent()
    return Prompts.of(asked, numbers, unit, [record for _, record in located])


def numbered_records(path: Path, encoding: str | None, known: Collection[str]) -> tuple[str, list[int], list[Located]]:
    """The records of a file, or the lines of a .txt, each with its place and the number by which it is found, of what the unit says: lines, records."""
    unit, found = located_records(path, encoding, known)
    rows = list(found)
    return unit, [number for number, _, _ in rows], [(where, record) for _, where, record in rows]


def located_records(path: Path, encoding: str | None, known: Collection[str]) -> tuple[str, Iterator[tuple[int, str, Any]]]:
    """As `numbered_records`, but each record is read when it is asked for: what the numbers count, and number, place and record of each.

    Raises UserError for a file that there is not, and where the first is asked for, for one without any.
    """
    if path.suffix in (".txt", ".jsonl", ".json") and not os.path.isfile(path):
        raise UserError(f"the prompts file {path} does not exist")

    def read() -> Iterator[tuple[int, str, Any]]:
        there = False
        if path.suffix in (".txt", ".jsonl"):
            for number, line in enumerate(lines_of(path, encoding), 1):
                if line.strip():
                    line, where, there = line.removesuffix("\n"), f"{path.name} line {number}", True
                    yield number, where, parse_json(line, where) if path.suffix == ".jsonl" else line
        else:
            for number, (where, record) in enumerate(records_of(str(path), encoding, known), 1):
                there = True
                yield number, where, record
        if not there:
            raise UserError(f"the prompts file {path} is empty")

    return "line" if path.suffix in (".txt", ".jsonl") else "record", read()


def parse_json(text: str, where: str) -> Any:
    """Parse JSON or raise UserError saying where."""
    try:
        return parsed(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error}") from None


def prompt_of(record: Any, where: str, reading: Reading, columns: Columns) -> Asked:
    """Take the prompt out of a record of any known shape, with its answer if references are wanted. Raises UserError where there is none."""
    refuse_surrogates(record, where)
    if not isinstance(record, dict):
        if isinstance(record, str):
            return Asked(record)
        to_example(record, where=where)  # which says what a record is
    if reading.choices and (chosen_from := offered(record, where, columns)) is not None:
        choices, rest = chosen_from
        asked = prompt_of(rest, where, replace(reading, choices=False, references=False), columns)
        return replace(asked, reference=choices.texts[choices.right], choices=choices)
    try:
        record, _ = columns.taken(record)
        prefix = given_beginning(record)
        if (source := source_of(record, reading, prefix, "answer" in columns.named)) is not None:
            return source
        reference = reference_in(record, "answer" in columns.named) if reading.references else None
    except UserError as error:
        columns.refuse_absent()
        raise UserError(f"{where}: {error}") from None
    if reading.raw:
        for key in ("prompt", "text", "instruction"):
            if isinstance(record.get(key), str):
                return Asked(record[key], reference, prefix)
    record = {**record, **{key: "-" for key, of in (("completion", "prompt"), ("output", "instruction")) if of in record}}  # a prompt needs no answer
    try:
        example = to_example(record, where=where)
    except UserError:
        columns.refuse_absent()
        raise
    messages = getattr(example, "messages", None)
    if messages is None or reading.raw:
        raise UserError(f"{where}: {'--raw needs' if reading.raw else 'give'} a prompt" + (" text" if reading.raw else ", an instruction or messages"))
    asked = messages
    while asked and asked[-1]["role"] == "assistant":
        asked = asked[:-1]
    if not asked:
        raise UserError(f"{where}: there is no turn to answer")
    if reading.references and ("messages" in record or "conversations" in record) and len(asked) < len(messages):
        content = messages[len(asked)].get("content")
        reference = content if isinstance(content, str) and content.strip() else reference
    return Asked(asked, reference, prefix)


def offered(record: Mapping[str, Any], where: str, columns: Columns) -> tuple[Choices, dict[str, Any]] | None:
    """What `choices_of` a record gives, whose columns then count as read."""
    try:
        found = choices_of(record, columns.named)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if found is not None:
        for key in ("choices", "answer"):
            columns.wanted.pop(key, None)
    return found


def source_of(record: Mapping[str, Any], reading: Reading, prefix: str, named: bool) -> Asked | None:
    """What a record of {source, target} or of {"translation": {...}} asks, None for another; `named` as in `reference_in`.

    Raises UserError for languages that it does not have.
    """
    if record.get("translation") is not None:
        sides = translation_sides(record)
        if reading.source_lang is None or reading.references and reading.target_lang is None and not named:
            raise UserError(f"translation holds {', '.join(sides)}: say which is read and which is written, by --source_lang and --target_lang")
        source = sides[language_key(sides, reading.source_lang)]
        target = sides[language_key(sides, reading.target_lang)] if reading.references and not named else None
        translated = True
    elif "source" in record and not any(key in record for key in ("prompt", "question", "instruction", "messages", "conversations")):
        source, target, translated = record["source"], record.get("target"), False
    else:
        return None
    if not isinstance(source, str) or not source.strip():
        raise UserError(f"the source must be a text of more than blanks, got {source!r:.80}")
    reference = reference_text(record.get("answer") if named else target) if reading.references else None
    return Asked(source, reference, prefix, is_source=True, translated=translated)


def reference_in(record: Mapping[str, Any], named: bool) -> str | None:
    """The answer that a prompt's record has beside it, None for none; `named` says that the user has told which column it is.

    Raises UserError where several columns may hold it.
    """
    own = "completion" if "prompt" in record else "output" if "instruction" in record else None
    names = ("answer",) if named else [own] if record.get(own) is not None else [key for key in record if str(key).strip().casefold() in (*ANSWERS, "target")]
    found = {key: record[key] for key in names if record.get(key) is not None}
    if len(found) > 1:
        raise UserError(f"several columns may hold the reference: {', '.join(map(str, found))}: say which, as --columns answer={next(iter(found))}")
    return reference_text(next(iter(found.values()), None))


def reference_text(value: Any) -> str | None:
    """A reference as a text: a number as it is written, the last of messages; None for nothing but blanks. Raises UserError for what is no one text."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if isinstance(value, list | dict):
        raise UserError(f"the reference must be one text, got {value!r:.80}")
    return str(value) if value is not None and str(value).strip() else None
