"""Weights that lie end to end in memory, so that one product serves them all without a copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # what reads the same input


def lay_together(model: PreTrainedModel) -> None:
    """Move the weights of neighbouring linear layers into one storage; the model stays as it was in every other way.

    Each parameter becomes a view of its part: it is trained in place, saved and copied as before. Whatever moves a
    parameter (another dtype, another device) parts it from the others again, which costs speed and nothing else.
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
    if len(alike) > 1 or type(first) is not nn.Parameter or first.device.type == "meta" or not first.is_contiguous():
        return
    if as_one(parameters) is None:
        whole = torch.cat([p.data for p in parameters])
        for parameter, part in zip(parameters, whole.split([len(p) for p in parameters])):
            parameter.data = part


def as_one(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return tensors that lie end to end as one, [sum of lengths, ...], without a copy; None where they do not."""
    first = tensors[0]
    if len(tensors) == 1:
        return first.detach()
    end = first.data_ptr()
    for tensor in tensors:
        same = tensor.dtype == first.dtype and tensor.device == first.device and tensor.shape[1:] == first.shape[1:]
        shared = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or not shared or not tensor.is_contiguous() or tensor.data_ptr() != end:
            return None
        end += tensor.nbytes
    return first.detach().as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride(), first.storage_offset())
