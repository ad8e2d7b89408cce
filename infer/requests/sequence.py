"""A sequence: one hypothesis of a request's answer, with its ids and its slot in a runner's cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..runners.contract import Runner
from .events import Answer
from .generation import Generation
from .likelihoods import Place, TokenLogprobs
from .request import Request
from .rng import key, uniform
from .stop import AnswerText


@dataclass(eq=False)
class GuidanceSequence:
    """What a sequence's logits are measured against: the ids of the guidance's prompt and of the same answer, in a slot of its own."""

    generation: Generation
    runner: Runner
    cache_slot: int
    ids: list[int]

    @property
    def cached(self) -> int:
        """How many positions are in the cache, the first of `ids`."""
        return self.runner.length(self.cache_slot)

    def fork(self) -> GuidanceSequence:
        """Return one with the same past that goes on by itself."""
        [slot] = self.runner.fork([self.cache_slot])
        return GuidanceSequence(self.generation, self.runner, self.generation.hold_slot(self.runner, slot), list(self.ids))

    def rollback(self, count: int) -> None:
        """Take the newest `count` ids away, from the cache too."""
        del self.ids[len(self.ids) - count :]
        self.runner.truncate(self.cache_slot, self.cached - count)

    def adopt(self, other: GuidanceSequence) -> None:
        """Go on as `other`, which keeps its own; the cache copies only what the two do not share."""
        self.runner.copy(other.cache_slot, self.cache_slot, shared_length(self.ids, other.ids))
        self.ids = list(other.ids)


@dataclass(eq=False)
class TokenSequence:
    """A hypothesis: the prompt and what follows it, of which the cache has seen some.

    `states` are those of filters that remember, by name; `constraints` steer the text. Both fork with the sequence and accept each token.
    """

    generation: Generation
    runner: Runner
    cache_slot: int
    ids: list[int]
    text: AnswerText
    logprobs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    choice: int = 0
    score: float | None = None
    states: dict[str, Any] = field(default_factory=dict)
    constraints: list = field(default_factory=list)
    guidance: GuidanceSequence | None = None
    reached: int = 0  # positions that the slot had before guesses were taken out of it: it keeps their memory
    place: Place | None = None  # what the model thinks of the next token, where that is asked
    top_logprobs: list[TokenLogprobs] = field(default_factory=list)
    request: Request = field(init=False)
    _history: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # numpy takes a number in sooner than torch
    _remembered: int = 0
    _history_at: int = 0  # its address

    def __post_init__(self):
        self.request = self.generation.request

    @classmethod
    def open(cls, generation: Generation, runner: Runner, recall: bool = True) -> TokenSequence:
        """Return a sequence of the request that holds the prompt and the answer's prefix.

        The cache has nothing of it, or with `recall` what the request's prefix cache has. Raises UserError where a stop function of the
        caller's fails on the prefix.
        """
        request = generation.request
        past, generation.past = generation.past, None
        if past is not None and recall:
            slot = past
        else:
            slot = recalled_slot(generation, runner) if recall else new_slot(generation, runner)
        if past not in (None, slot):
            generation.release_slot(runner, past)
        sequence = cls(generation, runner, slot, list(request.prompt_ids), request.new_text())
        sequence.constraints = request.new_constraints()
        if request.guidance is not None:
            other, read = request.guidance.runner or runner, generation.guidance_past
            lane = held_slot(generation, other, other.allocate()) if read is None else read
            generation.guidance_past = None
            sequence.guidance = GuidanceSequence(generation, other, lane, list(request.guidance.prompt_ids))
            if slot == past:
                sequence.guidance.ids += request.prefix_ids[:-1]  # which no pass of the sequence will bring
        sequence.take_prefix()
        if request.prefix_cache is not None:
            request.prefix_cache.watch(sequence)
        return sequence

    def take_prefix(self) -> None:
        """Commit what the answer begins with: it is certain, nothing else could come there."""
        known = self.generation.prefix_logprobs
        for index, id in enumerate(self.request.prefix_ids):
            self.commit(id, 0.0, known[index] if known else None)

    @property
    def cached(self) -> int:
        """How many positions of the sequence are in the cache."""
        return self.runner.length(self.cache_slot)

    @property
    def seen(self) -> int:
        """How many first ids the model has seen; masked positions before the next to be seen count among them."""
        cached, masked = self.cached, self.request.masked_positions
        if not masked or not cached or cached + len(masked) > masked[-1]:
            return cached + len(masked) if cached else 0
        seen = cached
        for position in masked:  # in order: each that stands before the next one to be seen shifts it
            seen += position <= seen
        return seen

    @property
    def continuable(self) -> int:
        """How many first ids the cache has as they are read from left to right, so that another sequence can go on from them."""
        return self.seen

    @property
    def unseen(self) -> list[int]:
        """The ids that the next pass must bring; those of masked positions are left out."""
        seen, request = self.seen, self.request
        if not request.masked_positions or seen >= len(request.prompt_ids):
            return self.ids[seen:]
        masked = frozenset(request.masked_positions)
        return [id for position, id in enumerate(self.ids[seen:], seen) if position not in masked]

    @property
    def reads_prompt(self) -> bool:
        """Whether the next pass brings some of the prompt."""
        return self.seen < len(self.request.prompt_ids)

    @property
    def new_ids(self) -> list[int]:
        """The answer's ids so far."""
        return self.ids[len(self.request.prompt_ids) :]

    @property
    def position(self) -> int:
        """How many tokens the answer has: the position of the next."""
        return len(self.ids) - len(self.request.prompt_ids)

    @property
    def finished(self) -> bool:
        """Whether nothing more comes: the answer is over, or its request has failed or was cancelled."""
        return self.finish_reason is not None or self.generation.broken_off

    @property
    def seed(self) -> int:
        """What the sequence's noise is drawn from."""
        return self.request.seed_of(self.choice)

    @property
    def answer(self) -> Answer:
        """The finished sequence as an answer."""
        return Answer(self.new_ids, self.logprobs, self.pieces, self.finish_reason, self.seed, self.choice, self.score, self.top_logprobs)

    @property
    def asks_likelihoods(self) -> bool:
        """Whether what the model thinks of each token is wanted."""
        return self.request.params.logprobs is not None

    def noise(self, draw: int = 0) -> float:
        """A number in [0, 1) that belongs to this sequence's next position."""
        return uniform(self.seed, self.position, draw)

    def key(self, draw: object = 0) -> int:
        """What the noise of every id hangs on at this sequence's next position."""
        return key(self.seed, self.position, draw)

    def commit(self, id: int, logprob: float, known: TokenLogprobs | None = None) -> None:
        """Append a token to the answer and judge whether it ends there; raises UserError where a stop function of the caller's fails.

        `known` is what the model thinks of it, where that does not come from the newest pass.
        A stop string or match of the caller's counts where its last character comes with a token beyond the least number.
        """
        request, params = self.request, self.request.params
        self.ids.append(id)
        self.logprobs.append(logprob)
        if self.asks_likelihoods:
            self._keep_likelihoods(id, known)
        for state in (*self.states.values(), *self.constraints):
            state.accept(id)
        own_end, callers_end = id in request.end_ids, id in params.stop_token_ids
        judged = self.position > request.least
        piece = "" if own_end or callers_end else self.text.push(id, judged)
        if callers_end or own_end:
            self.finish_reason = "eos" if own_end else "stop"
        elif self.position >= params.max_new_tokens:
            self.finish_reason = "length"
        elif self.position > len(request.prefix_ids) and self.position - 1 not in request.pinned and self.time_is_up:  # what is given takes none
            self.finish_reason = "time"
        if self.finish_reason is not None:
            piece += self.text.finish(judged)  # which may complete a stop string
        if self.text.stopped:
            self.finish_reason = "stop"
        if self.finish_reason is not None:
            self.place = None  # it holds the logits of a whole pass
        self.pieces.append(piece)

    def _keep_likelihoods(self, id: int, known: TokenLogprobs | None) -> None:
        if known is None:
            likelihoods, row = self.place
            known = likelihoods.at(row, id, self.request.params.logprobs, self.request.tokenizer)
            self.place = Place(likelihoods, row + 1)  # of a guess that came true the next row is already there
        self.top_logprobs.append(known)

    def publish(self, count: int | None = None) -> None:
        """Publish the answer's first `count` tokens, as far as they are not published; without a count all, and that it is finished if so."""
        if self.finish_reason is not None and count is None:
            self.generation.finish(self.answer, self.choice)
        else:
            ids = self.new_ids if count is None else self.new_ids[:count]
            self.generation.publish(self.choice, ids, self.logprobs, self.pieces, self.top_logprobs)

    def history(self) -> Tensor:
        """Return prompt and answer so far as one [n] tensor; what is new since the last call is all that is copied."""
        self._remember()
        return torch.from_numpy(self._history[: len(self.ids)])

    def history_at(self) -> int:
        """Return where `history` lies in memory, until the next id comes."""
        self._remember()
        return self._history_at

    def _remember(self) -> None:
        n = len(self.ids)
        if n > len(self._history):
            grown = np.empty(2 * n, dtype=np.int64)
            grown[: self._remembered] = self._history[: self._remembered]
            self._history, self._history_at = grown, grown.ctypes.data
        if n > self._remembered:
            self._history[self._remembered : n] = self.ids[self._remembered :]
            self._remembered = n

    def rollback(self, count: int) -> None:
        """Take the newest `count` positions out of the cache: guesses that were not committed."""
        if count:
            self.reached = max(self.reached, self.cached)
            self.runner.truncate(self.cache_slot, self.cached - count)
            if self.guidance is not None:
                self.guidance.rollback(count)

    def copy(self) -> TokenSequence:
        """Return a sequence with the same ids that has no slot of its own, to be judged or adopted: never run, never released."""
        other = type(self)(self.generation, self.runner, self.cache_slot, list(self.ids), self.text.fork(), choice=self.choice, guidance=self.guidance)
        other.logprobs, other.pieces = list(self.logprobs), list(self.pieces)
        other.place, other.top_logprobs = self.place, list(self.top_logprobs)
        other.finish_reason, other.score = self.finish_reason, self.score
        other.states = {name: state.fork() for name, state in self.states.items()}
        other.constraints = [constraint.fork() for constraint in self.constraints]
        # a view without room behind it: what is remembered never changes, and to remember more makes a tensor of one's own
        other._history, other._remembered, other._history_at = self._history[: self._remembered], self._remembered, self._history_at
        return other

    def fork(self) -> TokenSequence:
        """Return a sequence with the same ids and past that goes on by itself."""
        other = self.copy()
        other.cache_slot = self.fork_slot()
        if self.guidance is not None:
            other.guidance = self.guidance.fork()
        return other

    def fork_slot(self) -> int:
        """Return a new slot with the sequence's past."""
        [slot] = self.runner.fork([self.cache_slot])
        return self.generation.hold_slot(self.runner, slot)

    def adopt(self, other: TokenSequence) -> None:
        """Go on as `other`, the copy of a sequence of the same request, and take what it has; the cache copies only what the two do not share."""
        if other.cache_slot != self.cache_slot:
            unlike = self.seen - shared_length(self.ids, other.ids)  # positions at the end of the slot
            self.runner.copy(other.cache_slot, self.cache_slot, self.cached - max(unlike, 0))
            if self.guidance is not None:
                self.guidance.adopt(other.guidance)
        self.ids, self.text, self.logprobs, self.pieces = other.ids, other.text, other.logprobs, other.pieces
        self.place, self.top_logprobs = other.place, other.top_logprobs
        self.finish_reason, self.score, self.states, self.constraints = other.finish_reason, other.score, other.states, other.constraints
        self._history, self._remembered, self._history_at = other._history, other._remembered, other._history_at

    @property
    def time_is_up(self) -> bool:
        """Whether the next token is the last, for the request's time is over."""
        limit, started = self.request.params.max_time, self.generation.started
        return limit is not None and started is not None and time.monotonic() - started >= limit


