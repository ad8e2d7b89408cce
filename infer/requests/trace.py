"""What a trace observes, and the watch that stands between filters and choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .request import Row

CANDIDATES = 10  # likeliest tokens that a trace keeps of each distribution

Candidates = tuple[tuple[int, float], ...]  # ids with their probabilities, likeliest first


@dataclass(frozen=True)
class Pass:
    """A forward pass: its seconds, how many new positions of the request and of all requests it ran, and how many the cache holds."""

    seconds: float
    positions: int
    of_all: int
    cached: int
    prefill: bool


@dataclass(frozen=True)
class Filtered:
    """A choice: the distribution of the model and after each filter that changed it, what was chosen, its probability, and the
    entropy in nats of the distribution it was chosen from."""

    stages: tuple[tuple[str, Candidates], ...]
    id: int
    p: float
    entropy: float


@dataclass(frozen=True)
class Beams:
    """A step of a beam search: for each live beam its parent among those of the step before, its token and its sum of log-probabilities; and
    the scores of the finished ones."""

    live: tuple[tuple[int, int, float], ...]
    finished: tuple[float, ...]


@dataclass(frozen=True)
class Drafted:
    """A draft, and how many of its tokens were accepted."""

    ids: tuple[int, ...]
    accepted: int


@dataclass(frozen=True)
class Layer:
    """The layer that DoLa contrasted with the last, and each candidate layer's divergence from it."""

    chosen: int
    divergences: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Contrast:
    """Contrastive search: for each candidate its id, the model's probability, its likeness to what was said before, and its score."""

    candidates: tuple[tuple[int, float, float, float], ...]


class Watch:
    """Remembers what each filter makes of the rows that are traced; a call is (row's place, filter's name, scores [vocab])."""

    def __init__(self, rows: Sequence[Row], logits: Tensor):
        """logits are the model's, [rows, vocab]."""
        self.rows = list(rows)
        self.stages: dict[int, list[tuple[str, Candidates]]] = {}
        for place, row in enumerate(self.rows):
            if row.request.traced:
                self(place, "model", logits[place])

    @classmethod
    def of(cls, rows: Sequence[Row], logits: Tensor) -> Watch | None:
        """Return a watch where one of the rows is traced."""
        return cls(rows, logits) if any(row.request.traced for row in rows) else None

    def __call__(self, place: int, name: str, scores: Tensor) -> None:
        if self.rows[place].request.traced:
            self.stages.setdefault(place, []).append((name, likeliest(scores)))

    def chosen(self, scores: Tensor, ids: Sequence[int]) -> None:
        """Tell of the choices, before they are committed; scores are after every filter."""
        for place, stages in self.stages.items():
            row, probs = self.rows[place], scores[place].double().softmax(dim=-1)
            row.request.note(Filtered(tuple(stages), ids[place], float(probs[ids[place]]), entropy(probs)), row.position, row.choice)


def likeliest(scores: Tensor) -> Candidates:
    """Return the likeliest tokens of unnormalised log-probabilities, [vocab]; those that were dropped do not count."""
    probs, ids = scores.double().softmax(dim=-1).topk(min(CANDIDATES, len(scores)))
    return tuple((id, p) for id, p in zip(ids.tolist(), probs.tolist()) if p > 0)


def entropy(probs: Tensor) -> float:
    """The entropy of a distribution, [vocab], in nats."""
    return float(-torch.special.xlogy(probs, probs).sum())
