"""Which models the native pass covers."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from ...kernels.quantised_linear import OutputSlice
from .grouped_linear import GroupedLinear
from .library import BLOCK, DTYPES

FAMILIES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}


def refuses(model: PreTrainedModel) -> str | None:
    """Say in words what of a model that the direct runner covers the native pass does not; None where it covers all."""
    if type(model).__name__ not in FAMILIES:
        return f"{model.config.model_type} is none of its families"
    if model.config.hidden_act != "silu":
        return f"the activation {model.config.hidden_act} is not its own (silu)"
    weight = model.model.embed_tokens.weight
    if weight.device.type != "cpu" or weight.dtype not in DTYPES:
        return f"{weight.dtype} on {weight.device} is neither float32 nor bfloat16 on a CPU"
    parameters = list(model.parameters())
    if any((parameter.dtype, parameter.device) != (weight.dtype, weight.device) for parameter in parameters):  # a part was converted behind a runner's back
        return "its weights are not all of one dtype and device"
    modules = list(model.named_modules())
    linears = [module for name, module in modules if name.endswith(("_proj", "lm_head"))]
    if not all(is_read(linear) for linear in linears) or model.lm_head.bias is not None:
        return "its linear layers are of another kind, or its head has a bias"
    if not all(parameter.is_contiguous() for parameter in parameters):
        return "a weight does not lie in one piece"
    if len({module.variance_epsilon for _, module in modules if "variance_epsilon" in vars(module)}) != 1:
        return "its norms have an epsilon each"
    return None


def is_read(linear: nn.Module) -> bool:
    """Whether the native step reads such a linear layer: plain, or in few bits by groups, some of whose outputs stand in packs of their own."""
    if isinstance(linear, OutputSlice):
        return linear.start % BLOCK == 0 and is_read(linear.whole)
    return type(linear) is nn.Linear or isinstance(linear, GroupedLinear)
