"""Guesses that are copied from what was said before (prompt lookup decoding, Saxena, 2023)."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from torch import Tensor

from ..requests.sequence import TokenSequence
from ..requests.strategy import Forward
from .speculation import Guess

LONGEST_NGRAM = 16  # every run up to the longest is kept at each place of a text
BREAK = -1  # stands between a source and its answer, and is no id
FIRST, FURTHER = 0.3, 0.05  # what the first and each further guessed token add to a pass, in passes of one token (measured on CPUs)
HOPE = 0.4  # how much a copy is trusted before one was tried
LEARNING = 0.25  # how much of the trust each guess that was judged makes up


class NgramIndex:
    """Where each run of one to `longest` ids was last followed by another id; grows with the ids at a cost a new id."""

    def __init__(self, longest: int):
        self.longest = longest
        self.ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}

    def extend(self, ids: Sequence[int]) -> None:
        """Append ids."""
        for id in ids:
            end = len(self.ids)
            for n in range(1, min(self.longest, end) + 1):
                self._after[tuple(self.ids[end - n :])] = end
            self.ids.append(id)

    def copied(self, count: int) -> tuple[int, list[int]]:
        """Return how many of the newest ids stood together before, and up to `count` ids that followed them then.

        The longest run counts, and of its occurrences the latest. A copy that reaches the newest id goes on with what it has copied:
        after 1 2 1 2 it is 1 2 1 2 and so on.
        """
        ids = self.ids
        for n in range(min(self.longest, len(ids) - 1), 0, -1):
            start = self._after.get(tuple(ids[len(ids) - n :]))
            if start is not None:
                copy = ids[start : start + count]
                while len(copy) < count:
                    copy.append(copy[start - len(ids)])  # as far back as the end is behind the start
                return n, copy[: copy.index(BREAK)] if BREAK in copy else copy
        return 0, []


class Trust:
    """How likely the next token of a copy is to be right, by the length of the run that it follows; learns from every token."""

    def __init__(self):
        self._rates: dict[int, float] = {}

    def length(self, n: int, most: int) -> int:
        """Return how many tokens, up to `most`, of a copy behind a run of n to guess for the most tokens in the time.

        A guess is right only with all before it.
        """
        rate = self._rates.get(n, HOPE)
        best, length, tokens, right = 1.0, 0, 1.0, 1.0
        for guessed in range(1, most + 1):
            right *= rate
            tokens += right
            speed = tokens / (1 + FIRST + FURTHER * (guessed - 1))
            if speed > best:
                best, length = speed, guessed
        return length

    def learn(self, n: int, copy: Sequence[int], came: Sequence[int]) -> None:
        """Compare a copy with the tokens that came, guessed or not."""
        rate = self._rates.get(n, HOPE)
        for guessed, id in zip(copy, came):
            rate += LEARNING * ((guessed == id) - rate)
            if guessed != id:
                break
        self._rates[n] = rate


class Lookup:
    """Guesses for sequences, each from its own prompt and answer; an encoder-decoder's from its source as well.

    `prompt_lookup_num_tokens` is the most that is guessed. With the schedule "heuristic" a copy is as long as past copies were right: in
    text that repeats nothing, none is guessed, and what it would have been is still compared with what comes.
    """

    def __init__(self):
        self._indices: dict[TokenSequence, NgramIndex] = {}
        self._trust: dict[TokenSequence, Trust] = {}
        self._copies: dict[TokenSequence, tuple[int, list[int]]] = {}

    def guess(self, sequences: Sequence[TokenSequence]) -> Generator[Forward, Tensor, list[Guess]]:
        """Return what may follow each sequence."""
        yield from ()  # it needs no pass
        return [self._guess(sequence) for sequence in sequences]

    def _guess(self, sequence: TokenSequence) -> Guess:
        params = sequence.request.params
        if sequence not in self._indices:
            self._indices[sequence], self._trust[sequence] = NgramIndex(params.max_matching_ngram_size), Trust()
            if sequence.request.source_ids is not None:
                self._indices[sequence].extend([*sequence.request.source_ids, BREAK])
        index = self._indices[sequence]
        known = len(index.ids) - (0 if sequence.request.source_ids is None else len(sequence.request.source_ids) + 1)
        index.extend(sequence.ids[known:])
        room = params.max_new_tokens - sequence.position  # what would come behind the answer's end is never looked at
        n, copy = self._copies[sequence] = index.copied(min(params.prompt_lookup_num_tokens, room))
        if params.num_assistant_tokens_schedule == "heuristic":
            copy = copy[: self._trust[sequence].length(n, len(copy))]
        return Guess(list(copy), probs=[1.0] * len(copy))

    def learn(self, sequence: TokenSequence, guess: Guess, came: Sequence[int]) -> None:
        """Take note of the tokens that came after a guess."""
        n, copy = self._copies.get(sequence, (0, []))
        if n:
            self._trust[sequence].learn(n, copy, came)

    def release(self, sequences: Sequence[TokenSequence]) -> None:
        """Forget the sequences."""
        for sequence in sequences:
            for by_sequence in (self._indices, self._trust, self._copies):
                by_sequence.pop(sequence, None)
