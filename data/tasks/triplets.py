"""Triplets that share an input to records of several tasks, and back."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..formats import as_text, decoded, missing
from .records import same_value, task_record


@dataclass
class Grouping:
    """Records of several tasks out of triplets, in the order in which their inputs appeared, and what became of the triplets."""

    records: list[dict[str, Any]] = field(default_factory=list)
    triplets: int = 0
    doubled: int = 0  # the same instruction and output of the same input again, left out

    def lines(self) -> list[str]:
        """The counts for people."""
        alone = sum(len(record["tasks"]) == 1 for record in self.records)
        told = f"{self.triplets:,} triplets with {len(self.records):,} inputs, {alone:,} of these with one task alone"
        return [f"triplets        {told}", *([f"left out        {self.doubled:,} x the same triplet again"] if self.doubled else [])]


def group_triplets(triplets: Iterable[tuple[str, Mapping[str, Any]]]) -> Grouping:
    """Put triplets {instruction, input, output, name, system} of the same input, and of the same system message, into one record; each comes with its place.

    Inputs are the same where they are equal to the letter, blanks included. A triplet without an input shares it with none: it is a record of its own.
    The tasks stand in the order of their triplets, under the names that these have, if any. The same triplet again is left out and counted. Raises UserError
    with the place for a missing or mistyped key, and for an instruction that has two outputs with one input.
    """
    found, groups = Grouping(), {}
    seen: dict[tuple[str, str, str], tuple[str, Any]] = {}
    for where, triplet in triplets:
        try:
            if not isinstance(triplet, Mapping):
                raise UserError(f"a record must be an object of keys and values, got {type(triplet).__name__}")
            if "tasks" in triplet and "instruction" not in triplet:
                remedy = "training, `preview` and `generate` read it as it is, by --tasks, and `seodang prepare --triplets_from` makes triplets of it"
                raise UserError(f"this is a record of several tasks already, {{input, tasks}}, and no triplet: {remedy}")
            found.triplets += 1
            task = {name: triplet[name] for name in ("name", "instruction", "output") if triplet.get(name) is not None}
            text, system = (as_text(triplet, key) if triplet.get(key) else "" for key in ("input", "system"))
            if "output" not in task:
                raise missing("output", triplet)
            key = (text, system, as_text(triplet, "instruction"))
            first, output = seen.setdefault(key, (where, task["output"])) if text else (where, task["output"])
            if not same_value(output, task["output"]):
                raise UserError(f"the instruction {key[2]!r:.60} has another output here than in {first}, with the same input: keep one of them")
            if first != where:
                found.doubled += 1
                continue
            record = groups.get((text, system)) if text else None
            if record is None:
                record = {"input": text, "tasks": []} | ({"system": system} if system else {})
                found.records.append(record)
                groups[text, system] = record
            record["tasks"].append(task)
            task_record(record)  # two tasks of one name, say
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return found


def task_triplets(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The triplets of a record of several tasks, in their order: {instruction, input, output}, with `name` and `system` where the record has them.

    Raises UserError as `task_record` does.
    """
    read = task_record(record)
    system = {"system": read.system} if read.system else {}
    for task, given in zip(read.tasks, decoded(record, "tasks"), strict=True):
        name = {"name": task.name} if given.get("name") is not None else {}
        yield {**name, "instruction": task.instruction, "input": read.input, "output": task.output, **system}
