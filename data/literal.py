"""Text that looks like a control token, encoded as the text that it is."""

import copy
import json
import os.path
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import groupby
from types import MappingProxyType
from typing import Any

from tokenizers import Encoding, Tokenizer
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerBase

from .errors import UserError
from .long_text import TooManyTokens, refuse_long
from .template import remember

Literals = Mapping[str, str]  # stand-in character -> the special token's text

_ESCAPED = re.compile(r"\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}")  # a character beyond the first 65,536 as JSON in ASCII writes it
_FIRST_STAND_IN = 0xF0000  # private use: no template or tokenizer gives these characters a meaning
# Datasets carry an assistant's thinking inside its content between these, and templates look for them there.
_THINKING = {"<think>", "</think>"}


def escape(tokenizer: PreTrainedTokenizerBase, value: Any) -> tuple[Any, Literals]:
    """Replace every special token's text in the strings of messages or tools by a private stand-in character.

    The rendering of the result, given to `encode` with the returned mapping, has control tokens only where the template wrote them.
    """
    pattern = _pattern(tokenizer)
    texts = list(_strings(value))
    found = {match for text in texts for match in pattern.findall(text)}
    if not found:
        return value, {}
    used = {char for text in texts for char in text}
    escapes = {match for text in texts for match in _ESCAPED.findall(text)}
    free = (char for char in map(chr, range(_FIRST_STAND_IN, 0x10FFFE)) if char not in used and _in_json(char) not in escapes)
    stand_ins = {token: next(free) for token in sorted(found)}

    def swap(text: str, by_assistant: bool) -> str:
        kept = _THINKING if by_assistant else ()
        return pattern.sub(lambda match: match[0] if match[0] in kept else stand_ins[match[0]], text)

    return _mapped(value, swap), {char: token for token, char in stand_ins.items()}


def unescape(text: str, literals: Literals) -> str:
    """The text with the stand-ins turned back."""
    return text.translate(str.maketrans(dict(literals))) if literals else text


def encode(tokenizer: PreTrainedTokenizerBase, text: str, literals: Literals = MappingProxyType({}), most: int | None = None) -> list[int]:
    """Ids of a rendered text; stand-ins become the ids of their text, never a control token.

    Raises TooManyTokens where a part is enough to see that there are more than `most`.
    """
    if not literals:
        refuse_more(tokenizer, text, most)
        return _plain(tokenizer, text)
    for char in literals:  # a template may write JSON in ASCII
        text = text.replace(_in_json(char), char)
    ids: list[int] = []
    for index, piece in enumerate(re.split(f"([{''.join(literals)}]+)", text)):
        is_literal, left = index % 2 == 1, None if most is None else most - len(ids)
        if left is not None and left < 0:
            raise TooManyTokens(f"more than {most} tokens")
        if is_literal:
            piece = unescape(piece, literals)
        try:
            refuse_more(tokenizer, piece, left, is_literal)
        except TooManyTokens:
            raise TooManyTokens(f"more than {most} tokens") from None
        if is_literal:
            ids += literal_ids(tokenizer, piece)
        elif piece:
            ids += _plain(tokenizer, piece) if index == 0 else continuing(partial(_plain, tokenizer), piece)
    return ids


def refuse_more(tokenizer: PreTrainedTokenizerBase, text: str, most: int | None, literal: bool = False) -> None:
    """Raise TooManyTokens where a beginning of a text shows that there are more than `most` tokens in it."""
    if most is None or not tokenizer.is_fast:  # others do not tell where their tokens stand
        return
    swallowed = any(token.lstrip for token in tokenizer.added_tokens_decoder.values())
    refuse_long(text, most, partial(_offsets, tokenizer, literal), swallowed)


def _in_json(char: str) -> str:
    """How JSON in ASCII writes a character: `\\udb80\\udc00`."""
    return json.dumps(char)[1:-1]


