"""Weights that lie end to end in memory, so that one product serves them all without a copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, UntypedStorage, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel

# what reads the same input, save for the queries of cross attention; T5's names are the short ones
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("q", "k", "v"), ("wi_0", "wi_1"))

_wholes = WeakIdKeyDictionary()  # the first parameter of a group to the memory of all, which lives as long as one of them lies there


def fuse_projections(model: PreTrainedModel) -> None:
    """Move the weights of neighbouring linear layers into one piece of memory; the model stays as it was in every other way.

    Each parameter has a storage of its own there: what saves a model (accelerate, safetensors) takes tensors that share one for the
    same tensor and drops all but one. Whatever moves a parameter (another dtype, another device) parts it from the others again,
    which costs speed and nothing else.
    """
    for module in model.modules():
        for names in TOGETHER:
            linears = [getattr(module, name, None) for name in names]
            if all(type(linear) is nn.Linear for linear in linears):
                _lay([linear.weight for linear in linears])
                if all(linear.bias is not None for linear in linears):
                    _lay([linear.bias for linear in linears])


def _lay(parameters: Sequence[nn.Parameter]) -> None:
    first = parameters[0]
    alike = {(p.dtype, p.device, p.shape[1:], type(p), p.is_contiguous()) for p in parameters}
    if len(alike) > 1 or type(first) is not nn.Parameter or first.device.type not in ("cpu", "cuda") or not first.is_contiguous():
        return
    if fused_view(parameters) is None:
        whole, begin = torch.cat([p.data for p in parameters]).untyped_storage(), 0
        for parameter in parameters:
            end = begin + parameter.nbytes
            parameter.data = laid(whole[begin:end], parameter, parameter.shape)
            begin = end
        _wholes[first] = StorageWeakRef(whole)


def fused_view(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return parameters that lie end to end as one, [sum of lengths, ...], without a copy; None where they do not."""
    first = tensors[0]
    if len(tensors) == 1:
        return first.detach()
    known = _wholes.get(first)
    whole = None if known is None else UntypedStorage._new_with_weak_ptr(known.cdata)
    if whole is None:
        return None
    end = whole.data_ptr()
    for tensor in tensors:
        alike = tensor.dtype == first.dtype and tensor.shape[1:] == first.shape[1:] and tensor.is_contiguous()
        if not alike or tensor.data_ptr() != end:
            return None
        end += tensor.nbytes
    if end != whole.data_ptr() + whole.nbytes():
        return None
    return laid(whole, first, (sum(map(len, tensors)), *first.shape[1:]))


def laid(storage: UntypedStorage, like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return what lies in a storage, from its beginning, as a tensor of this shape with the dtype and device of `like`; nothing is copied."""
    return torch.empty(0, dtype=like.dtype, device=like.device).set_(storage, 0, shape)
