"""Prompts of the command line, or of a file of any shape."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from seodang.data.columns import Columns
from seodang.data.errors import UserError
from seodang.data.files.sources import is_source_file, records_of
from seodang.data.files.text_files import lines_of
from seodang.data.formats import to_example
from seodang.data.json_text import parsed
from seodang.data.surrogates import refuse_surrogates


@dataclass
class Prompts:
    """Prompts as the engine takes them, each with the number by which whoever gave it finds it, of what `unit` says."""

    prompts: list[Any]
    numbers: list[int]
    unit: str = "prompt"  # of the command line; else line or record, of a file

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


def read_prompts(given: list[str], raw: bool, encoding: str | None = None, columns: Mapping[str, str] | None = None) -> Prompts:
    """Return prompts as the engine takes them: messages, or with `raw` texts.

    A single argument that names a .txt, .jsonl or .json file, or any other file of records that there is, is read. Raises UserError for none at all.
    """
    found = Prompts(list(given), [*range(1, len(given) + 1)])
    if len(given) == 1 and (Path(given[0]).suffix in (".txt", ".jsonl", ".json") or is_source_file(given[0])):
        named = dict(columns or {})
        found = read_prompt_file(Path(given[0]), raw, encoding, Columns(named, ("prompt", "instruction", "messages"), dict.fromkeys(named, ())))
    if not found.prompts:
        raise UserError('no prompts: give some ("..."), or --prompts FILE')
    found.prompts = [prompt if raw or not isinstance(prompt, str) else [{"role": "user", "content": prompt}] for prompt in found.prompts]
    return found


def read_prompt_file(path: Path, raw: bool, encoding: str | None, columns: Columns) -> Prompts:
    """Read prompts from a file, empty lines passed over; raises UserError naming the line that is wrong."""
    if path.suffix in (".txt", ".jsonl", ".json") and not path.is_file():
        raise UserError(f"the prompts file {path} does not exist")
    if path.suffix not in (".txt", ".jsonl"):
        records = list(records_of(str(path), encoding, columns.named.values()))
        found = Prompts([prompt_of(record, where, raw, columns) for where, record in records], [*range(1, len(records) + 1)], "record")
    else:
        lines = [(n, line.removesuffix("\n")) for n, line in enumerate(lines_of(path, encoding), 1) if line.strip()]
        if path.suffix == ".jsonl":
            lines = [(n, prompt_of(parse_json(line, f"{path.name} line {n}"), f"{path.name} line {n}", raw, columns)) for n, line in lines]
        found = Prompts([line for _, line in lines], [n for n, _ in lines], "line")
    if not found.prompts:
        raise UserError(f"the prompts file {path} is empty")
    columns.refuse_absent()
    return found


def parse_json(text: str, where: str) -> Any:
    """Parse JSON or raise UserError saying where."""
    try:
        return parsed(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error}") from None


def prompt_of(record: Any, where: str, raw: bool, columns: Columns) -> Any:
    """Take the prompt out of a record of any known shape; the answer, if it has one, is left out. Raises UserError where there is none."""
    refuse_surrogates(record, where)
    if isinstance(record, dict):
        try:
            record, _ = columns.taken(record)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if isinstance(record, str):
        return record
    if isinstance(record, dict) and raw:
        for key in ("prompt", "text", "instruction"):
            if isinstance(record.get(key), str):
                return record[key]
    if isinstance(record, dict):  # a prompt needs no answer
        record = {**record, **{key: "-" for key, of in (("completion", "prompt"), ("output", "instruction")) if of in record}}
    try:
        example = to_example(record, where=where)
    except UserError:
        columns.refuse_absent()
        raise
    messages = getattr(example, "messages", None)
    if messages is None or raw:
        raise UserError(f"{where}: {'--raw needs' if raw else 'give'} a prompt" + (" text" if raw else ", an instruction or messages"))
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise UserError(f"{where}: there is no turn to answer")
    return messages