def encode_raw(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a raw text, no part of which is a control token, between what the tokenizer puts around a text."""
    return _literally(tokenizer, text, around=True)


def literal_ids(tokenizer: PreTrainedTokenizerBase, piece: str) -> list[int]:
    """Ids of a piece in the middle of a text, no part of which is a control token."""
    return continuing(partial(_literally, tokenizer), piece)


def literal_alone(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a whole text, no part of which is a control token, with nothing put around them."""
    return _literally(tokenizer, text)


def literal_encodings(tokenizer: PreTrainedTokenizerBase, texts: list[str], offsets: bool = True) -> list[Encoding]:
    """Encodings of whole texts, no part of which is a control token, with nothing put around them; without `offsets` in less time.

    Raises UserError for a tokenizer that does not tell where its tokens stand.
    """
    backend = _literal_encoder(tokenizer)
    if backend is None:
        raise UserError(f"{type(tokenizer).__name__} does not tell where its tokens stand in a text: use a fast tokenizer")
    return (backend.encode_batch if offsets else backend.encode_batch_fast)(texts, add_special_tokens=False)


def literal_text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """What ids say, control tokens written out and spaces left as they are."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) if ids else ""


def continuing(encoder: Callable[[str], list[int]], piece: str) -> list[int]:
    """Ids of a piece as it stands in the middle of a text.

    Some tokenizers put a space before whatever comes first; behind an anchor, whose own ids are taken off again, they do not. An anchor that has no ids
    (a line break, of T5's) is none.
    """
    for anchor in ("\n", ".", ")", "a"):
        head, ids = encoder(anchor), encoder(anchor + piece)
        if head and ids[: len(head)] == head:
            return ids[len(head) :]
    return encoder(piece)


def any_of(tokens: Iterable[str]) -> str:
    """A regular expression for any of the tokens, the longest that fits; as a trie, for a tokenizer may have thousands."""
    tokens = list(tokens)
    if not tokens:
        return r"(?!)"
    prefix = os.path.commonprefix(tokens)
    rests = sorted({token[len(prefix) :] for token in tokens})
    options = [any_of(group) for first, group in groupby(rests, key=lambda rest: rest[:1]) if first]
    optional = "?" if rests[0] == "" else ""
    return re.escape(prefix) + (f"(?:{'|'.join(options)}){optional}" if options else "")


def _pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    def build() -> re.Pattern:
        return re.compile(any_of(token.content for token in tokenizer.added_tokens_decoder.values() if token.special))

    return remember(tokenizer, "special text", build)


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    pieces = remember(tokenizer, "pieces", lambda: _pieces(tokenizer), of_template=False)
    return _whole(tokenizer, text) if pieces is None else pieces(text)


def _whole(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # rows are cut later, no need to warn


class _Pieces:
    """Encodes what stands between control tokens piece by piece, and remembers the last of them: a prompt is a part of what is trained, and templates say the same again."""

    KEPT, LONGEST = 256, 1 << 16  # pieces, and the characters of one

    def __init__(self, encoder: Tokenizer, controls: Mapping[str, int]):
        self.encoder, self.controls = encoder, controls
        self._split = re.compile(f"({any_of(controls)})").split
        self._remembered = lru_cache(self.KEPT)(lambda piece: array("i", self._encoded(piece)))

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = []
        for index, piece in enumerate(self._split(text)):
            if index % 2 == 1:
                ids.append(self.controls[piece])
            elif piece:
                ids += self._remembered(piece) if len(piece) <= self.LONGEST else self._encoded(piece)
        return ids

    def _encoded(self, piece: str) -> list[int]:
        return self.encoder.encode_batch_fast([piece], add_special_tokens=False)[0].ids


# What looks at no more of a text than the piece that it is given, wherever this stands.
_LOCAL = {"NFC", "NFD", "NFKC", "NFKD", "Replace", "Lowercase", "StripAccents", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "ByteLevel"}
_TRIED = ("나무 is  a tree\n\n", " x", "\t3.14 don't ", "e\u0301\u200d", "")  # beside every kind of border


def _pieces(tokenizer: PreTrainedTokenizerBase) -> _Pieces | None:
    """What encodes piece by piece; None for a tokenizer of which it is not certain that this gives the ids of the whole."""
    if not tokenizer.is_fast:
        return None
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = [part for name in ("normalizer", "pre_tokenizer") for part in _flat(told[name])]
    tokens = told["added_tokens"]
    local = all(part["type"] in _LOCAL and not part.get("add_prefix_space") for part in parts)
    kinds = {token["normalized"] and told["normalizer"] is not None for token in tokens}  # those found before and behind the normalizer
    greedy = any(token[flag] for token in tokens for flag in ("lstrip", "rstrip", "single_word"))
    if told["model"]["type"] != "BPE" or told["model"].get("dropout") or not local or True in kinds or len({token["normalized"] for token in tokens}) > 1 or greedy:
        return None
    pieces = _Pieces(_literal_encoder(tokenizer), {token["content"]: token["id"] for token in tokens})
    borders = [token["content"] for token in tokens[:3]] + [""]
    trials = [first + border + second for border in borders for first in _TRIED for second in _TRIED]
    return pieces if all(pieces(text) == _whole(tokenizer, text) for text in trials) else None


def _flat(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The parts of a normalizer or pre-tokenizer."""
    if part is None:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers")
    return [each for one in inner for each in _flat(one)] if part["type"] == "Sequence" else [part]


def _offsets(tokenizer: PreTrainedTokenizerBase, literal: bool, text: str) -> list[tuple[int, int]]:
    """Where each token of a text begins and ends."""
    if literal:
        return _literal_encoder(tokenizer).encode_batch([text], add_special_tokens=False)[0].offsets
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]


def _literally(tokenizer: PreTrainedTokenizerBase, text: str, around: bool = False) -> list[int]:
    """Ids of a text by an encoder that knows no special tokens."""
    backend = _literal_encoder(tokenizer)
    if backend is None:
        return tokenizer.encode(text, add_special_tokens=around, split_special_tokens=True)
    return backend.encode_batch([text], add_special_tokens=around)[0].ids  # alone among the encoder's methods, it lets other threads run


def _literal_encoder(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """An encoder that knows no special tokens; None for a tokenizer that has one of its own."""

    def build() -> Tokenizer | None:
        if not tokenizer.is_fast:
            return None
        backend = copy.deepcopy(tokenizer.backend_tokenizer)  # switching the tokenizer itself would race with its other users
        if isinstance(backend.model, Unigram):
            backend = _without_control_pieces(tokenizer)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        return backend

    return remember(tokenizer, "literal encoder", build)


def _without_control_pieces(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The encoder of a Unigram tokenizer whose control tokens have names that no text has: else its model finds them among its pieces, as T5's finds </s>."""
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    unheard = {content: f"\U0010fffd{number}" for number, content in enumerate(sorted(special))}
    told["model"]["vocab"] = [[unheard.get(piece, piece), score] for piece, score in told["model"]["vocab"]]
    told["added_tokens"] = [{**token, "content": unheard.get(token["content"], token["content"])} for token in told["added_tokens"]]
    return Tokenizer.from_str(json.dumps(told))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value))
        yield from _strings(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _mapped(value: Any, swap: Callable[[str, bool], str], by_assistant: bool = False) -> Any:
    if isinstance(value, str):
        return swap(value, by_assistant)
    if isinstance(value, Mapping):
        by_assistant = by_assistant or value.get("role") == "assistant"
        return {_mapped(key, swap): _mapped(item, swap, by_assistant) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(item, swap, by_assistant) for item in value]
    return value
