"""The forward pass of many rows at once, over the transformers model as it is.

The only place that touches transformers' internals. The new tokens of all rows, prompts and single steps alike, go
through the model as one [1, total] sequence, each with its own position; an attention function of ours writes and
reads each row's slot of the cache. Nothing is padded.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ..data.refusal import UserError
from .attention import attend, attend_in_full, check_attention_kwargs
from .cache import KVCache, Pool

RAGGED = "seodang_ragged"
LAYERS_WITH_ATTENTION_ALONE = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Capabilities:
    """What a runner can do; a strategy that needs more refuses before its first pass."""

    all_positions: bool = True  # logits at every new position, not the last alone
    truncate: bool = True
    fork: bool = True
    adapters: bool = True
    hidden_states: bool = False
    mask_holes: bool = False


@dataclass
class Run:
    """Neighbouring slots of one pool, each with one new token: one batched call."""

    pool: Pool
    slots: slice
    tokens: slice  # where the new tokens stand in the sequence
    positions: list[int]
    _masks: dict = field(default_factory=dict)
    _places: dict = field(default_factory=dict)

    def places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the slots and the positions of the new tokens, [rows] each."""
        if device not in self._places:  # made once a pass, not once a layer
            slots = torch.arange(self.slots.start, self.slots.stop, device=device)
            self._places[device] = slots, torch.tensor(self.positions, device=device)
        return self._places[device]

    def view(self, window: int | None, device: torch.device) -> tuple[slice, Tensor | None]:
        """Return the keys that any of the rows sees, and for each row which of them: [rows, 1, 1, keys] or None for all."""
        if window not in self._masks:
            top, low = max(self.positions) + 1, min(self.positions)
            first = 0 if window is None else max(low - window + 1, 0)
            mask = None
            if low + 1 < top:
                position = self.places(device)[1][:, None]
                key = torch.arange(first, top, device=device)
                mask = key <= position
                if window is not None:
                    mask &= key > position - window
                mask = mask[:, None, None]
            self._masks[window] = slice(first, top), mask
        return self._masks[window]


@dataclass
class Pass:
    """One forward pass: who stands where in the sequence."""

    runs: list[Run]
    longer: list[tuple[Pool, int, slice, int]]  # rows with several new tokens: pool, slot, tokens, past
    attended: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Window:
    """Stands where the attention mask would: a sliding window, or none."""

    size: int | None

    def __getitem__(self, index) -> Window:
        return self  # some architectures cut the mask to the keys' length


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Window | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    ragged: Pass | None = None,
    **rest,
) -> tuple[Tensor, None]:
    """Write the new keys and values into the rows' slots and attend, each row over its own past.

    query is [1, heads, total, d], key and value [1, kv_heads, total, d]; returns [1, total, heads, d_v].
    """
    check_attention_kwargs(module, rest)
    layer = module.layer_idx
    if ragged is None or layer in ragged.attended:
        raise UserError(f"{module.config.model_type} attends more than once a layer, which Seodang cannot cache: use another architecture")
    ragged.attended.add(layer)
    # the mask is what the fused kernels obey; the argument is its copy, missing in some architectures
    window = attention_mask.size if attention_mask is not None else sliding_window
    options = {"window": window, "softcap": softcap, "sinks": s_aux, "scale": scaling}
    parts = [_step(run, layer, query, key, value, **options) for run in ragged.runs]
    for pool, slot, tokens, past in ragged.longer:
        keys, values = pool.tensors(layer, key, value)
        end = past + tokens.stop - tokens.start
        keys[slot, :, past:end] = key[0, :, tokens]
        values[slot, :, past:end] = value[0, :, tokens]
        row = slice(slot, slot + 1)
        out = attend(query[:, :, tokens], keys[row, :, :end], values[row, :, :end], past=past, **options)
        parts.append(out.transpose(1, 2))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), None


def _step(run: Run, layer: int, query, key, value, *, window, softcap, sinks, scale) -> Tensor:
    """Attend with one new token a row: [1, rows, heads, d_v]."""
    keys, values = run.pool.tensors(layer, key, value)
    slots, positions = run.places(key.device)
    keys[slots, :, positions] = key[0, :, run.tokens].transpose(0, 1)
    values[slots, :, positions] = value[0, :, run.tokens].transpose(0, 1)
    seen, mask = run.view(window, key.device)
    keys, values = keys[run.slots, :, seen], values[run.slots, :, seen]
    query = query[0, :, run.tokens].transpose(0, 1)  # [rows, heads, d]
    rows, heads, d = query.shape
    if softcap is None and sinks is None:
        grouped = query.reshape(rows, keys.shape[1], -1, d)  # the heads that share a key read it once
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    else:
        out = attend_in_full(query[:, :, None], keys, values, mask, scale, 0.0, softcap, sinks)
    return out.reshape(1, rows, heads, -1)


def window_mask(*, config, local_size: int | None = None, use_vmap: bool = False, **rest) -> Window:
    """Answer an architecture's request for a mask with its window; refuse the shapes that `ragged_attention` has not."""
    if use_vmap:
        raise UserError(f"{config.model_type} lays its own pattern over the causal mask, which Seodang does not honour")
    if local_size is not None and local_size == getattr(config, "attention_chunk_size", None):
        raise UserError(f"{config.model_type} attends in chunks (attention_chunk_size), which Seodang does not honour")
    return Window(local_size)


