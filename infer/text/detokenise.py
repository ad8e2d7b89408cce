"""Ids to text one at a time: the pieces join to what decoding all the ids at once would give, but for an unfinished character at the end.

The bytes that begin a character and do not end it, as where an answer is cut by its length, are no text: only the ids have them. What stands
in the middle of a text is as the tokenizer decodes it, with U+FFFD for bytes that are no character.

Where the tokens are words and their continuations (WordPiece), what a token says hangs on whether one stands before it: the text of an answer is then
what decoding prompt and answer gives beyond the prompt, so that the space between the two is neither lost nor doubled.
"""

from __future__ import annotations

import codecs
import copy
import json
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ...data.seq2seq.languages import language_ids, writes_languages
from ...data.template import remember
from ...data.text.span_corruption import SENTINEL

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
REPLACEMENT = "\ufffd"
REPLACEMENT_NAMES = (REPLACEMENT, "ï¿½")  # what the token of that very character is called, the second in the alphabet of byte-level tokenizers
PATIENCE = 8  # tokens that a character may be spread over in a tokenizer that we know nothing about


class Detokeniser(Protocol):
    """Takes ids one by one and hands out text as soon as no later id can change it."""

    def push(self, id: int) -> str:
        """Return the text that this id settles."""

    def flush(self) -> str:
        """Return what is held back, at the end, without the bytes of an unfinished character."""

    def fork(self) -> Detokeniser:
        """Return one that goes on from here by itself, as a beam does."""


def detokeniser(tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = ()) -> Detokeniser:
    """Return a detokeniser of special tokens left out and spaces left as the model wrote them; the cost a token does not grow with the text.

    Sentinels, by which T5 says which span of a text it fills in, are no special tokens here: without them nobody knows where a filling ends.
    `before` are the ids that stand before the text, a prompt's. They count for WordPiece alone, whose spaces no model writes: there they are as the
    tokenizer has them, with its own `clean_up_tokenization_spaces`.
    """
    if is_byte_level(tokenizer):
        return ByteLevelDetokeniser(tokenizer)
    if not is_wordpiece(tokenizer):
        return WindowDetokeniser(tokenizer)
    special = left_out_ids(tokenizer)
    own = [id for id in before if id not in special]
    stream = WindowDetokeniser(tokenizer, own[-1:])
    return CleaningDetokeniser(tokenizer, stream, own) if tokenizer.clean_up_tokenization_spaces else stream


def whole_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], before: Sequence[int] = ()) -> str:
    """Return the text of an answer's ids behind those `before`: what a detokeniser's pieces join to."""
    stream = detokeniser(tokenizer, before)
    return "".join(map(stream.push, ids)) + stream.flush()


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokens are runs of bytes and nothing else happens in decoding, as in GPT-2's tokenizer."""
    return decoder_of(tokenizer).get("type") == "ByteLevel"


def is_wordpiece(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether decoding puts a space between two tokens where the second is not marked as going on (`##`), as BERT's tokenizer does."""
    if hasattr(tokenizer, "backend_tokenizer"):
        told = decoder_of(tokenizer)
        return any(step.get("type") == "WordPiece" for step in told.get("decoders", [told]))
    try:
        return tokenizer.convert_tokens_to_string(["a", "##b", "c"]) == "ab c"  # one of Python's
    except Exception:  # whatever one raises for tokens that it does not have
        return False


def decoder_of(tokenizer: PreTrainedTokenizerBase) -> dict:
    """What the library of tokenizers says of how tokens are joined to a text; nothing where it has no say."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return {} if decoder is None else json.loads(decoder.__getstate__())


def decodes_bytes(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a token named `<0xEC>` stands for that byte; without byte fallback in its decoder (T5's and mT5's) it is the text of its name."""

    def build() -> bool:
        id = tokenizer.get_vocab().get("<0x41>")
        return id is not None and tokenizer.decode([id], clean_up_tokenization_spaces=False) == "A"

    return remember(tokenizer, "decodes bytes", build, of_template=False)


BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}  # the alphabet of byte-level tokenizers


def byte_level(token: str) -> bytes:
    """The bytes that a byte-level tokenizer's token stands for, from its name."""
    try:
        return bytes(BYTE_OF[character] for character in token)
    except KeyError:  # an added token is plain text
        return token.encode()


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of special tokens, which stand for no text; a language's are among them, whether they are in the vocabulary or not (M2M100)."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    languages = language_ids(tokenizer).values() if writes_languages(tokenizer) else ()
    return frozenset(id for id, token in added.items() if token.special) | frozenset(tokenizer.all_special_ids) | frozenset(languages)


def left_out_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The special tokens' ids without those of sentinels: what no text shows."""
    special = [*special_ids(tokenizer)]
    names = tokenizer.convert_ids_to_tokens(special)
    return frozenset(id for id, name in zip(special, names, strict=True) if not (name and SENTINEL.fullmatch(name)))


