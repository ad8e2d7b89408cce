"""What a decoding strategy is: a generator of the forward passes that its sequences need."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from ..runners.contract import Runner
from .sequence import TokenSequence


@dataclass(eq=False)
class Forward:
    """The pass that a strategy needs: for each sequence its new ids, and of how many of the newest it wants the logits.

    The strategy is sent those logits, [sum(keep), vocab], sequence after sequence. By then the sequences have seen the ids. `layers` asks for
    hidden states as well, counted as transformers does (0 the embeddings, the last after the final norm): `states` then holds
    for each layer those of all new positions, [sum(len(ids)), hidden], sequence after sequence. All sequences of a pass have one runner.
    One that is `partial`, of a single sequence, may be cut to its first ids and then gives logits of those alone that are left of the newest.
    One that is `open` takes sequences in that come before it is run, each with what it has not seen and one logit.
    """

    sequences: list[TokenSequence]
    ids: list[list[int]]
    keep: list[int]
    layers: tuple[int, ...] = ()
    states: dict[int, Tensor] = field(default_factory=dict)
    partial: bool = False
    open: bool = False

    def take_in(self, sequences: list[TokenSequence]) -> None:
        """Add sequences to an open pass."""
        for sequence in sequences:
            self.sequences.append(sequence)
            self.ids.append(sequence.unseen)
            self.keep.append(1)

    def cut(self, most: int) -> int:
        """Keep at most so many of a partial pass' ids, and return how many it has."""
        new, keep = self.ids[0], self.keep[0]
        if len(new) > most:
            self.ids, self.keep = [new[:most]], [max(keep - (len(new) - most), 0)]
        return len(self.ids[0])


def next_tokens(sequences: list[TokenSequence], open: bool = False) -> Forward:
    """The pass of one step: what each sequence has not seen yet, and the logits that follow it."""
    return Forward(list(sequences), [sequence.unseen for sequence in sequences], [1] * len(sequences), open=open)


# A strategy runs no model: the passes that it yields are merged with those of others, and their logits come with the guidance of its
# sequences. It knows nothing of text or HTTP. It forks, rolls back and releases its sequences, and thereby their slots in the cache; of a
# runner it may ask what no pass gives: the length and size of the model, the head of inner layers (DoLa), a copy of one slot to another
# (contrastive search). It releases the sequences that it is done with, and ends when it has none left.
Strategy = Generator[Forward, Tensor, None]
Arrivals = Callable[[], list[TokenSequence]]  # the sequences that have joined since it was last called


class Host(Protocol):
    """What encoding a request and starting its strategy ask of the engine."""

    runner: Runner  # of the requests' model
    prefix_cache: Any  # a PrefixCache, or None

    def runner_of(self, model: nn.Module) -> Runner:
        """Return the runner of a further model, opened at the first call; raises UserError for a model that has none."""

    def first_layers(self, layers: int) -> Runner:
        """Return a runner of the first layers of the model, opened at the first call; raises UserError for an architecture without."""

    def join(self, key: Hashable, sequence: TokenSequence, begin: Callable[[Arrivals], Strategy]) -> None:
        """Hand a sequence to the strategy that all sequences of a key share; where none runs, `begin` makes one, which asks for its arrivals."""