def new_slot(generation: Generation, runner: Runner) -> int:
    """Return a slot without a past for a sequence of the request: on its source, its masked positions left out."""
    request = generation.request
    slot = held_slot(generation, runner, runner.allocate(request.source_ids or ()))
    if request.masked_positions:
        runner.mask(slot, request.masked_positions)
    return slot


def held_slot(generation: Generation, runner: Runner, slot: int) -> int:
    """Have the request hold a slot, which runs with the request's adapter; on another model's runner, that has no effect."""
    if generation.request.adapter is not None and runner.capabilities.adapters:
        runner.adapt(slot, generation.request.adapter)
    return generation.hold_slot(runner, slot)


def recalled_slot(generation: Generation, runner: Runner) -> int:
    """Return a slot for a sequence of the request with the longest past of its prompt that its prefix cache, if any, has; note how long that is."""
    request = generation.request
    if request.prefix_cache is None:
        return new_slot(generation, runner)
    slot = held_slot(generation, runner, request.prefix_cache.recall(request.prompt_ids, runner, request.salt))
    generation.cached_tokens = runner.length(slot)
    return slot


def shared_length(a: list[int], b: list[int]) -> int:
    """Return how many first ids the two have in common."""
    if a == b:
        return len(a)
    low, high = 0, min(len(a), len(b))  # the first difference lies in [low, high]
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def release(sequences: Sequence[TokenSequence]) -> None:
    """Give back the sequences' slots; a prefix cache keeps the past of a finished one."""
    for sequence in sequences:
        generation, prefix_cache = sequence.generation, sequence.request.prefix_cache
        if prefix_cache is not None and sequence.finish_reason is not None and not generation.broken_off:
            generation.hand_over_slot(sequence.runner, sequence.cache_slot)
            prefix_cache.remember(sequence)
        else:
            generation.release_slot(sequence.runner, sequence.cache_slot)
        if sequence.guidance is not None:
            generation.release_slot(sequence.guidance.runner, sequence.guidance.cache_slot)


def release_finished(sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """Give back the slots of the sequences that are finished, or whose requests have ended; return the others."""
    release([sequence for sequence in sequences if sequence.finished])
    return [sequence for sequence in sequences if not sequence.finished]
