"""People whose questions a model is to think of: those of a file, or put together from short lists."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from random import Random

from ..errors import UserError
from ..files.sources import is_source_file, records_of
from ..files.text_files import lines_of

WHO = (
    "nurse", "farmer", "bus driver", "primary school teacher", "student of history", "retired engineer", "baker", "young parent", "accountant",
    "violinist", "shop owner", "gardener", "football coach", "translator", "electrician", "novelist", "tourist", "first-year programmer",
)  # fmt: skip
WHERE = ("in Seoul", "in a fishing village", "in a big European city", "in a small town in Africa", "in the mountains", "in India", "in Brazil")
HOW = ("curious", "in a hurry", "careful with money", "new to computers", "fond of cooking", "preparing for an examination", "planning a journey")


def built_in() -> list[str]:
    """Everyone whom the lists give, 882 in all, in an order that is mixed and always the same."""
    people = [f"a {who} {where}, {how}" for who, where, how in product(WHO, WHERE, HOW)]
    Random(0).shuffle(people)
    return people


def personas_in(path: str, encoding: str | None = None) -> list[str]:
    """The personas of a file: a .txt one a line, or records with `persona`. Raises UserError for a file that is not there or has none."""
    if not Path(path).is_file():
        raise UserError(f"--personas {path}: there is no such file")
    found: Sequence[str]
    if is_source_file(path):
        found = [_persona(record, where) for where, record in records_of(path, encoding, ("persona",))]
    else:
        found = [line.strip() for line in lines_of(Path(path), encoding)]
    people = [each for each in found if each]
    if not people:
        raise UserError(f"--personas {path} has no persona: write one a line")
    return people


def _persona(record: object, where: str) -> str:
    told = record.get("persona") if isinstance(record, dict) else record
    if not isinstance(told, str):
        keys = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{where}: a persona is a text under the key 'persona' (found: {keys or 'none'})")
    return told.strip()
