"""Questions on a terminal, each asked until its answer will do."""

import re
import sys
from collections.abc import Callable
from typing import TypeVar

from seodang.data.errors import UserError

Answer = TypeVar("Answer")


def ask(question: str, check: Callable[[str], Answer], default: str | None = None) -> Answer:
    """What `check` makes of an answer; where it raises UserError, that is said and the question asked again. Nothing typed means the default."""
    while True:
        try:
            said = input(f"{question}{f' [{default}]' if default is not None else ''}: ").strip()
        except EOFError:
            raise UserError(f"no more answers came at the question {question!r}: nothing was written") from None
        try:
            if not (said or default):
                raise UserError("this has no default: type an answer, or leave by Ctrl-C")
            return check(said or default or "")
        except UserError as error:
            print(f"  {' '.join(str(error).split())}")


def is_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty()


def encoding_named(error: UserError) -> str | None:
    """The encoding that an error of reading says the file looks to be in; None where it is of another kind."""
    found = re.search(r"--encoding ([\w-]+)", str(error))
    return found[1] if found else None
