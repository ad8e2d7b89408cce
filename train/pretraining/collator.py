"""Rows of text to a batch with some of its tokens hidden."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.text.corruption import held_out_noise, noise_of
from ...data.text.rows import NUMBER
from ..diffusion.order import DRAWN
from .layout import Layout

Corruption = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]  # of a row: other `input_ids`, and `labels`


@dataclass(frozen=True)
class CorruptingCollator:
    """Rows to a batch, corrupted by noise that hangs on the seed, the epoch and the row's number, and on nothing else.

    Rows are corrupted whole and laid out after: the layout, the batch, workers and processes change nothing about what is hidden.
    """

    corruption: Corruption
    layout: Layout
    seed: int = 0

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch of some rows to train on; rows that nobody drew, as in a trial, are of the first epoch."""
        return self.layout.batch([self.corruption(row, noise_of(self.seed, row.get(DRAWN, (0,))[0], row[NUMBER])) for row in rows])

    def held_out(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch of some held-out rows: the same is hidden at each evaluation."""
        return self.layout.batch([self.corrupted_held_out(row) for row in rows])

    def corrupted_held_out(self, row: dict[str, Any]) -> dict[str, Any]:
        """A held-out row, corrupted as it always is."""
        return self.corruption(row, held_out_noise(row[NUMBER]))
