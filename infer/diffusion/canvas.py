"""The canvas of a diffusion answer: all of its positions at once, of which some are certain and the others masks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..requests.events import Answer
from ..requests.likelihoods import Place, TokenLogprobs
from ..requests.rng import uniform
from ..requests.sequence import TokenSequence
from ..runners.paradigm import is_bidirectional


@dataclass(eq=False)
class Canvas:
    """The positions of an answer: `ids`, masks where it is `open`, and of what is certain the log-probabilities and the likelihoods.

    Whether a position is open says `open` alone: a mask's id means nothing where it stands elsewhere. Those that are `pinned` were given by the
    caller, and stay.
    """

    ids: list[int]
    open: list[bool]
    logprobs: list[float]
    known: list[TokenLogprobs | None]
    pinned: set[int] = field(default_factory=set)

    @classmethod
    def blank(cls, length: int, mask_token_id: int) -> Canvas:
        """A canvas of masks."""
        return cls([mask_token_id] * length, [True] * length, [0.0] * length, [None] * length)

    @property
    def all(self) -> range:
        """All positions."""
        return range(len(self.ids))

    @property
    def shown(self) -> tuple[int | None, ...]:
        """The ids, None where it is open."""
        return tuple(None if is_open else id for id, is_open in zip(self.ids, self.open))

    def open_in(self, positions: range) -> list[int]:
        """Those of the positions that are not certain."""
        return [position for position in positions if self.open[position]]

    def put(self, position: int, id: int, logprob: float, known: TokenLogprobs | None = None) -> None:
        """Make an open position certain."""
        assert self.open[position]
        self.ids[position], self.logprobs[position], self.known[position], self.open[position] = id, logprob, known, False

    def pin(self, position: int, id: int, known: TokenLogprobs | None = None) -> None:
        """Put a token of the caller's, whatever stood there: it is certain, so its log-probability is 0."""
        self.ids[position], self.logprobs[position], self.known[position], self.open[position] = id, 0.0, known, False
        self.pinned.add(position)

    def reopen(self, position: int, mask_token_id: int) -> None:
        """Make a certain position a mask again."""
        assert not self.open[position] and position not in self.pinned
        self.ids[position], self.logprobs[position], self.known[position], self.open[position] = mask_token_id, 0.0, None, True


class CanvasSequence(TokenSequence):
    """The answer's sequence beside its canvas: its ids are the prompt and the first certain ones, its slot is cut back behind each pass.

    What is read both ways is no other prompt's beginning: of the cache that is the prompt alone, and nothing where it is read with the canvas.
    """

    passes = 0  # of the canvas
    before: tuple[Tensor, Place | None] | None = None  # the logits behind the prompt, [1, vocab], where the canvas' first token is read there

    @cached_property
    def whole(self) -> bool:
        """Whether the prompt is read with the canvas, in every pass."""
        return is_bidirectional(self.runner.model.config)

    @property
    def answer(self) -> Answer:
        """The finished sequence as an answer, with the passes that it took."""
        return replace(super().answer, forwards=self.passes)

    @property
    def continuable(self) -> int:
        """How many first ids were read from left to right."""
        return 0 if self.whole else min(self.seen, len(self.request.prompt_ids))

    @property
    def reads_prompt(self) -> bool:
        """Whether the next pass is the first to bring some of the prompt."""
        return not self.passes and super().reads_prompt

    @cached_property
    def given(self) -> list[int]:
        """The prompt's ids, masked positions left out."""
        masked = frozenset(self.request.masked_positions)
        return [id for position, id in enumerate(self.request.prompt_ids) if position not in masked]

    def least_kept(self, count: int) -> int:
        """Of how many positions the logits are asked for where `count` are needed: without any, a guidance would not be shown them."""
        return count if self.guidance is None else max(count, 1)

    def attend_both_ways(self, on: bool, after: int = 0) -> None:
        """Have new positions see one another, but for the first `after`, and those of the guidance too."""
        self.runner.attend_both_ways(self.cache_slot, on, after)
        if self.guidance is not None:
            self.guidance.runner.attend_both_ways(self.guidance.cache_slot, on)

    def rollback(self, count: int) -> None:
        """Take the newest `count` positions out of the cache; what goes with them of a guidance's prompt is to be read again."""
        super().rollback(count)
        if self.guidance is not None and len(self.guidance.ids) < len(prompt := self.request.guidance.prompt_ids):
            self.guidance.ids = list(prompt)

    def take_prefix(self) -> None:
        """Leave it to the canvas, which has it among what is given."""

    def commit(self, id: int, logprob: float, known: TokenLogprobs | None = None) -> None:
        """As of any sequence; where the answer ends with what is given, it is whole and not cut off."""
        super().commit(id, logprob, known)
        if self.finish_reason == "length" and self.position - 1 in self.request.pinned:
            self.finish_reason = "stop"

    def fill(self, canvas: Canvas) -> None:
        """Commit what has become certain of the canvas behind what was committed before it, up to an end or the first open position."""
        while not self.finished and not canvas.open[self.position]:
            at = self.position
            self.commit(canvas.ids[at], canvas.logprobs[at], canvas.known[at])


class CanvasPosition:
    """A sequence as filters see it at one position of its canvas: all is the sequence's but where the next token stands, and the noise there."""

    def __init__(self, sequence: CanvasSequence, position: int):
        self.sequence, self.position = sequence, position

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sequence, name)

    def noise(self, draw: int = 0) -> float:
        """A number in [0, 1) that belongs to the position."""
        return uniform(self.seed, self.position, draw)


def aligned(logits: Tensor, count: int, shift: int, before: Tensor | None = None) -> Tensor:
    """Return the logits of a canvas' last `count` positions, [count, vocab], from those of a pass that ends with them.

    Without a shift position i is read at i. With one it is read at i - 1: `logits` then begin one position earlier, [count + 1, vocab], or with
    `before`, [1, vocab], what was read there in an earlier pass; what the last position says is of nothing.
    """
    if not shift:
        return logits[len(logits) - count :]
    return (logits if before is None else torch.cat([before, logits]))[:count]

