"""The kernels of quantised layers beside the product of floats, on weights that are known: what kernels do differs with the CPU."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...data.errors import UserError
from .int4_layout import BLOCK
from .quantised_linear import GROUP, Quantised

OUTPUTS = 2 * BLOCK
ROWS = 65  # more than any number at which another kernel takes over
ALLOWED = 0.02  # rounding comes to 0.005; weights in a wrong order to more than 1, sums that overflow in 16 bits to 0.1


def refuse_wrong_kernels(layers: Iterable[Quantised]) -> None:
    """Raise UserError where a layer like one of these multiplies wrongly, by any of the kernels that a number of rows chooses.

    In place of each kind and width stands a layer of few outputs with known weights: kernels do not look at the weights, all blocks of
    outputs go the same way, and milliseconds suffice.
    """
    alike = {}
    for layer in layers:
        alike.setdefault((type(layer), layer.in_features, getattr(layer, "terms", 0), layer.borders()), layer)
    for layer in alike.values():
        weight, bias = known_weight(layer.in_features), torch.arange(OUTPUTS).bfloat16()
        _compare(layer.like(weight, bias), known_inputs(layer.in_features), weight, bias)


def _compare(layer: Quantised, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    wanted = torch.addmm(bias.float(), x.float(), weight.T)
    for rows in sorted({1, ROWS, *(n for border in layer.borders() for n in (border - 1, border) if n)}):
        off = (layer.product(x[:rows]).float() - wanted[:rows]).norm(dim=1) / wanted[:rows].norm(dim=1)
        if not (off <= ALLOWED).all():
            raise UserError(
                f"{type(layer).__name__} multiplies wrongly on this CPU (torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}): "
                f"of {layer.in_features} inputs and {rows} rows the product is off by {off.max():.3g} of its size, where {ALLOWED} "
                "is allowed: leave weights out"
            )


def known_weight(width: int) -> Tensor:
    """Return a random weight of sixteen levels, [OUTPUTS, width], which 4 bits hold exactly and 8 bits nearly."""
    levels = torch.randint(0, 16, (OUTPUTS, width // GROUP, GROUP), generator=torch.Generator().manual_seed(0))
    levels[..., 0], levels[..., 1] = 0, 15  # every group has its ends
    return (levels.view(OUTPUTS, width) - 8) / 8


def known_inputs(width: int) -> Tensor:
    """Return inputs that 8 bits hold exactly, bfloat16 [ROWS, width]; every second row is of the largest values alone."""
    x = torch.randint(-127, 128, (ROWS, width), generator=torch.Generator().manual_seed(1))
    x[::2] = torch.where(x[::2] < 0, -127, 127)
    x[:, 0] = 127
    return x.to(torch.bfloat16)
