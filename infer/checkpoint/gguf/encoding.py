"""The ids that llama.cpp gives a text by what a GGUF file says of its tokenizer: slow, and for checking the file."""

from __future__ import annotations

import math
from collections.abc import Iterator

import regex
from gguf import TokenType
from tokenizers import pre_tokenizers

from .pre_tokenizers import split_named
from .vocabulary import SPACE, Vocabulary

FOUND = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)  # whole in the text, before anything else
UNLIKELY = 10  # how much less likely than the unlikeliest token an unknown character is


class Encoder:
    """Encodes as llama.cpp does, control tokens in the text included, without what it puts around the text."""

    def __init__(self, vocabulary: Vocabulary):
        self.own = vocabulary
        self.ids = {token: number for number, token in enumerate(vocabulary.tokens)}
        whole = [token for token, kind in zip(vocabulary.tokens, vocabulary.types) if kind in FOUND]
        self._whole = regex.compile("|".join(map(regex.escape, sorted(whole, key=lambda token: -len(token.encode())))) or "(?!)")
        self._by_kind = {"gpt2": self._byte_level, "llama": self._by_score, "t5": self._likeliest}[vocabulary.kind]
        if vocabulary.kind == "gpt2":
            self._ranks = {tuple(merge.split(" ", 1)): rank for rank, merge in enumerate(vocabulary.merges)}
            split = split_named(vocabulary.pre)
            self._patterns, self._stays = [regex.compile(pattern) for pattern in split.patterns], vocabulary.pre == split.whole
            self._bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        elif vocabulary.kind == "t5":
            kinds = {TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED}
            scored = [(token, score, kind) for token, score, kind in zip(vocabulary.tokens, vocabulary.scores, vocabulary.types) if kind in kinds]
            self._likely = {token: 0.0 if kind == TokenType.USER_DEFINED else score for token, score, kind in scored}
            self._unlikely = min(score for _, score, kind in scored if kind == TokenType.NORMAL) - UNLIKELY
            self._longest = max(map(len, self._likely))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ids, begin, after_control = [], 0, True
        for found in [*self._whole.finditer(text), None]:
            part = text[begin : found.start() if found else len(text)]
            if part:
                ids += self._by_kind(part, after_control)
                after_control = False
            if found:
                ids.append(self.ids[found[0]])
                begin, after_control = found.end(), True
        return ids

    def _byte_level(self, text: str, first: bool) -> Iterator[int]:
        words = [text]
        for pattern in self._patterns:
            words = [piece for word in words for piece in _cut(word, pattern)]
        for word in words:
            spelled = self._bytes.pre_tokenize_str(word)[0][0]
            if self._stays and spelled in self.ids:
                yield self.ids[spelled]
                continue
            for piece in _joined(list(spelled), lambda left, right: self._ranks.get((left, right), math.inf)):
                yield from (self.ids[part] for part in ([piece] if piece in self.ids else piece) if part in self.ids)

    def _by_score(self, text: str, first: bool) -> Iterator[int]:
        text = (" " if self.own.add_space and first else "") + text
        scores = self.own.scores
        cost = lambda left, right: -scores[self.ids[left + right]] if left + right in self.ids else math.inf
        for piece in _joined(list(text.replace(" ", SPACE)), cost):
            if piece in self.ids:
                yield self.ids[piece]
            else:
                yield from (self.ids[f"<0x{code:02X}>"] for code in piece.encode())

    def _likeliest(self, text: str, first: bool) -> list[int]:
        text = ((" " if self.own.add_space and text.strip(" ") else "") + text).replace(" ", SPACE)
        best = [(0.0, 0, -1)] + [(-math.inf, 0, -1)] * len(text)  # of what lies before: its score, where its last token begins, and that token
        unknown = self.own.ids["unknown_token_id"]
        for begin in range(len(text)):
            for end in range(begin + 1, min(begin + self._longest, len(text)) + 1):
                token = text[begin:end]
                if token in self._likely:
                    best[end] = max(best[end], (best[begin][0] + self._likely[token], begin, self.ids[token]), key=lambda each: each[0])
            if text[begin] not in self._likely:
                best[begin + 1] = max(best[begin + 1], (best[begin][0] + self._unlikely, begin, unknown), key=lambda each: each[0])
        ids, end = [], len(text)
        while end:
            _, end, number = best[end]
            if not (ids and ids[-1] == number == unknown):  # neighbours that are unknown are one
                ids.append(number)
        return ids[::-1]


def _cut(word: str, pattern: regex.Pattern) -> Iterator[str]:
    """The matches of a word, and what lies between them."""
    begin = 0
    for found in pattern.finditer(word):
        yield from (piece for piece in (word[begin : found.start()], found[0]) if piece)
        begin = found.end()
    if word[begin:]:
        yield word[begin:]


def _joined(pieces: list[str], cost) -> list[str]:
    """Join the two neighbours of the lowest cost, of equals the first, until no two may be joined."""
    costs = [cost(*pair) for pair in zip(pieces, pieces[1:])]
    while costs and (lowest := min(costs)) < math.inf:
        place = costs.index(lowest)
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
        del costs[place]
        for each in (place - 1, place):
            if 0 <= each < len(costs):
                costs[each] = cost(pieces[each], pieces[each + 1])
    return pieces
