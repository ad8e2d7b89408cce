"""What a model has read, kept from one call to the next: a prompt that begins alike is not read twice."""

from __future__ import annotations

from torch import nn

from ..data.refusal import UserError
from .architecture import transformers_model
from .row import Row, shared
from .runner import open_runner

KEPT = 8  # talks; the one that was longest unused goes first


class PrefixCache:
    """Keeps the keys and values of finished rows, and gives a new row the longest past that fits its prompt.

    It belongs to one model with the weights that it had: call `clear()` after they have changed. Not for several threads.
    """

    def __init__(self, model: nn.Module, rows: int = KEPT):
        if rows < 1:
            raise UserError(f"rows must be at least 1, got {rows}")
        self.runner = open_runner(model)
        if self.runner.model.config.is_encoder_decoder:
            raise UserError(f"a {self.runner.config.model_type} model reads its prompt in the encoder, whose past nothing continues: use no cache")
        if not (self.runner.capabilities.fork and self.runner.capabilities.truncate):
            raise UserError(f"a {self.runner.config.model_type} model's state cannot be cut back to a shared beginning: use no cache")
        self.rows = rows
        self._kept: list[tuple[list[int], int]] = []  # ids in the cache and their row, the longest unused first

    def runner_for(self, model: nn.Module):
        """Return the runner whose past this is; raises UserError for another model."""
        if transformers_model(model) is not self.runner.model:
            raise UserError("the cache was made for another model: make a PrefixCache of this one")
        return self.runner

    @property
    def slots(self) -> list[int]:
        """The rows that are kept between calls."""
        return [slot for *_, slot in self._kept]

    def recall(self, ids: list[int]) -> tuple[int, int]:
        """Return a row for a prompt and how many of its ids the row has seen; the last id is always left to run."""
        best = max(self._kept, key=lambda kept: shared(kept[0], ids), default=None)
        seen = 0 if best is None else min(shared(best[0], ids), len(ids) - 1)
        if not seen:
            return self.runner.row(), 0
        self._kept.append(self._kept.pop(self._kept.index(best)))
        [slot] = self.runner.fork([best[1]])
        self.runner.truncate(slot, seen)
        return slot, seen

    def remember(self, row: Row) -> None:
        """Take a finished row over, and let go of those that it continues, and of the longest unused."""
        ids = row.ids[: row.seen]
        continued = [kept for kept in self._kept if shared(kept[0], ids) == len(kept[0])]
        self._kept = [kept for kept in self._kept if kept not in continued] + [(ids, row.slot)]
        continued += self._kept[: -self.rows]
        self._kept = self._kept[-self.rows :]
        self.runner.release([slot for _, slot in continued])

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.runner.refresh()
