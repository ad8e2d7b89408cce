"""The events of answers while they grow, and their results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .likelihoods import TokenLogprobs
from .stats import Stats


@dataclass(frozen=True)
class Committed:
    """An answer's token is final; `text` is what it makes safe to show, perhaps nothing yet.

    `top_logprobs`, where asked for, is what the model itself thought of the token and of the likeliest others. `prompt_index` counts the
    prompts, `position` the answer's tokens, `choice` the answers to one prompt, all from 0. The texts join to the answer's.
    """

    prompt_index: int
    position: int
    id: int
    logprob: float
    text: str
    choice: int = 0
    top_logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class PromptRead:
    """What the model thought of a prompt's tokens, where that was asked for: None for the first, which nothing stands before."""

    prompt_index: int
    logprobs: list[TokenLogprobs | None]


@dataclass(frozen=True)
class Provisional:
    """A guess at a position that may still change, with its probability: a draft, or a diffusion step."""

    prompt_index: int
    position: int
    id: int
    probability: float
    choice: int = 0


@dataclass(frozen=True)
class Finished:
    """An answer is over, for the reason "eos", "stop", "length", "time", "cancelled" or "error"; `error` then says what went wrong."""

    prompt_index: int
    reason: str
    choice: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Observed:
    """What was seen at a position of an answer that is traced, or whose steps are told: `what` is one of the records of `trace`."""

    prompt_index: int
    position: int
    what: Any
    choice: int = 0


Event = Committed | PromptRead | Provisional | Finished | Observed


@dataclass(frozen=True)
class Answer:
    """A finished answer before it is a result: its tokens with their log-probabilities and the texts that they completed.

    `seed` is what it was drawn from, `grown_as` which of the request's answers it was while it grew, `forwards` the passes over its canvas, where
    it has one.
    """

    ids: list[int]
    logprobs: list[float]
    pieces: list[str]
    finish_reason: str
    seed: int
    grown_as: int = 0
    score: float | None = None
    top_logprobs: list[TokenLogprobs] = field(default_factory=list)
    forwards: int | None = None

    @property
    def text(self) -> str:
        """The answer's text."""
        return "".join(self.pieces)


@dataclass(frozen=True)
class Result:
    """The answer to one prompt.

    `ids` are all the new ones, an end token included; `text` leaves out the end token, special tokens, and a stop string with what
    follows it. `logprobs` are of the ids under the distribution they were chosen from, after every filter (the model's own
    for greedy without a penalty). `top_logprobs`, with the setting logprobs, has for each id the model's own log-probability, before guidance,
    filters and temperature, and the likeliest tokens there; `prompt_logprobs` the same of the prompt's ids, None for the first; both are
    empty where not asked for. `finish_reason`: "eos" for an end token of the model's, "stop" for a stop string or id of
    the caller's, and where an answer by diffusion ends with what was given, "length" for max_new_tokens, "time" for max_time, "cancelled" where the engine was told to end it, "error" where the prompt's
    own filters, grammar, words or functions failed: `error` says how, and the answer is what had been published of it. `seed` repeats a sampled answer. `choice` counts the answers to one
    prompt, best first where `score` ranks them: the log-probability over length^length_penalty for beams, else the reward or votes.
    `grown_as` is the choice that traces knew it by while it grew, before the answers were ranked. `trace` holds, where asked for, everything
    that was observed. `cached_tokens` counts the prompt's first tokens that were not read, for a prefix cache had them. `forwards` counts the passes
    over a diffusion answer's canvas; it is None for an answer from left to right, and for one that was broken off. `stats` says what it took, and
    what computed it; None where no engine of this process did. Two results that differ in nothing else are equal.
    """

    prompt_index: int
    text: str
    ids: list[int]
    logprobs: list[float]
    finish_reason: str
    prompt_length: int
    seed: int
    choice: int = 0
    score: float | None = None
    error: str | None = None
    grown_as: int = 0
    trace: list[Event] = field(default_factory=list, repr=False)
    top_logprobs: list[TokenLogprobs] = field(default_factory=list, repr=False)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list, repr=False)
    cached_tokens: int = 0
    forwards: int | None = None
    stats: Stats | None = field(default=None, repr=False, compare=False)

    @property
    def tokens(self) -> int:
        """How many were generated."""
        return len(self.ids)
