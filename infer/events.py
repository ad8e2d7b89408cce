"""What a caller hears while an answer grows, and what is left in the end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Committed:
    """An answer's token is final; `text` is what it makes safe to show, perhaps nothing yet.

    `row` counts the prompts, `position` the answer's tokens, both from 0. The texts join to the answer's.
    """

    row: int
    position: int
    id: int
    logprob: float
    text: str


@dataclass(frozen=True)
class Provisional:
    """A guess at a position that may still change, with its probability: a draft, or a diffusion step."""

    row: int
    position: int
    id: int
    p: float


@dataclass(frozen=True)
class Finished:
    """An answer is over, for the reason "eos", "stop" or "length"."""

    row: int
    reason: str


Event = Committed | Provisional | Finished


@dataclass(frozen=True)
class Result:
    """The answer to one prompt.

    `ids` are all the new ones, an end token included; `text` leaves out the end token, special tokens, and a stop string with what
    follows it. `logprobs` are of the ids under the distribution they were chosen from, after every filter (the model's own
    for greedy without a penalty). `finish_reason`: "eos" for an end token of the model's, "stop" for a stop string or id of
    the caller's, "length" for max_new_tokens. `seed` repeats a sampled answer.
    """

    row: int
    text: str
    ids: list[int]
    logprobs: list[float]
    finish_reason: str
    prompt_length: int
    seed: int
