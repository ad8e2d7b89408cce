"""Pairs of a source and a target laid end to end in one row of an encoder-decoder, each computed as if it were alone.

The architecture's own modules run. Its attention keeps the pairs apart: the encoder's within each source, the decoder's within each target, and
from each target to its own source. What tells where a token stands begins anew with each pair: tables of positions (BART and its kin), and the
bias by distance (T5 and its kin), of which the longest pair's is computed and the others take their corners. A model runs so where it is given
`pairs`; without, it answers as before.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ...data.errors import UserError
from .architecture import evaluating, transformers_model
from .attention import check_attention_kwargs
from .model_lock import configs_of, locked, use_attention
from .packed_records import Lengths, attend_in_groups, attend_in_runs, attend_padded, like_lengths, places, worth_padding
from .probe import agree, tolerance

END_TO_END = "seodang_end_to_end"
TRIED = ((5, 3), (2, 4))  # tokens of the sources and the targets that a model is tried with: no side is as long as another
KNOWN = "runs_pairs_end_to_end"  # among a model's attributes, once it was tried: a copy has its hooks, too
OF_THE_ROW = ("expert_capacity", "attention_type")  # in a config: how many tokens an expert takes of a row, attention that is chosen by its length


@dataclass(frozen=True)
class Pairs:
    """How many tokens the source and the target of each pair have, in the order in which they lie in the row."""

    sources: Lengths
    targets: Lengths

    def __post_init__(self):
        if len(self.sources) != len(self.targets) or not self.sources or min(self.sources + self.targets) < 1:
            raise UserError(f"pairs need a source and a target each, of a token at least: got the lengths {self.sources} and {self.targets}")


_RUNNING: ContextVar[Pairs | None] = ContextVar("pairs", default=None)  # while a stack of layers runs: positions and masks are asked for without arguments


def can_run_end_to_end(model: nn.Module) -> bool:
    """Have an encoder-decoder take `pairs` from now on; whether it can, which two short pairs tell, once a model.

    It is then called with `input_ids` and `decoder_input_ids` of [1, total], all sources and all targets end to end, no masks, and `pairs`, a
    `Pairs`; its encoder and its decoder alone likewise. Where it cannot (other attention than transformers' interface, positions that do not begin
    anew, experts whose room the row shares) it is left as it was.
    """
    model = transformers_model(model)
    if "flash" in (model.config._attn_implementation or ""):
        return False
    with locked(model):
        if (known := vars(model).get(KNOWN)) is None:
            known = vars(model)[KNOWN] = _may(model) and _obeys(model)
            if known:
                _put_on(model)
        if known:
            model.set_attn_implementation(END_TO_END)
        return known


def _may(model: PreTrainedModel) -> bool:
    by_row = any(hasattr(model.config, name) for name in OF_THE_ROW)
    return model.config.is_encoder_decoder and not by_row and model._can_set_attn_implementation()


@torch.no_grad()
def _obeys(model: PreTrainedModel) -> bool:
    """Whether two pairs come out end to end as each does alone, their logits compared in float32 at least."""
    if next(model.parameters()).dtype.itemsize == 2:
        model = copy.deepcopy(model).float()
    batch, pairs = _trial(model), Pairs(*TRIED)
    hooks: list[Any] = []
    with evaluating(model):
        parts = zip(*(batch[name].split(lengths, dim=1) for name, lengths in zip(batch, TRIED, strict=True)), strict=True)
        try:
            alone = [model(**dict(zip(batch, part, strict=True)), use_cache=False).logits[0] for part in parts]
            with use_attention(model, configs_of(model), END_TO_END):
                hooks = _put_on(model)
                together = model(**batch, pairs=pairs, use_cache=False).logits[0]
        except (UserError, RuntimeError, TypeError, ValueError, AttributeError, IndexError, NotImplementedError):
            return False  # whatever an architecture makes of arguments that are none of its own
        finally:
            for hook in hooks:
                hook.remove()
    want = torch.cat(alone)
    if not want.isfinite().any():
        raise UserError(f"{type(model).__name__} gives nan or infinity for a text: its weights are damaged, take another checkpoint")
    return together.shape == want.shape and agree(together, want, tolerance(model, want))


def _trial(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two pairs end to end, whose ids are away from the vocabulary's beginning, where the special ones are."""
    embeddings = model.get_input_embeddings().weight
    ids = lambda lengths, first: [[(embeddings.shape[0] // first + 5 * place) % embeddings.shape[0] for place in range(sum(lengths))]]
    sides = zip(("input_ids", "decoder_input_ids"), TRIED, (4, 3), strict=True)
    return {name: torch.tensor(ids(lengths, first), device=embeddings.device) for name, lengths, first in sides}


# What is put on a model


def _put_on(model: PreTrainedModel) -> list[Any]:
    """Put the hooks on the model's stacks, its tables of positions and its biases."""
    hooks = []
    for side, stack in ("sources", model.get_encoder()), ("targets", model.get_decoder()):
        hooks += [stack.register_forward_pre_hook(_begin, with_kwargs=True), stack.register_forward_hook(_end, with_kwargs=True, always_call=True)]
        if (table := getattr(stack, "embed_positions", None)) is not None:
            hooks.append(table.register_forward_pre_hook(partial(_one_pair_each, side), with_kwargs=True))
            hooks.append(table.register_forward_hook(partial(_begun_anew, side)))
        for attention in (module for module in stack.modules() if hasattr(module, "compute_bias")):
            hooks.append(attention.register_forward_pre_hook(partial(_bias_of_longest, side), with_kwargs=True))
            hooks.append(attention.register_forward_hook(_own_bias, with_kwargs=True, always_call=True))
    return hooks


def _begin(stack: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    pairs = kwargs.get("pairs")
    if pairs is not None and stack.config._attn_implementation != END_TO_END:
        raise UserError(f"pairs need the attention {END_TO_END!r}, the model has {stack.config._attn_implementation!r}: leave it as can_run_end_to_end sets it")
    _RUNNING.set(pairs)


def _end(stack: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
    _RUNNING.set(None)


def _one_pair_each(side: str, table: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Ask a table for the positions of one pair at a time: a table of weights looks at the shape alone, and one pair, the longest, will do."""
    if (pairs := _RUNNING.get()) is None:
        return None
    lengths = getattr(pairs, side)
    count, longest = 1 if isinstance(table, nn.Embedding) else len(lengths), max(lengths)
    kwargs.pop("position_ids", None)
    args = tuple(_rows(each, lengths, count, longest) for each in args)
    return args, {name: _rows(value, lengths, count, longest) for name, value in kwargs.items()}


def _rows(value: Any, lengths: Lengths, count: int, longest: int) -> Any:
    """What stands for [1, total, ...], a tensor or a shape, as [count, longest, ...]: zeros behind each pair, and the first's alone where count is 1."""
    if isinstance(value, Tensor):
        if count == 1:
            return value[:, :longest]
        rows = value.new_zeros(count * longest, *value.shape[2:])
        return rows.index_copy(0, places(lengths, longest).to(value.device), value[0]).unflatten(0, (count, longest))
    return torch.Size((count, longest, *value[2:])) if isinstance(value, tuple) else value


def _begun_anew(side: str, table: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
    """Lay what a table gave, [pairs, longest, d] or of one row for all, end to end: [1, total, d]."""
    if (pairs := _RUNNING.get()) is None:
        return None
    lengths = getattr(pairs, side)
    longest = max(lengths)
    rows = output.reshape(-1, longest, output.shape[-1])
    where = places(lengths, longest if len(rows) > 1 else 0)
    return rows.flatten(0, 1).index_select(0, where.to(output.device))[None]


def _bias_of_longest(side: str, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Have an attention layer compute its bias for the longest pair alone, and none where it looks at another side.

    It would compute one of [heads, total, total], of zeros too where it has none of its own, which is why it is told that it has.
    """
    if (pairs := kwargs.get("pairs")) is None:
        return
    longest, compute = max(getattr(pairs, side)), type(attention).compute_bias

    def compute_bias(*_: Any, device: torch.device | None = None, **__: Any) -> Tensor:
        if not has_bias:
            return torch.zeros((1, 1, 1, 1), device=device)
        bias = compute(attention, longest, longest, device=device)
        return bias.masked_fill(_future(longest, bias.device), -torch.inf) if attention.is_causal else bias

    has_bias = hasattr(attention, "relative_attention_bias")
    attention.has_relative_attention_bias, attention.compute_bias = True, compute_bias


def _own_bias(attention: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
    if "compute_bias" in vars(attention):
        del attention.compute_bias
        attention.has_relative_attention_bias = hasattr(attention, "relative_attention_bias")


@lru_cache(maxsize=8)
def _future(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


# Attention


def end_to_end_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    pairs: Pairs | None = None,
    position_bias: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attend within each source, within each target, or from each target to its source, by what the layer is; without `pairs` as transformers does.

    query is [1, heads, total, d], key and value [1, kv_heads, total of what is seen, d]; `position_bias` is that of the longest pair, [1, heads, n, n],
    future positions left out of it where the layer is causal. Returns [1, total, heads, d_v].
    """
    if pairs is None:
        bias = {} if position_bias is None else {"position_bias": position_bias}
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **bias, **rest)
    check_attention_kwargs(module, rest)
    causal, decodes = module.is_causal, module.is_decoder
    lengths = pairs.targets if decodes else pairs.sources
    seen = pairs.targets if causal else pairs.sources
    bias = None if decodes and not causal else position_bias
    return attend_apart(query, key, value, lengths, seen, causal=causal, bias=bias, scale=scaling, dropout=dropout).transpose(1, 2), None


def apart_mask(**asked: Any) -> Tensor | None:
    """No mask while pairs run end to end, for the attention keeps them apart; else that of transformers."""
    return None if _RUNNING.get() is not None else sdpa_mask(**asked)


AttentionInterface.register(END_TO_END, end_to_end_attention)
AttentionMaskInterface.register(END_TO_END, apart_mask)


def attend_apart(query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, seen: Lengths, *, causal: bool, bias: Tensor | None, **settings: Any) -> Tensor:
    """Attend from each record's queries, `lengths` of them, to its own keys, `seen` of them, never across.

    query is [1, heads, total, d], key and value [1, kv_heads, total seen, d]; `bias` is [1, heads, longest, longest]; `settings` are `scale` and
    `dropout`. Returns [1, heads, total, d_v].
    """
    others = None if seen == lengths else seen
    alike = partial(_attend_rows, causal=causal, bias=bias, **settings)
    if worth_padding(lengths, others):
        visible = None if causal else _visible(seen, query.device)  # causally nobody sees what stands behind
        return attend_padded(query, key, value, lengths, partial(alike, visible=visible), others)
    if (groups := like_lengths(lengths, others)) is not None:
        attend = partial(attend_apart, causal=causal, bias=bias, **settings)
        return attend_in_groups(query, key, value, lengths, groups, attend, seen, seen=others)
    return attend_in_runs(query, key, value, lengths, lengths, lambda _, *qkv: alike(*qkv), others)


@lru_cache(maxsize=8)  # made once a pass, not once a layer
def _visible(seen: Sequence[int], device: torch.device) -> Tensor:
    """Which keys of rows padded to the longest are there: [records, 1, 1, longest]."""
    return (torch.arange(max(seen), device=device) < torch.tensor(seen, device=device)[:, None])[:, None, None]


def _attend_rows(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, bias: Tensor | None, scale: float | None, dropout: float, visible: Tensor | None = None
) -> Tensor:
    """Attend in rows of one length: query [rows, heads, n, d], key and value [rows, kv_heads, m, d]; a bias has the future left out already."""
    gqa = key.shape[1] != query.shape[1]
    mask = visible
    if bias is not None:
        corner = bias[:, :, : query.shape[2], : key.shape[2]].to(query.dtype)
        if corner.requires_grad and torch.is_grad_enabled() and not gqa:
            return _attend_biased(query, key, value, corner, visible, scale, dropout)
        mask = corner if visible is None else corner.masked_fill(~visible, -torch.inf)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal and bias is None, scale=scale, enable_gqa=gqa
    )


def _attend_biased(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, visible: Tensor | None, scale: float | None, dropout: float) -> Tensor:
    """The scores written out, as torch does too where a bias learns, without its care for queries that see nothing: each of ours sees a key."""
    scale = query.shape[3] ** -0.5 if scale is None else scale
    scores = (query if scale == 1 else query * scale) @ key.transpose(2, 3)
    scores += bias
    if visible is not None:
        scores.masked_fill_(~visible, -torch.inf)
    probs = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return F.dropout(probs, dropout) @ value
