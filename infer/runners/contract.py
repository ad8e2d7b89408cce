"""What the engine and every strategy may ask of a runner: the forward pass of one model over slots of its KV cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..kernels.low_rank import Adapter
from .architecture import Capabilities, ModelOutput


class Runner(Protocol):
    """Runs one model. A slot is a place in its KV cache that holds the past of one sequence, of a length of its own.

    `capabilities` say which calls it honours; the others raise UserError. `config` is that of the decoder, `limit` how many positions it can
    have (None: no bound). `passes` and `positions` count what was computed. The runner of an encoder-decoder also says how many positions
    and ids its encoder has: `source_limit`, `source_vocab`.
    """

    model: PreTrainedModel
    config: PreTrainedConfig
    limit: int | None
    capabilities: Capabilities
    passes: int
    positions: int

    @property
    def vocab_size(self) -> int:
        """How many ids a slot's tokens can have."""

    @property
    def live(self) -> int:
        """How many slots are allocated."""

    @property
    def memory(self) -> int:
        """How many bytes the slots take now."""

    def bytes_for(self, positions: int, source: int = 0) -> int:
        """Return at most how many bytes a slot takes that comes to hold so many positions, over a source of so many ids.

        The bounds of several slots add up to one of all of them, at any moment, also while some grow, move or are forked. The first call
        may run a pass of the model to learn what a position takes.
        """

    def allocate(self, source_ids: Sequence[int] = ()) -> int:
        """Return a new slot without a past, which takes memory until released.

        An encoder-decoder's answers to `source_ids`, which its encoder reads at the slot's first pass; a decoder has no source. Raises
        UserError for a source that is empty, too long or of unknown ids, and for one that a decoder is given.
        """

    def length(self, slot: int) -> int:
        """Return how many positions of the slot are in the cache; masked ones are not."""

    def fork(self, slots: Sequence[int]) -> list[int]:
        """Return a new slot for each of these, with the same past."""

    def copy(self, source: int, target: int, first: int = 0, length: int | None = None) -> None:
        """Give slot `target` the past of slot `source`, or its first `length` positions; of their first `first` they have the same already.

        Raises UserError for a length that a slot cannot be cut to (`truncate`).
        """

    def mask(self, slot: int, positions: Sequence[int]) -> None:
        """Leave these positions, counted from 0, out of a slot without a past: its tokens keep the positions that they have without.

        Raises UserError where the runner cannot (`mask_holes`), or the model attends in a sliding window.
        """

    def adapt(self, slot: int, adapter: Adapter | None) -> None:
        """Run a slot with an adapter beside the weights, or without; its past must have been read so, and forks have it too.

        The slots of a pass may have different ones. Raises UserError where the runner cannot (`adapters`).
        """

    def attend_both_ways(self, slot: int, on: bool, after: int = 0) -> None:
        """From now on let the new ids of each pass of the slot see one another beside all of its past, or else what stands before them alone.

        The first `after` ids of its next pass still look back. A new slot has it off; forks and copies are as their source. Raises UserError where the runner cannot (`both_ways`), or the model
        attends in a sliding window.
        """

    def rewrite(self, slot: int, at: int) -> None:
        """Have the new ids of the slot's next pass take the place of as many from position `at` on, counted in the cache; all behind them stays as it is.

        They see what stands before them, one another and what stands behind them, so the slot must attend both ways; its length stays. Raises
        UserError where the runner cannot (`rewrites`), for a place that the slot has not, and, in the pass, for more ids than stand there.
        """

    def truncate(self, slot: int, length: int) -> None:
        """Keep the first `length` positions of the slot; raises UserError for more than it has, or where it cannot (`truncate`)."""

    def shelve(self, slots: Sequence[int]) -> None:
        """Lay slots that others are copied from apart from those that run, where that makes passes faster; they can do all that they could."""

    def release(self, slots: Sequence[int]) -> None:
        """Give back the slots and their memory."""

    def refresh(self, keep: Collection[int] = ()) -> None:
        """Release every slot that is not kept; all of them once the weights have changed, for their past is no longer the model's."""

    def forward(self, slots: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int]) -> Tensor:
        """Append `ids[i]` to slot i, all slots in one call, and return the logits of the newest `keep[i]` positions of each.

        The logits are [sum(keep), vocab], slot after slot in the order given. Raises UserError, before anything is computed, for unknown
        ids, a slot named twice or without new ids, and more logits than new positions.
        """

    def observe(self, slots: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int], layers: Sequence[int]) -> ModelOutput:
        """As `forward`, with the hidden states of these layers at every new position, [sum(len(ids)), hidden] each, slot after slot.

        Layers are counted as transformers does: 0 the embeddings, the last after the final norm, -1 the last. Raises UserError where the
        runner has none (`hidden_states`).
        """

    def head(self, states: Tensor) -> Tensor:
        """Return the logits that the language model head makes of hidden states, [n, hidden] to [n, vocab]; raises as `observe` does."""
