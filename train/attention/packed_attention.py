"""Attention that keeps the records of a packed sequence apart, and the branches of a prompt."""

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from ...data.errors import UserError
from ...infer.runners.attention import attend, check_attention_kwargs
from ...infer.runners.packed_records import attend_records
from ...infer.runners.ragged_attention import Window, window_mask
from .both_ways import attend_both_ways
from .tree import Tree, attend_tree

PACKED = "seodang_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Window | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    record_lengths: tuple[int, ...] | None = None,
    causal_lengths: tuple[int, ...] | None = None,
    copied_lengths: tuple[int, ...] | None = None,
    block_length: int | None = None,
    tree: Tree | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **rest,
) -> tuple[Tensor, None]:
    """Attend within each record of a sequence laid end to end, never across.

    query is [1, heads, total, d], key and value [1, kv_heads, total, d]; `record_lengths` sum to total, and without them
    every row of the batch is one record, read as the model's config says. With `causal_lengths` each record attends causally in its first tokens, so many of them, and with the
    others to all of itself, or by blocks, see `attend_both_ways`. With a `tree`, each record is a prompt and its branches. Returns [1, total, heads, d].
    """
    check_attention_kwargs(module, rest)
    window = attention_mask.size if attention_mask is not None else sliding_window
    settings = {"scale": scaling, "dropout": dropout, "window": window, "softcap": softcap, "sinks": s_aux}
    if tree is not None:
        return attend_tree(query, key, value, tree, **settings).transpose(1, 2), None
    if record_lengths is None:
        causal = getattr(module.config, "is_causal", True) is not False and getattr(module, "is_causal", True) is not False  # an encoder's says so itself
        return attend(query, key, value, causal=causal, **settings).transpose(1, 2), None
    if causal_lengths is None:
        return attend_records(query, key, value, record_lengths, **settings).transpose(1, 2), None
    if window is not None and (any(causal_lengths) or getattr(module, "is_causal", True)):  # a decoder's counts on one side, and otherwise
        raise UserError(f"{module.config.model_type} attends in a sliding window of {window} positions, which does not go both ways: use a model without")
    out = attend_both_ways(query, key, value, record_lengths, causal_lengths, copied_lengths, block_length=block_length, **settings)
    return out.transpose(1, 2), None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, window_mask)  # the records' borders do the rest
