"""What a decoding strategy is: a generator of the forward passes that its rows need."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from .row import Row


@dataclass
class Forward:
    """The pass that a strategy needs: for each row its new ids, and of how many of the newest it wants the logits.

    The strategy is sent those logits, [sum(keep), vocab], row after row. By then the rows have seen the ids.
    """

    rows: list[Row]
    ids: list[list[int]]
    keep: list[int]


# Knows nothing of models, caches or text. It releases the rows that it has done with, and ends when it has none left.
Strategy = Generator[Forward, Tensor, None]