class ByteLevelDetokeniser:
    """Joins the tokens' bytes and holds back those of an unfinished character.

    tokenizers' DecodeStream gives the same text later: a whole character waits where its token also begins the next one (332 of 2,031 tokens
    of Korean), so that stop strings would be met later; it has no flush, and bytes that make no character are decoded again with each token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._left_out = left_out_ids(tokenizer)
        self._pending = b""

    def push(self, id: int) -> str:
        """Return the characters that this id completes; an invalid byte is a U+FFFD, as in the whole text."""
        if id in self._left_out:
            return ""
        pending = self._pending + byte_level(self._tokenizer.convert_ids_to_tokens(id) or "")
        text, used = codecs.utf_8_decode(pending, "replace", False)
        self._pending = pending[used:]
        return text

    def flush(self) -> str:
        """Return nothing: what is held back is the beginning of a character."""
        self._pending = b""
        return ""

    def fork(self) -> ByteLevelDetokeniser:
        """Return one that goes on from here by itself."""
        return copy.copy(self)


class WindowDetokeniser:
    """Decodes a short window of ids with and without the newest and hands out the difference.

    The window starts with ids whose text is out already, so that a rule for the first token (no leading space) does not
    meet the newest. Byte tokens (`<0xEC>`) are held until their run ends: one bad byte changes the whole run.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._left_out = left_out_ids(tokenizer)
        self._is_byte = BYTE_TOKEN.fullmatch if decodes_bytes(tokenizer) else lambda name: None
        self._out = list(before)  # the ids before, whose text is out
        self._held: list[int] = []

    def push(self, id: int) -> str:
        """Return the text that is now settled."""
        if id in self._left_out:
            return ""
        self._held.append(id)
        token = self._tokenizer.convert_ids_to_tokens(id)
        if isinstance(token, str) and self._is_byte(token):
            return ""
        return "" if self._is_unfinished() and len(self._held) < PATIENCE else self._settle()

    def flush(self) -> str:
        """Return the text of what is held, without the bytes of an unfinished character at its end."""
        if unfinished := self._unfinished_byte_tokens():
            del self._held[-unfinished:]
            return self._settle()
        cut = self._is_unfinished()  # a tokenizer that we know nothing about: the last U+FFFD is what such bytes decode to
        text = self._settle()
        return text.removesuffix(REPLACEMENT) if cut else text

    def _settle(self) -> str:
        """Return the text of what is held, which is out from now on."""
        if not self._held:
            return ""
        before = self._decoded(self._out)
        text = self._decoded(self._out + self._held)[len(before) :]
        # ids without text of their own (a leading space) stay in the window: the next one must still see them
        self._out = self._held if text else self._out + self._held
        self._held = []
        return text

    def _is_unfinished(self) -> bool:
        """Whether what is held ends in bytes that are no character, as far as can be told from its text: in U+FFFD that no token says."""
        if not self._held or not self._decoded(self._out + self._held).endswith(REPLACEMENT):
            return False
        names = self._names()
        return not (self._is_byte(names[-1]) or "".join(names).endswith(REPLACEMENT_NAMES))

    def _unfinished_byte_tokens(self) -> int:
        """How many byte tokens at the end of what is held are the beginning of a character."""
        run = list(takewhile(self._is_byte, reversed(self._names())))[::-1]
        spelled = bytes(int(name[3:-1], 16) for name in run)
        return len(spelled) - codecs.utf_8_decode(spelled, "replace", False)[1]

    def _names(self) -> list[str]:
        return [name or "" for name in self._tokenizer.convert_ids_to_tokens(self._held)]

    def _decoded(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)  # what is left out never comes here

    def fork(self) -> WindowDetokeniser:
        """Return one that goes on from here by itself."""
        other = copy.copy(self)
        other._held = list(self._held)
        return other


class CleaningDetokeniser:
    """Takes the spaces out of another's text that the tokenizer cleans away (" ." to ".", " n't" to "n't"), and holds back what may still be cleaned.

    The ids in `before` stand in front: of what is cleaned over the border, the answer has what follows their last character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stream: Detokeniser, before: Sequence[int] = ()):
        self._clean, self._stream = tokenizer.clean_up_tokenization, stream
        text = tokenizer.decode(list(before), clean_up_tokenization_spaces=False)
        self._held = text[settled(text) :]
        self._skip = sum(letter != " " for letter in self._held)  # which cleaning never takes away

    def push(self, id: int) -> str:
        """Return the text that is now settled."""
        self._held += self._stream.push(id)
        return self._out(settled(self._held))

    def flush(self) -> str:
        """Return the text of what is held."""
        self._held += self._stream.flush()
        return self._out(len(self._held))

    def _out(self, end: int) -> str:
        text, self._held = self._clean(self._held[:end]), self._held[end:]
        begin = 0
        while self._skip and begin < len(text):
            self._skip -= text[begin] != " "
            begin += 1
        return text[begin:]

    def fork(self) -> CleaningDetokeniser:
        """Return one that goes on from here by itself."""
        other = copy.copy(self)
        other._stream = self._stream.fork()
        return other


def settled(text: str) -> int:
    """Return up to where nothing that follows can change what `clean_up_tokenization` makes of a text.

    It takes away spaces alone: before `. ? ! , n't 'm 's 've 're`, and those around a `'`. So a text can be cut before a space that stands behind
    neither a space, a `'` nor a lone n (of "is n ' t"), and behind the last word, unless that has a `'` or is an n.

    >>> [settled(text) for text in ("it is", "it is n", "it is n't so", "it ' s")]
    [5, 5, 12, 2]
    """
    cut = max((match.start() for match in re.finditer("(?<![ '])(?<! n) ", text)), default=0)
    word = text[cut:]
    return cut if "'" in word or word.endswith((" ", " n")) else len(text)
