"""Weights that lie end to end in memory, so that one product serves them all without a copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, UntypedStorage, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel

from .huge_pages import LINE, HugePages, has_huge_pages
from .quantised_linear import Quantised

# what reads the same input, save for the queries of cross attention; T5's names are the short ones
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("q", "k", "v"), ("wi_0", "wi_1"))

LEAST = 64 << 20  # bytes of weights, below which a pass finds most of them in caches

_wholes = WeakIdKeyDictionary()  # the first parameter of a group to the memory of all, which lives as long as one of them lies there


def fuse_projections(model: PreTrainedModel) -> None:
    """Move the weights of neighbouring linear layers into one piece of memory, and all weights on a CPU to huge pages; the model stays as it was in every other way.

    Each parameter has a storage of its own there: what saves a model (accelerate, safetensors) takes tensors that share one for the
    same tensor and drops all but one. Whatever moves a parameter (another dtype, another device) parts it from the others again,
    which costs speed and nothing else.
    """
    groups = [list(group) for group in groups_of(model) if fit_together(group)]
    grouped = {id(parameter) for group in groups for parameter in group}
    weights = list(weights_of(model))
    on_cpu = [weight for weight in weights if weight.device.type == "cpu" and weight.is_contiguous()]
    total = sum(weight.nbytes + LINE for weight in on_cpu)
    pages = HugePages(total) if has_huge_pages() and total >= LEAST else None
    if pages is not None:
        groups += [[weight] for weight in on_cpu if id(weight) not in grouped]
        order = {id(weight): i for i, weight in enumerate(weights)}  # a layer's weights lie in the order in which they are read
        groups.sort(key=lambda group: order[id(group[0])])
    for group in groups:
        _lay(group, pages)


def weights_of(model: PreTrainedModel) -> Iterator[Tensor]:
    """Yield the model's weights in the order of its layers: plain parameters, and what quantised layers have in their place."""
    known = set()
    for module in model.modules():
        own = module.buffers(recurse=False) if isinstance(module, Quantised) else module.parameters(recurse=False)
        for weight in own:
            if type(weight) in (nn.Parameter, Tensor) and id(weight) not in known:
                known.add(id(weight))
                yield weight


def groups_of(model: PreTrainedModel) -> Iterator[list[nn.Parameter]]:
    """Yield the weights, and the biases, of linear layers that read the same input."""
    for module in model.modules():
        for names in TOGETHER:
            linears = [getattr(module, name, None) for name in names]
            if all(type(linear) is nn.Linear for linear in linears):
                yield [linear.weight for linear in linears]
                if all(linear.bias is not None for linear in linears):
                    yield [linear.bias for linear in linears]


def fit_together(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether parameters can lie in one piece of memory, as one tensor."""
    first = parameters[0]
    alike = {(p.dtype, p.device, p.shape[1:], type(p), p.is_contiguous()) for p in parameters}
    return len(alike) == 1 and type(first) is nn.Parameter and first.device.type in ("cpu", "cuda") and first.is_contiguous()


def _lay(parameters: Sequence[Tensor], pages: HugePages | None) -> None:
    """Move parameters into one piece of memory, of `pages` where they lie on a CPU; where they lie in one already it may stay."""
    first = parameters[0]
    whole = pages.take(sum(p.nbytes for p in parameters)) if pages is not None and first.device.type == "cpu" else None
    if whole is None:
        if fused_view(parameters) is not None:
            return
        whole = torch.empty(sum(p.nbytes for p in parameters), dtype=torch.uint8, device=first.device).untyped_storage()
    begin = 0
    for parameter in parameters:
        end = begin + parameter.nbytes
        parameter.data = laid(whole[begin:end], parameter, parameter.shape).copy_(parameter.data)
        begin = end
    if len(parameters) > 1:
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
