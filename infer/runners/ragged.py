"""The forward pass of many rows at once, over the transformers model as it is.

The new tokens of all rows, prompts and single steps alike, go through the model as one [1, total] sequence, each with its
own position; the attention function of `ragged` writes and reads each row's slot of the cache. Nothing is padded.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor, nn

from ...data.errors import UserError
from .architecture import (
    Capabilities,
    Passed,
    check_pass,
    context_limit,
    evaluating,
    refuse_hidden_under_window,
    refuse_unsupported,
    scaled,
    transformers_model,
)
from .cache import KVCache, Pool
from .model_lock import attending, configs_of
from .ragged_attention import RAGGED, Pass, Run


class RaggedRunner:
    """Runs rows of their own length through a model, together, with a cache of their keys and values.

    The model stays its owner's: attention and training mode are lent for each pass and put back after it. Passes of several threads
    through one model wait for each other; whoever calls the model itself in another thread does so within `lending.held`.
    `passes` and `positions` count what was computed.
    """

    capabilities = Capabilities(hidden_states=True, mask_holes=True)

    def __init__(self, model: nn.Module):
        self.model = transformers_model(model)
        refuse_unsupported(self.model)
        self.config = self.model.config.get_text_config()
        self.limit = context_limit(self.model)
        self.cache = KVCache()
        self.passes = self.positions = 0
        self._configs = configs_of(self.model)
        self._keeps_logits = "logits_to_keep" in inspect.signature(type(self.model).forward).parameters

    def row(self) -> int:
        """Return a new row without a past; it takes the memory of a row until released."""
        return self.cache.add()

    @property
    def live(self) -> int:
        """How many rows there are."""
        return len(self.cache)

    def length(self, row: int) -> int:
        """How many positions of the row are in the cache."""
        return self.cache.lengths[row]

    def fork(self, rows: Sequence[int]) -> list[int]:
        """Return a new row for each of these, with the same past."""
        return self.cache.fork(rows)

    def copy(self, source: int, target: int, first: int) -> None:
        """Give `target` the past of `source`, of which it has the first `first` positions already."""
        self.cache.copy(source, target, first)

    def hide(self, row: int, positions: Sequence[int]) -> None:
        """Leave these positions out of a row that has no past yet: its tokens keep the positions that they have without."""
        refuse_hidden_under_window(self.config)
        self.cache.hidden[row] = tuple(sorted(positions))

    def truncate(self, row: int, length: int) -> None:
        """Forget all of a row but its first `length` positions: rejected guesses leave the cache."""
        self.cache.truncate(row, length)

    def release(self, rows: Sequence[int]) -> None:
        """Give back the rows' memory."""
        self.cache.release(rows)

    def refresh(self, keep: Collection[int] = ()) -> None:
        """Forget every row that is not kept; all of them once the weights have changed, for the past is no longer the model's."""
        self.cache.release([row for row in self.cache.lengths if row not in keep])

    def forward(self, rows: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int]) -> Tensor:
        """Append `ids[i]` to row i, all rows in one pass; return logits, [sum(keep), vocab].

        `keep[i]` counts how many of the row's newest positions want logits; the result has them row after row, in
        the order given. Raises UserError, before anything is computed, for what cannot be run (see `check_pass`).
        """
        return self.observe(rows, ids, keep, ()).logits

    @torch.no_grad()
    def observe(self, rows: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int], layers: Sequence[int]) -> Passed:
        """As `forward`, with the hidden states of these layers at every new position, row after row."""
        check_pass(rows, ids, keep, self.config.vocab_size)
        plan, tokens, positions, starts = self._plan(rows, ids)
        ends = [start + len(new) for start, new in zip(starts, ids)]
        wanted = torch.tensor([i for end, k in zip(ends, keep) for i in range(end - k, end)], dtype=torch.long)
        logits, states = self._run(plan, tokens, positions, wanted, layers)
        for row, new in zip(rows, ids):
            self.cache.lengths[row] += len(new)
        self.passes += 1
        self.positions += len(tokens)
        if layers:
            order = torch.tensor([i for start, end in zip(starts, ends) for i in range(start, end)], device=logits.device)
            states = {layer: hidden[order] for layer, hidden in states.items()}
        return Passed(logits, states)

    def _run(self, plan: Pass, tokens: list[int], positions: list[int], wanted: Tensor, layers: Sequence[int]) -> Passed:
        """Take the plan's tokens through the model: logits at the places `wanted`, hidden states in the order of the tokens."""
        device = self.model.get_input_embeddings().weight.device
        kept = {"logits_to_keep": wanted.to(device)} if self._keeps_logits else {}
        with self._lent():
            out = self.model(
                input_ids=torch.tensor([tokens], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                ragged=plan,
                output_hidden_states=bool(layers),
                **kept,
            )
        self._check(plan)
        logits = out.logits[0] if self._keeps_logits else out.logits[0, wanted.to(device)]
        return Passed(logits, {layer: out.hidden_states[layer][0] for layer in layers})

    @torch.no_grad()
    def head(self, states: Tensor) -> Tensor:
        """Return what the language model head makes of hidden states, [n, hidden] to [n, vocab]."""
        head = self.model.get_output_embeddings()
        return scaled(self.config, head(states.to(head.weight.device))).to(states.device)

    def _plan(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> tuple[Pass, list[int], list[int], list[int]]:
        """Lay the new tokens in one sequence: single steps first, by slot, then the longer ones.

        Returns the plan, the tokens, their positions, and where each row's tokens start.
        """
        for row, new in zip(rows, ids):
            self.cache.reserve(row, self.cache.lengths[row] + len(new))
        places = [self.cache.place(row) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: (len(ids[i]) > 1, places[i][0].capacity, places[i][1]))
        tokens, positions, starts, plan = [], [], [0] * len(rows), Pass([], [])
        singles: list[tuple[Pool, int, int, int]] = []
        for i in order:
            past, starts[i] = self.cache.lengths[rows[i]], len(tokens)
            tokens += ids[i]
            positions += self.cache.positions(rows[i], len(ids[i]))
            if len(ids[i]) == 1:
                singles.append((*places[i], starts[i], past))
            else:
                plan.longer.append((*places[i], slice(starts[i], len(tokens)), past))
        # neighbours have the same distance from their slot to their place in the sequence
        for _, group in groupby(singles, key=lambda s: (s[0].capacity, s[1] - s[2])):
            run = list(group)
            (pool, slot, at, _), n = run[0], len(run)
            plan.runs.append(Run(pool, slice(slot, slot + n), slice(at, at + n), [past for *_, past in run]))
        return plan, tokens, positions, starts

    def _check(self, plan: Pass) -> None:
        """Refuse an architecture with layers that remember without attention: they would mix the rows."""
        if len(plan.attended) != self.config.num_hidden_layers:
            raise UserError(
                f"{self.config.model_type} has {self.config.num_hidden_layers} layers, of which {len(plan.attended)} attend "
                "through transformers' AttentionInterface: Seodang cannot keep its rows apart"
            )

    @contextmanager
    def _lent(self) -> Iterator[None]:
        """Have the model attend through us and compute without dropout, and put everything back."""
        with attending(self.model, self._configs, RAGGED), evaluating(self.model):
            yield
