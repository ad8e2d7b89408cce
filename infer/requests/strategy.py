"""What a decoding strategy is: a generator of the forward passes that its rows need."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from .request import Row


@dataclass(eq=False)
class Forward:
    """The pass that a strategy needs: for each row its new ids, and of how many of the newest it wants the logits.

    The strategy is sent those logits, [sum(keep), vocab], row after row. By then the rows have seen the ids. `layers` asks for
    hidden states as well, counted as transformers does (0 the embeddings, the last after the final norm): `states` then holds
    for each layer those of all new positions, [sum(len(ids)), hidden], row after row. All rows of a pass have one runner.
    """

    rows: list[Row]
    ids: list[list[int]]
    keep: list[int]
    layers: tuple[int, ...] = ()
    states: dict[int, Tensor] = field(default_factory=dict)


def next_tokens(rows: list[Row]) -> Forward:
    """The pass of one step: what each row has not seen yet, and the logits that follow it."""
    return Forward(rows, [row.unseen for row in rows], [1] * len(rows))


# Knows nothing of models, caches or text. It releases the rows that it has done with, and ends when it has none left.
Strategy = Generator[Forward, Tensor, None]


class Host(Protocol):
    """What a strategy asks of the engine that starts it."""

    runner: Any  # of the requests' model

    def runner_of(self, model: nn.Module) -> Any:
        """Return the runner of a further model, opened at the first call."""

    def first_layers(self, layers: int) -> Any:
        """Return a runner of the first layers of the model, opened at the first call."""

    def join(self, key: Hashable, row: Row, begin: Callable[[list[Row]], Strategy]) -> None:
        """Let a row into the strategy that all rows of a key share; `begin` starts it on the list of those that wait, which it empties."""
