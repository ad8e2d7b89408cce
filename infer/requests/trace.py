"""What a trace observes, and the recorder that stands between filters and choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .sequence import TokenSequence

CANDIDATES = 10  # likeliest tokens that a trace keeps of each distribution

Candidates = tuple[tuple[int, float], ...]  # ids with their probabilities, likeliest first


@dataclass(frozen=True)
class PassTrace:
    """A forward pass: its seconds, how many new positions of the request and of all requests it ran, how many the cache holds, and whether it read
    (on) in the prompt."""

    seconds: float
    positions: int
    of_all: int
    cached: int
    prefill: bool


@dataclass(frozen=True)
class ChoiceTrace:
    """A choice: the distribution of the model and after each filter that changed it, what was chosen, its probability, and the
    entropy in nats of the distribution it was chosen from."""

    stages: tuple[tuple[str, Candidates], ...]
    id: int
    probability: float
    entropy: float


@dataclass(frozen=True)
class BeamTrace:
    """A step of a beam search: for each live beam its parent among those of the step before, its token and its sum of log-probabilities; and
    the scores of the finished ones."""

    live: tuple[tuple[int, int, float], ...]
    finished: tuple[float, ...]


@dataclass(frozen=True)
class DraftTrace:
    """A draft, and how many of its tokens were accepted."""

    ids: tuple[int, ...]
    accepted: int


@dataclass(frozen=True)
class LayerTrace:
    """The layer that DoLa contrasted with the last, and each candidate layer's divergence from it."""

    chosen: int
    divergences: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class ContrastTrace:
    """Contrastive search: for each candidate its id, the model's probability, its likeness to what was said before, and its score."""

    candidates: tuple[tuple[int, float, float, float], ...]


@dataclass(frozen=True)
class DiffusionStep:
    """A step of diffusion, counted from 1: what became certain in it (position, id, how sure by the order), the whole canvas after it, None where
    it is open, and how many passes of the canvas there were so far.

    `logprobs` are of what became certain, under the distributions that it was chosen from; `remasked` are the positions that were certain before it
    and masks again behind it; `guesses` what open positions are thought to be, where that is another token than before (position, id, log-probability).
    `cached`: it was read over what an earlier pass had kept of prompt and canvas (`cache_refresh`).
    """

    step: int
    committed: tuple[tuple[int, int, float], ...]
    canvas: tuple[int | None, ...]
    forwards: int
    logprobs: tuple[float, ...] = ()
    remasked: tuple[int, ...] = ()
    guesses: tuple[tuple[int, int, float], ...] = ()
    cached: bool = False


class TraceRecorder:
    """Records what each filter makes of the sequences that are traced; a call is (sequence's index, filter's name, scores [vocab])."""

    def __init__(self, sequences: Sequence[TokenSequence], logits: Tensor):
        """logits are the model's, [sequences, vocab]."""
        self.sequences = list(sequences)
        self.stages: dict[int, list[tuple[str, Candidates]]] = {}
        for index, sequence in enumerate(self.sequences):
            if sequence.request.traced:
                self(index, "model", logits[index])

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence], logits: Tensor) -> TraceRecorder | None:
        """Return a recorder where one of the sequences is traced, else None; logits are the model's, [sequences, vocab]."""
        return cls(sequences, logits) if any(sequence.request.traced for sequence in sequences) else None

    def __call__(self, index: int, name: str, scores: Tensor) -> None:
        """Record a sequence's scores, [vocab], behind the filter of this name."""
        if self.sequences[index].request.traced:
            self.stages.setdefault(index, []).append((name, likeliest(scores)))

    def chosen(self, scores: Tensor, ids: Sequence[int]) -> None:
        """Trace the chosen ids, before they are committed; scores are after every filter, [sequences, vocab]."""
        for sequence, record in zip(self.sequences, self.choices(scores, ids)):
            if record is not None:
                sequence.generation.trace(record, sequence.position, sequence.choice)

    def choices(self, scores: Tensor, ids: Sequence[int]) -> list[ChoiceTrace | None]:
        """What is to be told of the chosen ids, None of a sequence that is not traced; scores are after every filter, [sequences, vocab]."""
        found: list[ChoiceTrace | None] = [None] * len(self.sequences)
        for index, stages in self.stages.items():
            probs = scores[index].double().softmax(dim=-1)
            found[index] = ChoiceTrace(tuple(stages), ids[index], float(probs[ids[index]]), entropy(probs))
        return found


def likeliest(scores: Tensor) -> Candidates:
    """Return the likeliest tokens of unnormalised log-probabilities, [vocab]; those that were dropped do not count."""
    probs, ids = scores.double().softmax(dim=-1).topk(min(CANDIDATES, len(scores)))
    return tuple((id, p) for id, p in zip(ids.tolist(), probs.tolist()) if p > 0)


def entropy(probs: Tensor) -> float:
    """The entropy of a distribution, [vocab], in nats."""
    return float(-torch.special.xlogy(probs, probs).sum())