AttentionInterface.register(RAGGED, ragged_attention)
AttentionMaskInterface.register(RAGGED, window_mask)


class RaggedRunner:
    """Runs rows of their own length through a model, together, with a cache of their keys and values.

    The model stays its owner's: attention and training mode are lent for each pass and put back after it.
    `passes` and `positions` count what was computed.
    """

    capabilities = Capabilities()

    def __init__(self, model: nn.Module):
        self.model = transformers_model(model)
        refuse_unsupported(self.model)
        self.config = self.model.config.get_text_config()
        self.limit = context_limit(self.model)
        self.cache = KVCache()
        self.passes = self.positions = 0
        modules = [module for module in self.model.modules() if isinstance(module, PreTrainedModel)]
        self._configs = list({id(module.config): module.config for module in modules}.values())
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

    def truncate(self, row: int, length: int) -> None:
        """Forget all of a row but its first `length` positions: rejected guesses leave the cache."""
        self.cache.truncate(row, length)

    def release(self, rows: Sequence[int]) -> None:
        """Give back the rows' memory."""
        self.cache.release(rows)

    def refresh(self) -> None:
        """Forget every row: the weights have changed, so their keys and values are no longer the model's."""
        self.cache.release(list(self.cache.lengths))

    @torch.no_grad()
    def forward(self, rows: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int]) -> Tensor:
        """Append `ids[i]` to row i, all rows in one pass; return logits, [sum(keep), vocab].

        `keep[i]` counts how many of the row's newest positions want logits; the result has them row after row, in
        the order given.
        """
        assert len(set(rows)) == len(rows) == len(ids) == len(keep) and all(ids)
        plan, tokens, positions, starts = self._plan(rows, ids)
        ends = [start + len(new) for start, new in zip(starts, ids)]
        wanted = torch.tensor([i for end, k in zip(ends, keep) for i in range(end - k, end)], dtype=torch.long)
        device = self.model.get_input_embeddings().weight.device
        kept = {"logits_to_keep": wanted.to(device)} if self._keeps_logits else {}
        with self._lent():
            logits = self.model(
                input_ids=torch.tensor([tokens], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                ragged=plan,
                **kept,
            ).logits[0]
        self._check(plan)
        for row, new in zip(rows, ids):
            self.cache.lengths[row] += len(new)
        self.passes += 1
        self.positions += len(tokens)
        return logits if self._keeps_logits else logits[wanted.to(logits.device)]

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
            positions += range(past, past + len(ids[i]))
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
        before = [config._attn_implementation for config in self._configs]
        for config in self._configs:
            config._attn_implementation = RAGGED
        try:
            with evaluating(self.model):
                yield
        finally:
            for config, implementation in zip(self._configs, before):
                config._attn_implementation = implementation


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Compute without dropout, and put each module's training mode back."""
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def open_runner(model: nn.Module):
    """Return the runner for a model: ragged where all memory is attention that lets itself be replaced.

    Else padded, where it is attention of another kind, and one row at a time where layers carry a state.
    """
    from .padded_runner import PaddedRunner
    from .stateful_runner import StatefulRunner

    inner = transformers_model(model)
    kinds = set(getattr(inner.config.get_text_config(), "layer_types", None) or ())
    if getattr(inner, "_is_stateful", False) or not kinds <= LAYERS_WITH_ATTENTION_ALONE:
        return StatefulRunner(model)
    replaceable = inner._supports_attention_backend and inner._can_set_attn_implementation()
    return RaggedRunner(model) if replaceable else PaddedRunner(model)


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside the wrappers of peft and of distributed training."""
    while not isinstance(model, PreTrainedModel):
        peft = getattr(model, "active_peft_config", None)
        if peft is not None and peft.is_prompt_learning:
            raise UserError(f"the adapter is of type {peft.peft_type.value}, which puts tokens of its own before the prompt: use LoRA")
        inner = model.get_base_model() if hasattr(model, "get_base_model") else getattr(model, "module", None)
        if inner is None:
            raise UserError(f"expected a transformers model, got {type(model).__name__}")
        model = inner
    return model


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raise UserError for models that do not speak from left to right."""
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        raise UserError(f"{config.model_type} is an encoder-decoder model, which Seodang does not run yet: use a decoder")
    if getattr(config, "is_causal", True) is False or getattr(config, "use_bidirectional_attention", None):
        raise UserError(f"{config.model_type} attends in both directions and cannot continue a text: use a causal model")
    if model.get_output_embeddings() is None:
        raise UserError(f"{type(model).__name__} has no language model head: load it as a causal language model")


def context_limit(model: PreTrainedModel) -> int | None:
    """Return how many positions the model can have, or None where nothing bounds them.

    Under longrope it is the length of the first training: beyond it, one long row would change the rotation of all.
    """
    config = model.config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
    limits = [limit for name in names if isinstance(limit := getattr(config, name, None), int) and limit > 0][:1]
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        limits.append(rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", limits[0]))
    return min(limits, default=None)
