"""The products of linear layers by the fastest kernel, whatever model they stand in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

MANY = 64  # rows: oneDNN lays a weight anew for each product, which fewer do not pay for
LARGE = 2**27  # multiplications of a product with gradients: smaller ones do not pay for the way through Python, there and back


class _OneDNN(TorchFunctionMode):
    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if function is F.linear and not kwargs and fits(*args):
            x, weight, bias = (*args, None)[:3]
            return _Linear.apply(x, weight, bias) if torch.is_grad_enabled() else _product(x, weight, bias)
        return function(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """Of x [..., d], weight [n, d] and bias [n] or None. The weight's gradient is MKL's: both its sides would be laid anew for oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = d_out.flatten(0, -2)
        d_x = None if weight is None else _product(d_out, weight.T)
        d_weight = None if x is None else rows.T @ x.flatten(0, -2)
        return d_x, d_weight, rows.sum(dim=0) if ctx.needs_input_grad[2] else None


def onednn_products() -> TorchFunctionMode:
    """A context in which products in float32 on a CPU are oneDNN's, a sixth faster there than MKL's, a fourteenth with their gradients; others stay as they are.

    What is computed again in a backward pass, as checkpointed activations are, must be in the context there, too.
    """
    return _OneDNN()


def fits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether a product is one that oneDNN does faster."""
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu" and type(weight) in (Tensor, torch.nn.Parameter)
    if not plain or x.dim() < 2 or torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.is_available():
        return False
    return x.numel() >= MANY * x.shape[-1] and (not torch.is_grad_enabled() or x.numel() * weight.shape[0] >= LARGE)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
