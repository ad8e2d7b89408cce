"""Rows of text to a batch with some of its tokens hidden, and how well held-out ones are said, the same at each evaluation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import nn

from ...data.text.corruption import held_out_noise, noise_of
from ...data.text.rows import NUMBER
from ..diffusion.order import DRAWN, DrawnByNumber

Corruption = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]  # of a row: other `input_ids`, and `labels`


class Layout(Protocol):
    """How corrupted rows lie in a batch."""

    def batch(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch of some rows."""


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


class LearnsCorrupted(DrawnByNumber):
    """Stands before a trainer of token sums among a class's bases: rows know when they were drawn, and held-out ones are corrupted alike at each evaluation."""

    def measure(self, model: nn.Module, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Held-out loss, perplexity and accuracy over the tokens that are to be said, the same ones at each evaluation."""
        loss, correct, tokens = self.token_sums(model, rows, self.data_collator.held_out)
        tokens = max(tokens, 1)
        return {"loss": loss / tokens, "perplexity": math.exp(min(loss / tokens, 700)), "token_accuracy": correct / tokens}
