"""What a decoding strategy is: a generator of the forward passes that its sequences need."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from .request import TokenSequence


@dataclass(eq=False)
class Forward:
    """The pass that a strategy needs: for each sequence its new ids, and of how many of the newest it wants the logits.

    The strategy is sent those logits, [sum(keep), vocab], sequence after sequence. By then the sequences have seen the ids. `layers` asks for
    hidden states as well, counted as transformers does (0 the embeddings, the last after the final norm): `states` then holds
    for each layer those of all new positions, [sum(len(ids)), hidden], sequence after sequence. All sequences of a pass have one runner.
    """

    sequences: list[TokenSequence]
    ids: list[list[int]]
    keep: list[int]
    layers: tuple[int, ...] = ()
    states: dict[int, Tensor] = field(default_factory=dict)


def next_tokens(sequences: list[TokenSequence]) -> Forward:
    """The pass of one step: what each sequence has not seen yet, and the logits that follow it."""
    return Forward(sequences, [sequence.unseen for sequence in sequences], [1] * len(sequences))


# Knows nothing of models, caches or text. It releases the sequences that it has done with, and ends when it has none left.
Strategy = Generator[Forward, Tensor, None]


class Host(Protocol):
    """What a strategy asks of the engine that starts it."""

    runner: Any  # of the requests' model

    def runner_of(self, model: nn.Module) -> Any:
        """Return the runner of a further model, opened at the first call."""

    def first_layers(self, layers: int) -> Any:
        """Return a runner of the first layers of the model, opened at the first call."""

    def join(self, key: Hashable, sequence: TokenSequence, begin: Callable[[list[TokenSequence]], Strategy]) -> None:
        """Let a sequence into the strategy that all sequences of a key share; `begin` starts it on the list of those that wait, which it empties."""
