"""Words that an answer must contain: how much of them it has, and what brings it nearer to the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ...data.literal import continuing
from ..requests.params import RequestParams
from ..requests.rules import both, entries, must_be

Word = tuple[tuple[int, ...], ...]  # its spellings, any of which will do


class ForcedWords:
    """What an answer has of the words that it must contain; hears of each token as a filter's state does.

    A word is there when one of its spellings stands in the answer, whatever else those tokens belong to.
    """

    def __init__(self, words: Sequence[Word]):
        self.words = tuple(words)
        self.missing = tuple(range(len(self.words)))
        self.longest = max(len(spelling) for word in self.words for spelling in word)
        self._tail: tuple[int, ...] = ()

    def accept(self, id: int) -> None:
        """Hear of the sequence's next token."""
        self._tail = (*self._tail, id)[-self.longest :]
        self.missing = tuple(i for i in self.missing if not any(self._tail[-len(each) :] == each for each in self.words[i]))

    def fork(self) -> ForcedWords:
        """Return one that goes on by itself."""
        return copy(self)

    @property
    def bank(self) -> int:
        """How far the answer is: each word that is there counts as much as the longest, and one begun by what it has."""
        begun = 0
        for i in self.missing:
            had = max(map(self._begun, self.words[i]))
            if had:
                begun = max(begun, self.longest - max(map(len, self.words[i])) + had)
        return (len(self.words) - len(self.missing)) * self.longest + begun

    @property
    def still(self) -> int:
        """How many tokens will surely do for what is missing."""
        if not self.missing:
            return 0
        shortest = {i: min(map(len, self.words[i])) for i in self.missing}
        saved = max(shortest[i] - min(len(each) - self._begun(each) for each in self.words[i]) for i in self.missing)
        return sum(shortest.values()) - saved

    def next_ids(self) -> list[int]:
        """The tokens that go on with the words begun; where none is, those that begin one."""
        spellings = [each for i in self.missing for each in self.words[i]]
        begun = [each for each in spellings if self._begun(each)]
        return list(dict.fromkeys(each[self._begun(each)] for each in begun or spellings))

    def _begun(self, spelling: tuple[int, ...]) -> int:
        """How many first tokens of a missing spelling the answer ends with."""
        lengths = range(min(len(spelling) - 1, len(self._tail)), 0, -1)
        return next((n for n in lengths if self._tail[-n:] == spelling[:n]), 0)


def words_of(params: RequestParams) -> list[Word]:
    """Return the words of `force_words_ids`, each entry of which is a phrase or a list of phrases."""
    return [word_of(entry) for entry in params.force_words_ids]


def word_of(entry: Sequence) -> Word:
    return (tuple(entry),) if is_phrase(entry) else tuple(map(tuple, entry))


def is_phrase(ids: Any) -> bool:
    return isinstance(ids, list | tuple) and len(ids) > 0 and all(type(id) is int for id in ids)


def one_or_several(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether an entry is what fits, or a list of such to choose from."""
    return lambda entry: fits(entry) or isinstance(entry, list | tuple) and len(entry) > 0 and all(map(fits, entry))


is_text = one_or_several(lambda each: isinstance(each, str))


def named_once(name: str, entries: Sequence) -> str | None:
    """The rule that no word is asked for twice."""
    same = (a for a, b in pairwise(sorted(map(word_of, entries))) if a == b)
    return next((f"{name} has {word} twice, which one occurrence would satisfy: name it once" for word in same), None)


WORDS = must_be("a list of texts, or of lists of texts to choose from", lambda value: isinstance(value, list | tuple) and all(map(is_text, value)))
WORDS_IDS = both(entries("a list of lists of ids, or of lists of such to choose from", one_or_several(is_phrase)), named_once)


def forced_ids(params: RequestParams, tokenizer: PreTrainedTokenizerBase) -> list[list]:
    """Return the entries of `force_words`, a text or a list of texts, as ids.

    A text that begins with a letter or a digit is a word of its own, so a space stands before it; `force_words_ids` says it otherwise.
    Raises UserError for a text of which nothing can be seen, or that a stop string would cut off.
    """
    encoder = partial(tokenizer.encode, add_special_tokens=False)
    entries = [(entry,) if isinstance(entry, str) else tuple(entry) for entry in params.force_words]
    for text in (text for entry in entries for text in entry):
        if not text.strip():
            raise UserError(f"force_words has the text {text!r}, of which nothing can be seen: leave it out")
        if stop := next((stop for stop in params.stop if stop in text), None):
            raise UserError(f"force_words has {text!r}, at which stop={stop!r} would end the answer: drop one of them")
    spaced = [[f" {text}" if text[0].isalnum() else text for text in entry] for entry in entries]
    return [*params.force_words_ids, *([continuing(encoder, text) for text in entry] for entry in spaced)]


def check_words(params: RequestParams, prefix_ids: Sequence[int], end_ids: frozenset[int], vocab_size: int) -> None:
    """Raise UserError for words of unknown ids, that would end the answer, or that have no room in it."""
    words = words_of(params)
    for id in (id for word in words for spelling in word for id in spelling):
        if not 0 <= id < vocab_size:
            raise UserError(f"force_words_ids has the id {id}, but the model's {vocab_size} ids begin at 0")
        if id in end_ids or id in params.stop_token_ids:
            raise UserError(f"force_words_ids has the id {id}, which ends the answer: leave it out")
    if not words:
        return
    progress = ForcedWords(words)
    for id in prefix_ids:
        progress.accept(id)
    room = params.max_new_tokens - len(prefix_ids)
    if progress.still > room:
        raise UserError(f"the forced words take {progress.still} tokens, but the answer has room for {room}: raise max_new_tokens")
