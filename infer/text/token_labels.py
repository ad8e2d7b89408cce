"""Tokens as a person can tell them apart: spaces, line ends and the bytes of unfinished characters are seen."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from unicodedata import category

from transformers import PreTrainedTokenizerBase

from .vocabulary import Vocabulary

SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}


class TokenLabels:
    """What each id of a tokenizer is called in a picture."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._bytes = Vocabulary.of(tokenizer).tokens

    def __call__(self, id: int) -> str:
        """Return a token's name, never empty; special tokens have their own, ids beyond the tokenizer their number."""
        if id >= len(self._bytes):
            return f"<{id}>"
        if self._bytes[id] is None:
            name = self._tokenizer.convert_ids_to_tokens(id)
            return seen(name) if name else f"<{id}>"
        return seen(spelled(self._bytes[id])) or f"<{id}>"

    def is_special(self, id: int) -> bool:
        """Whether the token is no text by itself."""
        return id >= len(self._bytes) or self._bytes[id] is None

    def unfinished(self, id: int) -> bool:
        """Whether the token's bytes are no whole characters by themselves."""
        token = self._bytes[id] if id < len(self._bytes) else None
        return token is not None and "\ufffd" in token.decode(errors="replace")

    def whole(self, ids: Sequence[int]) -> list[int]:
        """Split some tokens where no character is spread over the split, as often as that goes; return how many tokens each part has."""
        counts, decoder = [0], getincrementaldecoder("utf-8")("replace")
        for id in ids:
            token = self._bytes[id] if id < len(self._bytes) else None
            if token is None:
                decoder.reset()  # a special token ends whatever stands before it
                counts += [0] if counts[-1] else []
            counts[-1] += 1
            decoder.decode(token or b"")
            if not decoder.getstate()[0]:
                counts.append(0)
        return counts if counts[-1] else counts[:-1]

    def of(self, ids: Sequence[int]) -> str:
        """Return the names of some tokens as one text, in which characters that are spread over tokens are whole."""
        parts: list[bytes] = []
        for id in ids:
            token = self._bytes[id] if id < len(self._bytes) else None
            parts.append(self(id).encode() if token is None else token)
        return seen(spelled(b"".join(parts)))


def spelled(text: bytes) -> str:
    """Decode UTF-8, with bytes that make no character written out.

    >>> spelled("수".encode()[:2] + b"!")
    '<0xEC><0x88>!'
    """
    whole, rest = "", text
    while rest:
        try:
            return whole + rest.decode()
        except UnicodeDecodeError as error:
            whole += rest[: error.start].decode() + "".join(f"<0x{byte:02X}>" for byte in rest[error.start : error.end])
            rest = rest[error.end :]
    return whole


def seen(text: str) -> str:
    """Replace what cannot be seen by a sign for it.

    >>> seen(" a\\n")
    '␣a⏎'
    """
    return "".join(SIGNS.get(each) or (each if shows(each, before) else f"<U+{ord(each):04X}>") for before, each in zip(" " + text, text))


def shows(character: str, before: str) -> bool:
    """Whether a character leaves ink: marks do so on the letter before them alone, variation selectors never."""
    if "\ufe00" <= character <= "\ufe0f" or not character.isprintable():
        return False
    return not category(character).startswith("M") or category(before)[0] in "LMN"
