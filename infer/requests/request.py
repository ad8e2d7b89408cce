"""A request, and the sequences (hypotheses) that search for its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...data.errors import UserError
from .events import Committed, Event, Finished, Observed, Result
from .params import SamplingParams
from .rng import hashed, key, uniform
from .stop import AnswerText

Combine = Callable[[Tensor, Tensor], Tensor]  # logits of the sequence and of its guidance, [n, vocab] each, to the sequence's
Guidance = tuple[Any, list[int], Combine]  # a runner (None for the request's own), its prompt, and how to combine


@dataclass(eq=False)
class Request:
    """One prompt with its settings, where its answer ends, and the ear that hears its events.

    An encoder-decoder's prompt is `source_ids`, and `prompt_ids` are then the decoder's first ids. `select`, where given, takes
    all `width` finished sequences and returns the ones to be told of, best first.
    """

    index: int
    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    end_ids: frozenset[int]
    new_text: Callable[[], AnswerText]
    on_event: Callable[[Event], None] = lambda event: None
    source_ids: list[int] | None = None
    breaker_ids: frozenset[int] = frozenset()  # tokens that DRY's repetitions do not reach across
    masked_positions: tuple[int, ...] = ()  # positions of the prompt that no token sees
    prefix_ids: list[int] = field(default_factory=list)  # the answer begins with these
    new_constraints: Callable[[], list] = list  # what steers the text of one sequence, made anew for each
    guidance: Guidance | None = None
    select: Callable[[list[TokenSequence]], Sequence[TokenSequence]] | None = None
    prefix_cache: Any = None  # a PrefixCache that the sequences' past comes from and goes to
    tokenizer: Any = None  # of the model
    known_ids: int | None = None  # of the tokenizer; the ids beyond are never offered
    traced: bool = False
    started: float | None = None
    alone: bool = True  # its prompt has not been run, or it has one answer only
    results: dict[int, Result] = field(default_factory=dict)
    places: set[tuple[Any, int]] = field(default_factory=set)  # runners and their sequences: what this request has opened and not given back
    error: UserError | None = None  # what ended it before its answers were there
    _published: dict[int, int] = field(default_factory=dict)
    _told: dict[int, TokenSequence] = field(default_factory=dict)  # of each answer a sequence that has what was published
    _held: list[TokenSequence] = field(default_factory=list)

    @property
    def width(self) -> int:
        """How many answers grow for this request."""
        return max(self.params.num_return_sequences, self.params.best_of or 1)

    @property
    def result(self) -> Result | None:
        return self.results.get(0)

    @property
    def done(self) -> bool:
        return len(self.results) == self.params.num_return_sequences

    @property
    def ends(self) -> frozenset[int]:
        """Every id that ends the answer: the model's own and the caller's."""
        return self.end_ids | frozenset(self.params.stop_token_ids)

    @property
    def least(self) -> int:
        """How many tokens the answer must have before one may end it."""
        return max(self.params.min_new_tokens or 0, (self.params.min_length or 0) - len(self.prompt_ids))

    def opened(self, runner, slot: int) -> int:
        """Take note of a sequence that was opened in a runner, and return it."""
        self.places.add((runner, slot))
        return slot

    def give_back(self, runner, slot: int) -> None:
        """Give a sequence's memory back, if that has not been done yet."""
        if (runner, slot) in self.places:
            self.places.remove((runner, slot))
            runner.release([slot])

    def give_back_all(self) -> None:
        """Give back all that the request still holds."""
        for runner in {runner for runner, _ in self.places}:
            runner.release([slot for of, slot in self.places if of is runner])
        self.places.clear()

    def publish(self, sequence: TokenSequence, until: int | None = None) -> None:
        """Tell of the sequence's tokens that were not told yet, up to `until`; with all of a finished sequence told, finish."""
        if self.error is not None:
            return
        if self.select is not None:
            self._hold(sequence)
            return
        tokens = sequence.new_ids
        until = len(tokens) if until is None else until
        for i in range(self._published.get(sequence.choice, 0), until):
            self.on_event(Committed(self.index, i, tokens[i], sequence.logprobs[i], sequence.pieces[i], sequence.choice))
        self._published[sequence.choice], self._told[sequence.choice] = max(self._published.get(sequence.choice, 0), until), sequence
        if sequence.finished and until == len(tokens):
            self.results[sequence.choice] = Result(
                self.index, "".join(sequence.pieces), tokens, sequence.logprobs, sequence.finish_reason, len(self.source_ids or self.prompt_ids),
                sequence.seed, sequence.choice, sequence.score,
            )  # fmt: skip
            self.on_event(Finished(self.index, sequence.finish_reason, sequence.choice))

    def _hold(self, sequence: TokenSequence) -> None:
        """Keep a finished sequence until all are there, then tell of the chosen ones."""
        if sequence.finished:
            self._held.append(sequence)
        if len(self._held) == self.width:
            chosen, self.select = self.select(self._held), None
            for choice, sequence in enumerate(chosen):
                sequence.drawn_by, sequence.choice = sequence.seed, choice
                self.publish(sequence)

    def fail(self, error: UserError) -> None:
        """End the request by an error: each answer that is not there yet is what was told of it, and all sequences leave the cache."""
        if self.error is not None:
            return
        self.error = error
        for choice in range(self.params.num_return_sequences):
            if choice not in self.results:
                self.results[choice] = self._broken_off(choice, str(error))
                self.on_event(Finished(self.index, "error", choice, str(error)))
        self.give_back_all()

    def _broken_off(self, choice: int, error: str) -> Result:
        sequence, told = self._told.get(choice), self._published.get(choice, 0)
        ids, logprobs, pieces = ([], [], []) if sequence is None else (sequence.new_ids[:told], sequence.logprobs[:told], sequence.pieces[:told])
        seed = self.seed if choice == 0 else derived(self.seed, choice)
        return Result(
            self.index, "".join(pieces), ids, logprobs, "error", len(self.source_ids or self.prompt_ids), seed, choice, error=error
        )  # fmt: skip

    @contextmanager
    def contained(self) -> Iterator[None]:
        """Let a UserError that is raised within end this request, and no other."""
        try:
            yield
        except UserError as error:
            self.fail(error)

    def note(self, what: Any, position: int, choice: int = 0) -> None:
        """Tell those who trace what happened at a position; nobody else hears it."""
        if self.traced:
            self.on_event(Observed(self.index, position, what, choice))


