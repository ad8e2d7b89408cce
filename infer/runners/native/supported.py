"""Which models the native pass covers."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...kernels.quantised_linear import OutputSlice
from ..families.parts import FAMILIES, parts_of
from .grouped_linear import GroupedLinear
from .library import ACTIVATIONS, BLOCK, DTYPES


def refuses(model: PreTrainedModel) -> str | None:
    """Say in words what of a model that the direct runner covers the native pass does not; None where it covers all."""
    if type(model).__name__ not in FAMILIES:
        return f"{model.config.model_type} is none of its families"
    parts = parts_of(model)
    kinds = {type(layer.activation).__name__ for layer in parts.layers}
    if len({ACTIVATIONS.get(kind) for kind in kinds}) != 1 or not kinds <= ACTIVATIONS.keys():
        return f"the activation {' or '.join(sorted(kinds))} is not its own (SiLU, GELU, ReLU)"
    weight = parts.embed.weight
    if weight.device.type != "cpu" or weight.dtype not in DTYPES:
        return f"{weight.dtype} on {weight.device} is neither float32 nor bfloat16 on a CPU"
    parameters = list(model.parameters())
    if any((parameter.dtype, parameter.device) != (weight.dtype, weight.device) for parameter in parameters):  # a part was converted behind a runner's back
        return "its weights are not all of one dtype and device"
    linears = [module for layer in parts.layers for module in layer.linears]
    if not all(map(is_read, (*linears, parts.head))) or parts.head.bias is not None:
        return "its linear layers are of another kind, or its head has a bias"
    if any(is_grouped(linear) for linear in linears) and parts.kv_heads * parts.width % BLOCK:  # the others are whole groups of inputs to what follows
        return f"its {parts.kv_heads * parts.width} values do not begin with a pack of {BLOCK} outputs"
    if not all(parameter.is_contiguous() for parameter in parameters):
        return "a weight does not lie in one piece"
    return None


def is_read(linear: nn.Module) -> bool:
    """Whether the native step reads such a linear layer: plain, or in few bits by groups."""
    return type(linear) in (nn.Linear, Conv1D) or is_grouped(linear)


def is_grouped(linear: nn.Module) -> bool:
    """Whether a linear layer, or the one of whose outputs it has some, is in few bits by groups."""
    return isinstance(linear.whole if isinstance(linear, OutputSlice) else linear, GroupedLinear)
