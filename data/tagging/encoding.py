"""Texts to what a tagger reads: all of their tokens, in windows where they are many, and which token speaks for which part of the text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from transformers import BatchEncoding, PreTrainedTokenizerBase

from ..errors import UserError

Place = tuple[int, int]  # [start, end) in characters
STRIDE = 32


@dataclass(frozen=True)
class Window:
    """What the model reads at once, and the places in it of the tokens whose tags count, which no other window of the text has."""

    input_ids: list[int]
    token_type_ids: list[int] | None
    asked: tuple[int, ...]


@dataclass(frozen=True)
class TagEncoding:
    """A text's windows, and the parts of it that get a tag each, in the order in which the windows ask for them; `tokens` are those read, special ones too."""

    windows: tuple[Window, ...]
    units: tuple[Place, ...]

    @property
    def tokens(self) -> int:
        return sum(len(window.input_ids) for window in self.windows)


@dataclass(frozen=True)
class TagEncoder:
    """A tokenizer, how many tokens a window has at most (None: any number), how many of them it shares with the next (None: 32, of few a fourth), and what gets a tag.

    What gets a tag is a word, for which its first token speaks, or with `all_subwords` every token. Words are those that a text comes with, or else
    those that the tokenizer parts. Raises UserError for a tokenizer that does not say where its tokens stand, and for windows without room.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None
    stride: int | None = None
    all_subwords: bool = False

    def __post_init__(self):
        if not self.tokenizer.is_fast:
            raise UserError(f"{type(self.tokenizer).__name__} does not tell where in a text its tokens stand: use a fast tokenizer (tokenizer.json)")
        if self.stride is not None and self.stride < 0:
            raise UserError(f"stride must be at least 0, got {self.stride}")
        around = self.tokenizer.num_special_tokens_to_add(pair=False)
        if self.max_length is not None and self.max_length - around <= (self.stride or 0):
            beside = f"stride {self.stride} and {around} special tokens: raise it, or lower --stride" if self.stride else f"{around} special tokens: raise it"
            raise UserError(f"max_length {self.max_length} leaves nothing beside {beside}")

    def __call__(self, texts: Sequence[str], words: Sequence[Sequence[Place] | None] | None = None) -> list[TagEncoding]:
        """Encode texts, each with its words where it comes with some."""
        if not texts:
            return []
        found = self.tokenizer(list(texts), return_offsets_mapping=True, verbose=False)
        given = [None] * len(texts) if words is None else words
        return [self._encoded(found, place, text, of) for place, (text, of) in enumerate(zip(texts, given, strict=True))]

    def _encoded(self, found: BatchEncoding, place: int, text: str, words: Sequence[Place] | None) -> TagEncoding:
        ids, kinds = found["input_ids"][place], found.get("token_type_ids")
        own = [at for at, side in enumerate(found.sequence_ids(place)) if side is not None]
        first, last = (own[0], own[-1] + 1) if own else (len(ids), len(ids))
        places = [_without_spaces(text, *found["offset_mapping"][place][at]) for at in range(first, last)]
        units = units_of(places, self._keys(places, found.word_ids(place)[first:last], words), words if not self.all_subwords else None)
        room = last - first if self.max_length is None else self.max_length - (len(ids) - (last - first))
        windows = []
        for begin, end, mine in windows_of(last - first, max(room, 1), min(STRIDE, room // 4) if self.stride is None else self.stride):
            of = lambda row: row[:first] + row[first + begin : first + end] + row[last:]
            asked = tuple(first + token - begin for token, _ in units if token in mine)
            windows.append(Window(of(ids), kinds and of(kinds[place]), asked))
        return TagEncoding(tuple(windows), tuple(part for _, part in units))

    def _keys(self, places: Sequence[Place], own: Sequence[int | None], words: Sequence[Place] | None) -> list[int | None]:
        """By token the number of what it belongs to, None for a token of nothing but spaces."""
        if self.all_subwords:
            return joined(places)
        if words is None:
            return [None if start == end else word for (start, end), word in zip(places, own, strict=True)]
        keys, word = [], 0
        for start, end in places:
            while word < len(words) and words[word][1] <= start:
                word += 1
            keys.append(word if start < end and word < len(words) and words[word][0] < end else None)
        return keys


def joined(places: Sequence[Place]) -> list[int | None]:
    """Numbers of tokens, one for those that stand for parts of the same characters, None for those of no character.

    >>> joined([(0, 1), (1, 2), (1, 2), (2, 2)])
    [0, 1, 1, None]
    """
    keys, number, reached = [], -1, 0
    for start, end in places:
        if start < end:
            number += start >= reached
            reached = max(reached, end)
        keys.append(number if start < end else None)
    return keys


def units_of(places: Sequence[Place], keys: Sequence[int | None], words: Sequence[Place] | None) -> list[tuple[int, Place]]:
    """The first token and the place in the text of each part that tokens of one key are: the word's own place, or from the first token's start to the last end."""
    units = []
    for key, group in groupby(range(len(places)), keys.__getitem__):
        tokens = list(group)
        if key is not None:
            place = words[key] if words is not None else (places[tokens[0]][0], max(places[token][1] for token in tokens))
            units.append((tokens[0], place))
    return units


def windows_of(tokens: int, room: int, stride: int) -> Iterator[tuple[int, int, range]]:
    """Windows over so many tokens, each from where to where, with `stride` in common with the next, and which tokens it answers for: of those in common half.

    >>> list(windows_of(10, 6, 2))
    [(0, 6, range(0, 5)), (4, 10, range(5, 10))]
    """
    begin, mine = 0, 0
    while begin + room < tokens:
        end = begin + room
        border = end - stride + (stride + 1) // 2
        yield begin, end, range(mine, border)
        begin, mine = end - stride, border
    yield begin, tokens, range(mine, tokens)


def _without_spaces(text: str, start: int, end: int) -> Place:
    """Where a token stands without the spaces at its ends, which some tokenizers count to it."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
