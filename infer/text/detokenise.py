"""Ids to text one at a time: the pieces join to exactly what decoding all the ids at once would give."""

from __future__ import annotations

import codecs
import copy
import json
import re
from typing import Protocol

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
PATIENCE = 8  # tokens that a character may be spread over in a tokenizer that we know nothing about


class Detokeniser(Protocol):
    """Takes ids one by one and hands out text as soon as no later id can change it."""

    def push(self, id: int) -> str: ...

    def flush(self) -> str: ...

    def fork(self) -> Detokeniser: ...


def detokeniser(tokenizer: PreTrainedTokenizerBase) -> Detokeniser:
    """Return a detokeniser that equals `whole_text`, at a cost a token that does not grow with the text."""
    return ByteLevelDetokeniser(tokenizer) if is_byte_level(tokenizer) else WindowDetokeniser(tokenizer)


def whole_text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Decode all the ids at once, special tokens left out and spaces left as the model wrote them."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokens are runs of bytes and nothing else happens in decoding, as in GPT-2's tokenizer."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return decoder is not None and json.loads(decoder.__getstate__())["type"] == "ByteLevel"


BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}  # the alphabet of byte-level tokenizers


def byte_level(token: str) -> bytes:
    """The bytes that a byte-level tokenizer's token stands for, from its name."""
    try:
        return bytes(BYTE_OF[character] for character in token)
    except KeyError:  # an added token is plain text
        return token.encode()


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that decoding leaves out."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(id for id, token in added.items() if token.special) | frozenset(tokenizer.all_special_ids)


class ByteLevelDetokeniser:
    """Joins the tokens' bytes and holds back those of an unfinished character.

    tokenizers' DecodeStream gives the same text later: a whole character waits where its token also begins the next one (332 of 2,031 tokens
    of Korean), so that stop strings would be met later; it has no flush, and bytes that make no character are decoded again with each token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._pending = b""

    def push(self, id: int) -> str:
        """Return the characters that this id completes; an invalid byte is a U+FFFD, as in the whole text."""
        if id in self._special:
            return ""
        pending = self._pending + byte_level(self._tokenizer.convert_ids_to_tokens(id) or "")
        text, used = codecs.utf_8_decode(pending, "replace", False)
        self._pending = pending[used:]
        return text

    def flush(self) -> str:
        """Return what the unfinished bytes at the very end decode to."""
        text, self._pending = self._pending.decode("utf-8", "replace"), b""
        return text

    def fork(self) -> ByteLevelDetokeniser:
        """Return one that goes on from here by itself."""
        return copy.copy(self)


class WindowDetokeniser:
    """Decodes a short window of ids with and without the newest and hands out the difference.

    The window starts with ids whose text is out already, so that a rule for the first token (no leading space) does not
    meet the newest. Byte tokens (`<0xEC>`) are held until their run ends: one bad byte changes the whole run.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._out: list[int] = []  # the ids before, whose text is out
        self._held: list[int] = []

    def push(self, id: int) -> str:
        """Return the text that is now settled."""
        if id in self._special:
            return ""
        self._held.append(id)
        token = self._tokenizer.convert_ids_to_tokens(id)
        if isinstance(token, str) and BYTE_TOKEN.fullmatch(token):
            return ""
        unfinished = whole_text(self._tokenizer, self._out + self._held).endswith("\ufffd")
        return "" if unfinished and len(self._held) < PATIENCE else self.flush()

    def flush(self) -> str:
        """Return the text of what is held."""
        if not self._held:
            return ""
        before = whole_text(self._tokenizer, self._out)
        text = whole_text(self._tokenizer, self._out + self._held)[len(before) :]
        # ids without text of their own (a leading space) stay in the window: the next one must still see them
        self._out = self._held if text else self._out + self._held
        self._held = []
        return text

    def fork(self) -> WindowDetokeniser:
        """Return one that goes on from here by itself."""
        other = copy.copy(self)
        other._held = list(self._held)
        return other
