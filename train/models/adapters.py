"""Adapters on a model, and their layers in fewer passes over memory: the same products, their sums taken inside them."""

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora.layer import Linear as LoraLayer
from peft.utils.error import NoMatchingPeftModuleError
from torch import Tensor, nn

from ...data.errors import UserError
from .extended_forward import Forward, extend_forward


def add_adapter(model: nn.Module, lora: LoraConfig, checkpointed: bool):
    """The model, quantised or not, with an adapter to be trained; `checkpointed`: activations are computed again in the backward pass.

    Raises UserError where the model has no layer of those that are to get one.
    """
    try:
        model = get_peft_model(prepare_quantised(model), lora)
    except NoMatchingPeftModuleError:
        raise UserError(f"lora_targets: the model has no module {', '.join(sorted(lora.target_modules))}: give names of its linear layers, or all-linear") from None
    speed_up_adapters(model)
    if checkpointed:
        model.enable_input_require_grads()  # else no gradient reaches the adapters through a frozen embedding
    return model


def prepare_quantised(model: nn.Module) -> nn.Module:
    """A quantised base frozen, what is not quantised of it in float32 (Dettmers et al. 2023, "QLoRA"); another model as it is."""
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False) if getattr(model, "is_quantized", False) else model


class LoraLinear(torch.autograd.Function):
    """linear(x, weight, bias) + scaling * (x a^T) b^T, with frozen weight and bias (Hu et al. 2021, "LoRA", eq. 3).

    x is [..., in], weight [out, in], a [rank, in], b [out, rank]; returns [..., out].
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low = flat @ a.T  # [n, rank]
        out = F.linear(flat, weight, bias).addmm_(low, b.T, alpha=scaling)
        ctx.save_for_backward(flat, low, weight, a, b)
        ctx.scaling = scaling
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, d_out: Tensor) -> tuple:
        flat, low, weight, a, b = ctx.saved_tensors
        wants_x, _, _, wants_a, wants_b, _ = ctx.needs_input_grad
        d_flat = d_out.reshape(-1, d_out.shape[-1])
        d_low = (d_flat @ b).mul_(ctx.scaling) if wants_x or wants_a else None
        d_x = (d_flat @ weight).addmm_(d_low, a).view(*d_out.shape[:-1], -1) if wants_x else None
        d_a = d_low.T @ flat if wants_a else None
        d_b = (d_flat.T @ low).mul_(ctx.scaling) if wants_b else None
        return d_x, None, None, d_a, d_b, None


def speed_up_adapters(model: nn.Module) -> None:
    """Let the model's plain LoRA layers compute through `LoraLinear`; whatever is not plain (dropout, DoRA, several adapters, mixed dtypes) stays peft's."""
    for module in model.modules():
        if type(module) is LoraLayer and type(module.base_layer) is nn.Linear:
            extend_forward(module, "plain LoRA", _through_lora_linear)


def _through_lora_linear(before: Forward) -> Forward:
    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        name = _plain_adapter(self, x) if not args and not kwargs else None
        if name is None:
            return before(self, x, *args, **kwargs)
        base = self.base_layer
        return LoraLinear.apply(x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name])

    return forward


def _plain_adapter(layer: LoraLayer, x: Tensor) -> str | None:
    """The name of the one adapter to add, where adding it is all that there is to do."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1 or torch.is_autocast_enabled(x.device.type):
        return None
    [name] = layer.active_adapters
    if name not in layer.lora_A or layer.base_layer.weight.requires_grad or layer.lora_A[name].bias is not None or layer.lora_B[name].bias is not None:
        return None
    if type(layer.lora_dropout[name]) is not nn.Identity or getattr(layer, "lora_variant", {}).get(name) is not None:
        return None
    dtypes = {x.dtype, layer.base_layer.weight.dtype, layer.lora_A[name].weight.dtype, layer.lora_B[name].weight.dtype}
    return name if len(dtypes) == 1 else None
