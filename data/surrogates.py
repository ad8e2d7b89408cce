"""Lone surrogates: halves of characters, which a Python text can hold and no file, tokenizer or terminal can."""

from collections.abc import Iterator, Mapping
from typing import Any

from .errors import UserError

_BYTES = range(0xDC80, 0xDD00)  # what Python makes of the bytes 0x80 to 0xFF where it expected UTF-8, as in a command's arguments


def refuse_surrogates(value: Any, where: str = "") -> None:
    """Raise UserError for a lone surrogate in a text, or in one that a mapping, list or tuple holds, naming its place.

    >>> refuse_surrogates({"messages": [{"content": "so \\ud800"}]}, "talks.jsonl line 3")
    Traceback (most recent call last):
    seodang.data.errors.UserError: talks.jsonl line 3: messages[0].content has the lone surrogate U+D800 as character 4: ...
    """
    for place, text in _texts(value):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            what = f"the byte 0x{code - 0xDC00:02X}, which is not UTF-8," if code in _BYTES else f"the lone surrogate U+{code:04X}"
            remedy = "convert the text to UTF-8" if code in _BYTES else "it is half a character, so write the whole one or leave it out"
            name = ": ".join(filter(None, (where, place))) or "the text"
            raise UserError(f"{name} has {what} as character {error.start + 1}: {remedy}") from None


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a value with its place there, such as `messages[0].content`; those of ASCII alone are passed over."""
    if isinstance(value, str):
        if not value.isascii():
            yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key, f"a key of {place}" if place else "a key")
            yield from _texts(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if not isinstance(item, int):
                yield from _texts(item, f"{place}[{index}]")
