"""Matrix products with a model's own weights, by the fastest kernel of the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .fused_projections import fused_view
from .quantised_linear import OutputSlice, Quantised

# numbers of the input, in two rows or more, up to which they stay in a core's first cache while the weight streams by: there MKL's product of the
# weight with a few columns takes one thread and has up to twice the bandwidth of oneDNN's (768 wide: 17 GB/s at 2 rows, 14 at 4; oneDNN 11 and 10)
FEW = 3072
LinearKernel = Callable[[Tensor], Tensor]  # [rows, in] to [rows, out]


def linear_kernel(layers: Sequence[nn.Module], quick_few: bool = False) -> LinearKernel:
    """Return the product with the weights of linear layers that read the same input; their outputs stand side by side.

    With `quick_few` a few rows take a quicker way on one thread, by which what float32 rounds hangs on how many rows there are. Weights are read where they lie at each call: a change in place is seen, a move of a parameter is not.
    """
    first = layers[0]
    if isinstance(first, OutputSlice):
        return first.whole.product
    if isinstance(first, Quantised):
        products = [layer.product for layer in layers]  # more than one where each is in bits of its own
        return first.product if len(layers) == 1 else lambda x: torch.cat([product(x) for product in products], dim=-1)
    if isinstance(first, Conv1D):
        weight, bias = first.weight.detach(), first.bias.detach()  # [in, out]
        return lambda x: torch.addmm(bias, x, weight)
    weight = fused_view([layer.weight for layer in layers])
    biases = [layer.bias for layer in layers if layer.bias is not None]
    bias = fused_view(biases) if biases else None
    if weight is not None and len(biases) in (0, len(layers)) and (not biases or bias is not None):
        return linear(weight, bias, quick_few)
    each = [linear(layer.weight.detach(), None if layer.bias is None else layer.bias.detach(), quick_few) for layer in layers]
    return lambda x: torch.cat([one(x) for one in each], dim=-1)


def linear(weight: Tensor, bias: Tensor | None, quick_few: bool) -> LinearKernel:
    """Return the product with one weight, [out, in], and its bias, [out] or None: [rows, in] to [rows, out]."""
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # MKL's float32 product of a few rows takes one thread and half the memory bandwidth; oneDNN's takes all
        onednn, column = torch.ops.mkldnn._linear_pointwise, None if bias is None else bias[:, None]

        def product(x: Tensor) -> Tensor:
            if not quick_few or x.numel() > FEW or len(x) == 1 or torch.get_num_threads() > 1:
                return onednn(x, weight, bias, "none", [], "")
            y = weight @ x.t() if column is None else torch.addmm(column, weight, x.t())
            return y.t().contiguous()

        return product
    return lambda x: F.linear(x, weight, bias)
