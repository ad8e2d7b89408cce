"""Every key of a JSON object once, and in one spelling: what a grammar cannot say of the keys that a schema leaves free."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NamedTuple

from llguidance import LLMatcher

from ..text.vocabulary import Vocabulary


class Place(NamedTuple):
    """Where a JSON text stands: `open` has for each open object the keys that it has, and None for each open array.

    `text` is not None in a string: of a key (`is_key`) what it has so far, as it is written; of another a backslash that waits.
    `key_next`: the next string is a key.
    """

    open: tuple[frozenset[bytes] | None, ...] = ()
    text: bytes | None = None
    is_key: bool = False
    key_next: bool = False

    @property
    def keys(self) -> frozenset[bytes]:
        """The keys of the innermost object."""
        return (self.open[-1] if self.open else None) or frozenset()

    @property
    def escaped(self) -> bool:
        """Whether a backslash waits for what it escapes."""
        return self.text is not None and (len(self.text) - len(self.text.rstrip(b"\\"))) % 2 == 1


def after(place: Place, data: bytes) -> Place | None:
    r"""Return where the text stands after more of it; None where a key would come again, or have an escape `\u`.

    Without `\u` a key has one spelling, so that none can hide another. Of a text that is no JSON nothing is found.
    """
    for byte in data:
        letter = chr(byte)
        if place.text is not None:
            if letter == '"' and not place.escaped:
                if place.is_key and place.text in place.keys:
                    return None
                seen = (*place.open[:-1], place.keys | {place.text}) if place.is_key else place.open
                place = Place(seen)
            elif letter == "u" and place.is_key and place.escaped:
                return None
            elif place.is_key:
                place = place._replace(text=place.text + bytes([byte]))
            else:
                place = place._replace(text=b"\\" if letter == "\\" and not place.escaped else b"")
        elif letter == '"':
            place = place._replace(text=b"", is_key=place.key_next, key_next=False)
        elif letter in "{[":
            place = Place((*place.open, frozenset() if letter == "{" else None), key_next=letter == "{")
        elif letter in "}]":
            place = Place(place.open[:-1])
        elif letter == ",":
            place = Place(place.open, key_next=bool(place.open) and place.open[-1] is not None)
    return place


class KeyTokens:
    """The tokens of a vocabulary that may do wrong by a key wherever they come."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        spelled = [(id, token) for id, token in enumerate(vocabulary.tokens) if token]
        escapes = {id for id, token in spelled if b"\\u" in token}
        # to end a key that it begins, a token has two quotes, and a third where it must end another string before
        self.outside = sorted(escapes | {id for id, token in spelled if token.count(b'"') > 1})
        self.inside = sorted(escapes | {id for id, token in spelled if token.count(b'"') > 2})
        # which may go on to another key
        self.turning_outside = [id for id, token in spelled if b'"' in token or b"," in token]
        self.turning_inside = [id for id, token in spelled if b'"' in token and b"," in token]


class UniqueKeys:
    """Keeps the keys of every object of a JSON answer apart; used beside a grammar that makes it JSON.

    With `matcher`, that grammar over bytes, also keys of which only those that the object has already could come of: needed where
    a schema's patterns leave only so many names.
    """

    def __init__(self, tokens: KeyTokens, matcher: LLMatcher | None = None):
        self._tokens, self._matcher = tokens, matcher
        self._place = Place()

    def wrong(self, bits: bytes | bytearray, vocab: int) -> list[int]:
        """Return those of the ids below `vocab` that the grammar allows, a bit each and the lowest of a byte first, that would do wrong by a key."""
        ids = [id for id in self._suspects() if id < min(vocab, 8 * len(bits)) and bits[id >> 3] >> (id & 7) & 1]
        return [id for id in ids if not self._fits(self._spelled(id))]

    def accept(self, id: int) -> None:
        """Hear of the answer's next token."""
        self._place = after(self._place, self._spelled(id)) or self._place
        if self._matcher is not None:
            self._matcher.consume_tokens(list(self._spelled(id)))

    def takes(self, ids: Iterable[int]) -> bool:
        """Whether the answer may go on with these ids."""
        return self._fits(b"".join(map(self._spelled, ids)))

    def fork(self) -> UniqueKeys:
        """Return one that goes on from here by itself."""
        other = copy.copy(self)
        other._matcher = None if self._matcher is None else self._matcher.deep_copy()
        return other

    def _spelled(self, id: int) -> bytes:
        tokens = self._tokens.vocabulary.tokens
        return (tokens[id] if id < len(tokens) else None) or b""

    def _suspects(self) -> set[int]:
        """The tokens that may do wrong here; of all others it is plain that they do not."""
        tokens, place = self._tokens, self._place
        found = set(tokens.outside if place.text is None else tokens.inside)
        if self._matcher is not None:
            found.update(tokens.turning_outside if place.text is None else tokens.turning_inside)
        if place.text is not None and place.is_key:
            for rest in rests(place):
                found.update(tokens.vocabulary.beginning_with(rest))
                if self._matcher is not None:
                    found.update(tokens.vocabulary.beginnings_of(rest))
            if place.escaped:
                found.update(tokens.vocabulary.beginning_with(b"u"))
        return found

    def _fits(self, data: bytes) -> bool:
        place = after(self._place, data)
        if place is None or self._matcher is None:
            return place is not None
        if not (place.is_key or place.key_next) or not rests(place):
            return True
        data += b'"' if place.key_next else b""
        matcher = self._matcher.deep_copy()
        return matcher.try_consume_tokens(list(data)) < len(data) or leads_elsewhere(matcher, rests(place))


def rests(place: Place) -> list[bytes]:
    """What would make each key that the object has of the key that is being written, its end included."""
    begun = place.text or b""
    return [key[len(begun) :] + b'"' for key in place.keys if key.startswith(begun)]


def leads_elsewhere(matcher: LLMatcher, ways: list[bytes]) -> bool:
    """Whether a grammar over bytes has another way on than these and what they begin with."""
    bits = int.from_bytes(matcher.compute_bitmask()[:32], "little")
    following: dict[int, list[bytes]] = {}
    for way in ways:
        following.setdefault(way[0], []).append(way[1:])
    if bits & ~sum(1 << byte for byte in following):
        return True
    for byte, further in following.items():
        if bits >> byte & 1 and b"" not in further:
            fork = matcher.deep_copy()
            fork.consume_token(byte)
            if leads_elsewhere(fork, further):
                return True
    return False
