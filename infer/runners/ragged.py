"""The forward pass of many slots at once, over the transformers model as it is.

The new tokens of all slots, prompts and single steps alike, go through the model as one [1, total] sequence, each with its
own position; the attention function of `ragged` writes and reads each slot's lane of the cache. Nothing is padded.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import Self

import torch
from torch import Tensor, nn

from ...data.errors import UserError
from ..kernels.low_rank import Adapter, SlotAdapters
from .architecture import (
    Capabilities,
    ModelOutput,
    check_cut,
    check_pass,
    decoding_limit,
    evaluating,
    refuse_both_ways_under_window,
    refuse_masking_under_window,
    refuse_source,
    refuse_unsupported,
    scaled,
    transformers_model,
)
from .cache import KVCache
from .lane_block import Region
from .model_lock import configs_of, use_attention
from .ragged_attention import RAGGED, ForwardBatch, Stretch, lay_out, running


class RaggedRunner:
    """A `Runner` of slots of their own length, all in one pass, with a cache of their keys and values.

    The model stays its owner's: attention and training mode are lent for each pass and put back after it. Passes of several threads
    through one model wait for each other; whoever calls the model itself in another thread does so within `model_lock.locked`.
    `passes` and `positions` count what was computed.
    """

    capabilities = Capabilities(hidden_states=True, mask_holes=True, adapters=True, both_ways=True, rewrites=True)

    def __init__(self, model: nn.Module):
        self.model = transformers_model(model)
        refuse_unsupported(self.model)
        self.config = self.model.config.get_text_config()
        self.limit = decoding_limit(self.model)
        self.cache = KVCache()
        self.passes = self.positions = 0
        self._adapters = SlotAdapters()
        self._configs = configs_of(self.model)
        self._keeps_logits = "logits_to_keep" in inspect.signature(type(self.model).forward).parameters

    @property
    def vocab_size(self) -> int:
        """How many ids a slot's tokens can have."""
        return self.config.vocab_size

    def allocate(self, source_ids: Sequence[int] = ()) -> int:
        """Return a new slot without a past; it takes the memory of a slot until released."""
        refuse_source(self.config, source_ids)
        return self.cache.add()

    @property
    def live(self) -> int:
        """How many slots there are."""
        return len(self.cache)

    @property
    def memory(self) -> int:
        """How many bytes the slots take now."""
        return self.cache.memory

    def bytes_for(self, positions: int, source: int = 0) -> int:
        """Return at most how many bytes a slot of so many positions comes to take; the first call may run a pass to learn what one takes."""
        return self.cache.bytes_for(positions, self._regions)

    @cached_property
    def _regions(self) -> list[Region]:
        """What the cache keeps of a slot: as a pass of one token finds it."""
        trial = self._blank()
        slot = trial.allocate()
        trial.forward([slot], [[0]], [1])
        return trial.cache.locate(slot)[0].regions

    def _blank(self) -> Self:
        """Return a runner of the same model without slots."""
        blank = copy.copy(self)
        blank.cache = KVCache(self.cache.new_pool)
        blank._adapters = SlotAdapters()
        return blank

    def length(self, slot: int) -> int:
        """How many positions of the slot are in the cache."""
        return self.cache.lengths[slot]

    def fork(self, slots: Sequence[int]) -> list[int]:
        """Return a new slot for each of these, with the same past."""
        forks = self.cache.fork(slots)
        for slot, fork in zip(slots, forks):
            self.adapt(fork, self._adapters.of(slot))
        return forks

    def copy(self, source: int, target: int, first: int = 0, length: int | None = None) -> None:
        """Give `target` the past of `source`, or its first `length` positions, of which it has the first `first` already."""
        self.cache.copy(source, target, first, length)

    def mask(self, slot: int, positions: Sequence[int]) -> None:
        """Leave these positions out of a slot that has no past yet: its tokens keep the positions that they have without."""
        refuse_masking_under_window(self.config)
        self.cache.masked_positions[slot] = tuple(sorted(positions))

    def adapt(self, slot: int, adapter: Adapter | None) -> None:
        """Run the slot with an adapter beside the weights, whatever the others of its passes run with."""
        self._adapters.put(slot, adapter)

    def attend_both_ways(self, slot: int, on: bool, after: int = 0) -> None:
        """Let the slot's new ids see one another from now on, but for the first `after`, or each what stands before it alone."""
        if on:
            refuse_both_ways_under_window(self.config)
        self.cache.attend_both_ways(slot, on, after)

    def rewrite(self, slot: int, at: int) -> None:
        """Have the ids of the slot's next pass take the place of as many from `at` on; raises UserError where they would not see what stands behind them."""
        if slot not in self.cache.both_ways:
            raise UserError(f"slot {slot} looks back, so what stands behind position {at} hangs on it: cut the slot there")
        check_cut(slot, at, self.cache.lengths[slot])
        self.cache.rewrites[slot] = at

    def truncate(self, slot: int, length: int) -> None:
        """Keep a slot's first `length` positions: rejected guesses leave the cache."""
        self.cache.truncate(slot, length)

    def shelve(self, slots: Sequence[int]) -> None:
        """Lay slots that others are copied from apart from those that run, which are then read as one block."""
        self.cache.shelve(slots)

    def release(self, slots: Sequence[int]) -> None:
        """Give back the slots' memory."""
        self.cache.release(slots)
        for slot in slots:
            self.adapt(slot, None)

    def refresh(self, keep: Collection[int] = ()) -> None:
        """Release every slot that is not kept; all of them once the weights have changed, for the past is no longer the model's."""
        self.release([slot for slot in self.cache.lengths if slot not in keep])

    def forward(self, slots: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int]) -> Tensor:
        """Append `ids[i]` to slot i, all slots in one pass; return logits, [sum(keep), vocab].

        `keep[i]` counts how many of the slot's newest positions want logits; the result has them slot after slot, in
        the order given. Raises UserError, before anything is computed, for what cannot be run (see `check_pass`).
        """
        return self.observe(slots, ids, keep, ()).logits

    def observe(self, slots: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int], layers: Sequence[int]) -> ModelOutput:
        """As `forward`, with the hidden states of these layers at every new position, slot after slot."""
        check_pass(slots, ids, keep, self.vocab_size)
        plan, tokens, positions, starts = lay_out(self.cache, slots, ids, self._stretches)
        ends = [start + len(new) for start, new in zip(starts, ids)]
        wanted = [i for end, k in zip(ends, keep) for i in range(end - k, end)]
        with self._adapters.over(zip(slots, map(slice, starts, ends)), self._device):
            logits, states = self._run(plan, tokens, positions, wanted, layers)
        for slot, new in zip(slots, ids):
            self.cache.note(slot, len(new))
        self.passes += 1
        self.positions += len(tokens)
        if layers:
            order = torch.tensor([i for start, end in zip(starts, ends) for i in range(start, end)], device=logits.device)
            states = {layer: hidden[order] for layer, hidden in states.items()}
        return ModelOutput(logits, states)

    def _device(self) -> torch.device:
        """Where the model's first layer is now."""
        return self.model.get_input_embeddings().weight.device

    @torch.no_grad()
    def _run(self, plan: ForwardBatch, tokens: list[int], positions: list[int], wanted: list[int], layers: Sequence[int]) -> ModelOutput:
        """Take the plan's tokens through the model: logits at the tokens `wanted`, hidden states in the order of the tokens."""
        device = self._device()
        at = torch.tensor(wanted, dtype=torch.long, device=device)
        kept = {"logits_to_keep": at} if self._keeps_logits else {}
        with self._with_attention(), running(plan), self._adapters.hooked():
            out = self.model(
                input_ids=torch.tensor([tokens], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                output_hidden_states=bool(layers),
                **kept,
            )
        self._check(plan)
        logits = out.logits[0] if self._keeps_logits else out.logits[0, at]
        return ModelOutput(logits, {layer: out.hidden_states[layer][0] for layer in layers})

    @torch.no_grad()
    def head(self, states: Tensor) -> Tensor:
        """Return what the language model head makes of hidden states, [n, hidden] to [n, vocab]."""
        head = self.model.get_output_embeddings()
        return scaled(self.config, head(states.to(next(chain(head.parameters(), head.buffers())).device))).to(states.device)

    def _stretches(self, slot: int, count: int) -> list[Stretch]:
        """Cut a slot's new ids where some begin that see one another, or such end."""
        back = min(self.cache.look_back.get(slot, 0), count)
        return [each for each in (Stretch(back, True), Stretch(count - back, slot not in self.cache.both_ways)) if each.count]

    def _check(self, plan: ForwardBatch) -> None:
        """Refuse an architecture with layers that remember without attention: they would mix the slots."""
        if len(plan.attended) != self.config.num_hidden_layers:
            raise UserError(
                f"{self.config.model_type} has {self.config.num_hidden_layers} layers, of which {len(plan.attended)} attend "
                "through transformers' AttentionInterface: Seodang cannot keep its slots apart"
            )

    @contextmanager
    def _with_attention(self) -> Iterator[None]:
        """Have the model attend through us and compute without dropout, and put everything back."""
        with use_attention(self.model, self._configs, RAGGED), evaluating(self.model):
            yield
