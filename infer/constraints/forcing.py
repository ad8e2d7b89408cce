"""Tokens that come whatever the model wants: given texts at given places, the end of a thinking that grew too long, a healed beginning."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..requests.sequence import TokenSequence
from ..text.vocabulary import Vocabulary


def force(scores: Tensor, id: int) -> Tensor:
    """Leave one token, [1, vocab] to [1, vocab]; one that a filter had dropped becomes certain."""
    forced = torch.full_like(scores, -torch.inf)
    forced[:, id] = scores[:, id].where(scores[:, id] > -torch.inf, 0.0)
    return forced


class ForcedText:
    """Puts given tokens at given positions of the answer."""

    name, must_end = "forced_text", False

    def __init__(self, tokens: Mapping[int, int]):
        """tokens: from the answer's position to the id there."""
        self._tokens = tokens
        self._position = 0

    def mask(self, sequence: TokenSequence, scores: Tensor) -> Tensor:
        """[1, vocab] to [1, vocab]."""
        id = self._tokens.get(self._position)
        return scores if id is None else force(scores, id)

    def accept(self, id: int) -> None:
        """Hear of the sequence's next token."""
        self._position += 1

    def fork(self) -> ForcedText:
        """Return one that goes on from here by itself."""
        return copy.copy(self)


class ThinkingBudget:
    """Ends the thinking, with which the answer begins, after so many tokens; where the model ends it in time, nothing happens.

    What the model already has of the end is not said twice. The constraints in `after` steer what follows the thinking: until then they are
    still, and the answer cannot end.
    """

    def __init__(self, budget: int, end_ids: Sequence[int], vocabulary: Vocabulary, end: str, after: Sequence = (), ends: Sequence[int] = ()):
        """end_ids are those of the text `end`; ends are the ids that end an answer."""
        self._budget, self._end_ids, self._vocabulary, self._end = budget, list(end_ids), vocabulary, end.encode()
        self._after, self._ends = list(after), list(ends)
        self._count = 0
        self._latest: list[int] = []  # ids, as many as the end has
        self._tail = b""
        self._closed = False

    @property
    def name(self) -> str:
        """What messages call it: after the thinking it is what follows."""
        return ", ".join(constraint.name for constraint in self._after) if self._closed and self._after else "thinking_budget"

    @property
    def must_end(self) -> bool:
        """Whether nothing but the end can come."""
        return self._closed and any(constraint.must_end for constraint in self._after)

    def mask(self, sequence: TokenSequence, scores: Tensor) -> Tensor:
        """[1, vocab] to [1, vocab]."""
        if self._closed:
            for constraint in self._after:
                scores = constraint.mask(sequence, scores)
            return scores
        if self._count >= self._budget:
            return force(scores, self._end_ids[begun(self._latest, self._end_ids)])
        if self._after:
            return scores.index_fill(1, torch.tensor([id for id in self._ends if id < scores.shape[1]], device=scores.device), -torch.inf)
        return scores

    def accept(self, id: int) -> None:
        """Hear of the sequence's next token."""
        if self._closed:
            for constraint in self._after:
                constraint.accept(id)
            return
        self._count += 1
        self._latest = [*self._latest, id][-len(self._end_ids) :]
        spelled = self._vocabulary.tokens[id] if id < len(self._vocabulary.tokens) else None
        self._tail = (self._tail + (spelled or b""))[-len(self._end) - self._vocabulary.longest :]
        self._closed = self._end in self._tail or self._latest == self._end_ids  # a special token has no bytes

    def fork(self) -> ThinkingBudget:
        """Return one that goes on from here by itself."""
        other = copy.copy(self)
        other._after = [constraint.fork() for constraint in self._after]
        return other


def begun(ids: Sequence[int], wanted: Sequence[int]) -> int:
    """Return how many first ids of `wanted` the ids end with, not all of them."""
    return next((n for n in range(min(len(ids), len(wanted) - 1), 0, -1) if list(ids[-n:]) == list(wanted[:n])), 0)


class TokenHealing:
    """Lets the first tokens be those alone that spell what was taken back, and go on from there."""

    name, must_end = "token_healing", False

    def __init__(self, removed: bytes, vocabulary: Vocabulary):
        self._left, self._vocabulary = removed, vocabulary

    def mask(self, sequence: TokenSequence, scores: Tensor) -> Tensor:
        """[1, vocab] to [1, vocab]."""
        if not self._left:
            return scores
        allowed = [id for id in self._vocabulary.consistent(self._left) if id < scores.shape[1]]
        kept = torch.full_like(scores, -torch.inf)
        kept[:, allowed] = scores[:, allowed]
        return kept

    def accept(self, id: int) -> None:
        """Hear of the sequence's next token."""
        spelled = (self._vocabulary.tokens[id] if id < len(self._vocabulary.tokens) else None) or b""
        self._left = self._left[len(spelled) :] if self._left.startswith(spelled) else b""

    def fork(self) -> TokenHealing:
        """Return one that goes on from here by itself."""
        return copy.copy(self)


def taken_back(vocabulary: Vocabulary, ids: Sequence[int], most: int) -> int:
    """Return how many ids at the end, at most `most`, to take back: as many as one longer token could stand for.

    0 where no token goes on from the end. What is taken back is whole characters, and never a special token.
    """
    count, text = 0, b""
    for n in range(1, min(most, len(ids)) + 1):
        spelled = vocabulary.tokens[ids[-n]] if ids[-n] < len(vocabulary.tokens) else None
        if not spelled or len(text) + len(spelled) >= vocabulary.longest:
            break
        text = spelled + text
        if whole(text) and vocabulary.extends(text):
            count = n
    return count


def whole(text: bytes) -> bool:
    """Whether the bytes are whole characters."""
    try:
        return text.decode() is not None
    except UnicodeDecodeError:
        return False