@dataclass(eq=False)
class TokenSequence:
    """A hypothesis: the prompt and what follows it, and how much of that the cache has seen.

    `states` are those of filters that remember, by name; `constraints` steer the text. Both fork with the sequence and hear of each token.
    """

    request: Request
    runner: Any
    cache_slot: int
    ids: list[int]
    text: AnswerText
    seen: int = 0
    logprobs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    choice: int = 0
    score: float | None = None
    states: dict[str, Any] = field(default_factory=dict)
    constraints: list = field(default_factory=list)
    guidance: TokenSequence | None = None
    drawn_by: int | None = None  # the seed that drew it, where its choice is a rank
    _history: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    _remembered: int = 0

    @classmethod
    def open(cls, request: Request, runner, recall: bool = True) -> TokenSequence:
        """Return a sequence of the request that holds the prompt and has been shown nothing of it, or with `recall` what a memory has of it."""
        if recall and request.prefix_cache is not None:
            slot, seen = request.prefix_cache.recall(request.prompt_ids, runner)
            request.opened(runner, slot)
        else:
            slot, seen = new_slot(request, runner), 0
        sequence = cls(request, runner, slot, list(request.prompt_ids), request.new_text(), seen)
        sequence.constraints = request.new_constraints()
        if request.guidance is not None:
            other, ids, _ = request.guidance
            beside = other or runner
            sequence.guidance = cls(request, beside, request.opened(beside, beside.allocate()), list(ids), sequence.text)
        for id in request.prefix_ids:
            sequence.commit(id, 0.0)  # certain: nothing else could come there
        return sequence

    @property
    def unseen(self) -> list[int]:
        """The ids that the next pass must bring; those of hidden positions are left out."""
        if not self.request.masked_positions or self.seen >= len(self.request.prompt_ids):
            return self.ids[self.seen :]
        hidden = frozenset(self.request.masked_positions)
        return [id for place, id in enumerate(self.ids[self.seen :], self.seen) if place not in hidden]

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
        """Whether nothing more comes: the answer is over, or its request has failed."""
        return self.finish_reason is not None or self.request.error is not None

    @property
    def seed(self) -> int:
        """What the sequence's noise is drawn from: the request's seed, and for its further answers one derived from it."""
        if self.drawn_by is not None:
            return self.drawn_by
        return self.request.seed if self.choice == 0 else derived(self.request.seed, self.choice)

    def noise(self, draw: int = 0) -> float:
        """A number in [0, 1) that belongs to this row's next position."""
        return uniform(self.seed, self.position, draw)

    def key(self, draw: object = 0) -> int:
        """What the noise of every id hangs on at this sequence's next position."""
        return key(self.seed, self.position, draw)

    def commit(self, id: int, logprob: float) -> None:
        """Append a token to the answer and judge whether it ends there.

        A stop string or match of the caller's counts where its last character comes with a token beyond the least number.
        """
        request, params = self.request, self.request.params
        self.ids.append(id)
        self.logprobs.append(logprob)
        for state in (*self.states.values(), *self.constraints):
            state.accept(id)
        own_end, callers_end = id in request.end_ids, id in params.stop_token_ids
        judged = self.position > request.least
        piece = "" if own_end or callers_end else self.text.push(id, judged)
        if callers_end or own_end:
            self.finish_reason = "eos" if own_end else "stop"
        elif self.position >= params.max_new_tokens:
            self.finish_reason = "length"
        elif params.max_time is not None and request.started is not None and self.position > len(request.prefix_ids):
            self.finish_reason = "time" if time.monotonic() - request.started >= params.max_time else None
        if self.finish_reason is not None:
            piece += self.text.finish(judged)  # which may complete a stop string
        if self.text.stopped:
            self.finish_reason = "stop"
        self.pieces.append(piece)

    def history(self) -> Tensor:
        """Return prompt and answer so far as one [n] tensor; what is new since the last call is all that is copied."""
        n = len(self.ids)
        if n > len(self._history):
            grown = torch.empty(2 * n, dtype=torch.long)
            grown[: self._remembered] = self._history[: self._remembered]
            self._history = grown
        if n > self._remembered:
            self._history[self._remembered : n] = torch.tensor(self.ids[self._remembered :])
            self._remembered = n
        return self._history[:n]

    def forget(self, count: int) -> None:
        """Drop the newest `count` positions from the cache: guesses that were not committed."""
        if count:
            self.seen -= count
            self.runner.truncate(self.cache_slot, self.seen - len(self.request.masked_positions))
            if self.guidance is not None:
                self.guidance.drop(count)

    def drop(self, count: int) -> None:
        """Take the newest `count` ids of a guidance sequence away, from its cache too."""
        del self.ids[len(self.ids) - count :]
        self.seen -= count
        self.runner.truncate(self.cache_slot, self.seen)

    def copy(self) -> TokenSequence:
        """Return a sequence with the same ids that has no place of its own in the cache, to be judged or become: never run, never released."""
        other = TokenSequence(self.request, self.runner, self.cache_slot, [], self.text, choice=self.choice, guidance=self.guidance)
        other.ids, other.text, other.seen = list(self.ids), self.text.fork(), self.seen
        other.logprobs, other.pieces = list(self.logprobs), list(self.pieces)
        other.finish_reason, other.score = self.finish_reason, self.score
        other.states = {name: state.fork() for name, state in self.states.items()}
        other.constraints = [control.fork() for control in self.constraints]
        # a view without room behind it: what is remembered never changes, and to remember more makes a tensor of one's own
        other._history, other._remembered = self._history[: self._remembered], self._remembered
        return other

    def fork(self) -> TokenSequence:
        """Return a sequence with the same ids and past that goes on by itself."""
        other = self.copy()
        other.cache_slot = self.fork_slot()
        if self.guidance is not None:
            other.guidance = self.guidance.fork()
        return other

    def fork_slot(self) -> int:
        """Return a new place in the cache with the sequence's past."""
        [slot] = self.runner.fork([self.cache_slot])
        return self.request.opened(self.runner, slot)

    def become(self, other: TokenSequence) -> None:
        """Go on as `other`, the copy of a sequence of the same request, and take what it has; the cache copies only what the two do not share."""
        if other.cache_slot != self.cache_slot:
            self.runner.copy(other.cache_slot, self.cache_slot, max(shared(self.ids, other.ids) - len(self.request.masked_positions), 0))
            if self.guidance is not None:
                self.guidance.become_guidance(other.guidance)
        self.ids, self.text, self.seen, self.logprobs, self.pieces = other.ids, other.text, other.seen, other.logprobs, other.pieces
        self.finish_reason, self.score, self.states, self.constraints = other.finish_reason, other.score, other.states, other.constraints
        self._history, self._remembered = other._history, other._remembered

    def become_guidance(self, parent: TokenSequence) -> None:
        self.runner.copy(parent.cache_slot, self.cache_slot, shared(self.ids, parent.ids))
        self.ids, self.seen = list(parent.ids), parent.seen


