"""What each token of a tokenizer is in bytes, and which tokens begin with given bytes."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ...data.seq2seq.languages import language_ids
from ...data.template import remember
from .detokenise import BYTE_TOKEN, REPLACEMENT, byte_level, decodes_bytes, is_byte_level, special_ids


class Vocabulary:
    """The bytes of every token of a tokenizer; None for special tokens and for those that are no text by themselves."""

    def __init__(self, tokens: list[bytes | None]):
        self.tokens = tokens

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Return the tokenizer's, made once."""
        return remember(tokenizer, "vocabulary in bytes", lambda: cls(token_bytes(tokenizer)), of_template=False)

    @cached_property
    def _sorted(self) -> list[tuple[bytes, int]]:
        return sorted((token, id) for id, token in enumerate(self.tokens) if token)

    @cached_property
    def _exact(self) -> dict[bytes, list[int]]:
        found: dict[bytes, list[int]] = {}
        for token, id in self._sorted:
            found.setdefault(token, []).append(id)
        return found

    @cached_property
    def longest(self) -> int:
        """The length of the longest token in bytes."""
        return max((len(token) for token, _ in self._sorted), default=0)

    def beginning_with(self, prefix: bytes) -> list[int]:
        """The tokens whose bytes begin with `prefix`, itself among them."""
        first = bisect_left(self._sorted, (prefix, -1))
        ids = []
        for token, id in self._sorted[first:]:
            if not token.startswith(prefix):
                break
            ids.append(id)
        return ids

    def beginnings_of(self, text: bytes) -> list[int]:
        """The tokens that `text` begins with and goes on from."""
        return [id for end in range(1, len(text)) for id in self._exact.get(text[:end], ())]

    def extends(self, prefix: bytes) -> bool:
        """Whether a token begins with `prefix` and goes on."""
        return any(len(self.tokens[id]) > len(prefix) for id in self.beginning_with(prefix))

    def spell(self, text: bytes) -> list[int]:
        """Return ids that spell the text, the longest token first; what no token begins ends it."""
        ids: list[int] = []
        while text:
            end = next((end for end in range(min(len(text), self.longest), 0, -1) if text[:end] in self._exact), 0)
            if not end:
                break
            ids.append(self._exact[text[:end]][0])
            text = text[end:]
        return ids

    def spells(self, text: bytes) -> bool:
        """Whether tokens can spell the whole text."""
        reached = {0}
        for at in range(len(text)):
            if at in reached:
                reached.update(end for end in range(at + 1, min(len(text), at + self.longest) + 1) if text[at:end] in self._exact)
        return len(text) in reached

    def consistent(self, text: bytes) -> list[int]:
        """The tokens that a spelling of something that begins with `text` can begin with.

        Those that begin with it, and those that it begins with where other tokens can bring the rest.
        """
        spellable = [False] * len(text)  # what begins there, or goes on behind the text
        for at in reversed(range(len(text))):
            spellable[at] = self._begins(text[at:]) or any(spellable[end] and text[at:end] in self._exact for end in range(at + 1, len(text)))
        ids = self.beginning_with(text)
        for end in range(1, len(text)):
            if spellable[end]:
                ids += self._exact.get(text[:end], ())
        return ids

    def _begins(self, prefix: bytes) -> bool:
        """Whether a token begins with `prefix`."""
        first = bisect_left(self._sorted, (prefix, -1))
        return first < len(self._sorted) and self._sorted[first][0].startswith(prefix)


def known_ids(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> int:
    """Return how many first ids of a model are its tokenizer's; those behind are padding of the vocabulary and stand for nothing."""
    if vocab_size <= len(tokenizer):
        return vocab_size
    return min(vocab_size, 1 + remember(tokenizer, "highest id", lambda: highest_id(tokenizer), of_template=False))


def highest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The highest id that stands for something: ids may have gaps, and M2M100's languages may be beyond its vocabulary."""
    return max(*tokenizer.get_vocab().values(), *language_ids(tokenizer).values())


def check_ids(ids: Sequence[int], count: int, name: str, whose: str = "model") -> None:
    """Raise UserError for an id beyond the `count` first; `name` is what has it, and `whose` the ids are."""
    if wrong := [id for id in (max(ids), min(ids)) if not 0 <= id < count]:
        raise UserError(f"{name} has the id {wrong[0]}, but the {whose}'s ids are those from 0 to {count - 1}")


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """Return the bytes that each id stands for in the middle of a text, None where it stands for none."""
    special = special_ids(tokenizer)
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if is_byte_level(tokenizer):
        spell = byte_level
    elif is_sentencepiece(tokenizer):
        spell = sentencepiece if decodes_bytes(tokenizer) else spaced
    else:
        return [None if id in special else decoded(tokenizer, id) for id in range(len(tokenizer))]
    return [None if id in special or name is None else spell(name) for id, name in enumerate(names)]


def sentencepiece(name: str) -> bytes:
    """The bytes that a sentencepiece tokenizer's token stands for, from its name."""
    return bytes([int(name[3:-1], 16)]) if BYTE_TOKEN.fullmatch(name) else spaced(name)


def spaced(name: str) -> bytes:
    """The bytes of a token's name, its spaces written as spaces."""
    return name.replace("▁", " ").encode()


def is_sentencepiece(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokens write a space as ▁ (and bytes as <0xEC>), as SentencePiece does."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return False
    said = json.loads(decoder.__getstate__())
    return any(step["type"] == "Metaspace" or step.get("pattern") == {"String": "▁"} for step in said.get("decoders", [said]))


def leaves_out_first_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text's first word has a space in its token that decoding leaves out, as in SentencePiece's tokenizers."""

    def build() -> bool:
        word = next((id for name, id in tokenizer.get_vocab().items() if name.startswith("▁") and len(name) > 1), None)
        return word is not None and not tokenizer.decode([word], clean_up_tokenization_spaces=False).startswith(" ")

    return remember(tokenizer, "leaves out the first space", build, of_template=False)


def decoded(tokenizer: PreTrainedTokenizerBase, id: int) -> bytes | None:
    """What the id adds to a text, by decoding it behind a letter."""
    anchor = tokenizer.encode("a", add_special_tokens=False)
    before = tokenizer.decode(anchor, clean_up_tokenization_spaces=False)
    text = tokenizer.decode([*anchor, id], clean_up_tokenization_spaces=False)
    if not text.startswith(before) or REPLACEMENT in text:
        return None
    return text[len(before) :].encode()
