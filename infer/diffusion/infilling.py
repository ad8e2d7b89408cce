"""What surrounds what is filled in: a template with gaps, or a text that the answer ends with; and how these are written."""

from __future__ import annotations

import json
import re
from typing import Any

from ...data.errors import UserError
from ..requests.options import OPENAI, Command, option, settings
from ..requests.params import RequestParams
from ..requests.rules import MOST, both, entries, text

Pieces = tuple[str | int, ...]  # texts, and between them how many tokens are to be filled in

GAP = re.compile(r"\{(\d{1,18})\}")
HOW = 'as in "The city of {4} is in {2}." or ["The city of ", 4, " is in ", 2, "."]'


def pieces_of(written: str) -> Pieces:
    """The texts and gaps of a template that is written as one text; braces around anything but a number are text.

    >>> pieces_of("The city of {4} is in {2}.")
    ('The city of ', 4, ' is in ', 2, '.')
    """
    parts = GAP.split(written)
    return tuple(int(part) if place % 2 else part for place, part in enumerate(parts) if part)


def as_pieces(name: str, value: Any) -> Any:
    """A template as its pieces; anything but a text or a list as it is."""
    return pieces_of(value) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def list_or_text(word: str | None) -> str | list | None:
    """What a word of the command line says: a list in JSON, or the text that it is."""
    if word is None or not word.lstrip().startswith("["):
        return word
    try:
        read = json.loads(word)
    except ValueError:
        return word
    return read if isinstance(read, list) else word


def is_piece(each: Any) -> bool:
    """Whether an entry is a text or a number of tokens."""
    return isinstance(each, str) or type(each) is int


def whole_pieces(name: str, pieces: Pieces) -> str | None:
    """The rule that texts have a character, gaps a token, and that there is a gap."""
    for each in pieces:
        if each == "":
            return f"{name} has an empty text: leave it out"
        if isinstance(each, int) and not 1 <= each < MOST:
            return f"{name} has a gap of {each} tokens: a gap has at least one"
    return None if any(isinstance(each, int) for each in pieces) else f"{name}={''.join(pieces)!r} has no gap to be filled in: write it {HOW}"


@settings
class Infilling:
    template: str | tuple[str | int, ...] | None = option(
        None, "The whole answer, with the number of tokens to be filled in between its texts: The city of {4} is in {2}.",
        both(entries(f"texts and the numbers of tokens between them, {HOW}", is_piece), whole_pieces), example=("It is ", 3, "."), convert=as_pieces, command=Command(str | None, read=list_or_text),
    )  # fmt: skip
    suffix: str | None = option(
        None, "The answer ends with this; what /v1/completions answers leaves it out.", text("a text"), example=" so.", same_in=(OPENAI,), convert=lambda name, value: None if value == "" else value
    )


def check_infilling(params: RequestParams) -> None:
    """Raise UserError for a template beside another text that says how the answer begins or ends."""
    if params.template is not None and (name := next((name for name in ("prefix", "suffix") if getattr(params, name)), None)):
        raise UserError(f"{name}={getattr(params, name)!r} has no place beside template, which is the whole answer: write it into the template")