def new_slot(request: Request, runner) -> int:
    """Return a place without a past for a sequence of the request in a runner: on its source, its hidden positions left out."""
    slot = runner.allocate() if request.source_ids is None else runner.allocate(request.source_ids)
    request.opened(runner, slot)
    if request.masked_positions:
        runner.mask(slot, request.masked_positions)
    return slot


def derived(seed: int, choice: int) -> int:
    """The seed of a request's further answer, which repeats that answer alone."""
    return hashed(seed, choice, size=4)


def shared(a: list[int], b: list[int]) -> int:
    """Return how many first ids the two have in common."""
    if a == b:
        return len(a)
    low, high = 0, min(len(a), len(b))  # the first difference lies in [low, high]
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def release(sequences: Sequence[TokenSequence]) -> None:
    """Give back the sequences' places in the cache; a memory keeps the past of a finished one."""
    for sequence in sequences:
        if sequence.request.prefix_cache is not None and sequence.finish_reason is not None and sequence.request.error is None:
            sequence.request.places.remove((sequence.runner, sequence.cache_slot))
            sequence.request.prefix_cache.remember(sequence)
        else:
            sequence.request.give_back(sequence.runner, sequence.cache_slot)
        if sequence.guidance is not None:
            sequence.request.give_back(sequence.guidance.runner, sequence.guidance.cache_slot)
