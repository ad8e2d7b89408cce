"""Linear layers in 8 bits by groups of 32 inputs, multiplied by the compiled kernels of `kernels8.h`."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ....data.errors import UserError
from ...kernels.kernel_check import refuse_wrong_kernels
from ...kernels.quantised_linear import GROUP, Quantised
from .compiler import NotBuilt
from .library import BLOCK, INT8, OFF, Linear, is_off, library

RUN, LINE, LARGEST = 4, 64, 127  # inputs whose bytes lie together; bytes to which a pack's scales are filled up; the greatest level


class GroupedLinear8(Quantised):
    """8 bits a weight in groups of 32 inputs, as GGUF's Q8_0: weight = level * scale, levels -127 to 127, a float16 scale a group.

    Inputs are rounded to 8 bits too, in the same groups, with float32 scales. `packed` is uint8 [packs, bytes], as `kernels8.h` reads it. Sums are of
    float32, and a row's do not hang on the rows beside it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__(weight, bias)
        self.register_buffer("packed", pack(*levels_and_scales(weight.detach().float())))

    def product(self, x: Tensor) -> Tensor:
        """Return the product with the bias added, in the dtype of x: [rows, in] to [rows, out]; raises MemoryError where there is none for it."""
        wide, y = x.float().contiguous(), torch.empty(len(x), self.out_features, dtype=torch.float32)
        if library().seodang_product(ctypes.byref(self.as_read()), wide.data_ptr(), len(x), y.data_ptr(), torch.get_num_threads()):
            raise MemoryError(f"no memory for a product of {len(x)} rows")
        return (y if self.bias is None else y.add_(self.bias)).to(x.dtype)

    def as_read(self, start: int = 0, stop: int | None = None) -> Linear:
        """Where the layer lies, or its outputs from `start` on, a whole number of packs, as the native step reads it; the layer must outlive it."""
        bias = None if self.bias is None else self.bias[start:].data_ptr()
        outputs = (self.out_features if stop is None else stop) - start
        return Linear(INT8, self.in_features, outputs, self.packed[start // BLOCK :].data_ptr(), bias)

    def like(self, weight: Tensor, bias: Tensor | None) -> GroupedLinear8:
        return GroupedLinear8(weight, bias)

    def borders(self) -> tuple[int, ...]:
        return tuple(range(2, 10))  # each number of rows that are multiplied at once has code of its own

    def _written_out(self, dtype: torch.dtype) -> Tensor:
        levels, scales = unpack(self.packed, self.in_features)
        return (levels.view(-1, self.in_features // GROUP, GROUP).to(dtype) * scales.to(dtype)[..., None]).view(-1, self.in_features)


def levels_and_scales(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return for a float32 weight [out, in] levels, int8 [out, in], and float16 scales [out, groups]; raises UserError where float16 cannot hold one."""
    groups = weight.view(len(weight), -1, GROUP)
    scales = (groups.abs().amax(dim=-1) / LARGEST).to(torch.float16)
    if not scales.isfinite().all():
        raise UserError(f"weights=int8 has no scale for a weight of {weight.abs().max():.3g}: leave weights out")
    levels = groups / scales.float()[..., None].clamp_min(torch.finfo(torch.float16).smallest_normal / 1024)  # a group of zeros has a scale of zero
    return levels.round_().clamp_(-LARGEST, LARGEST).to(torch.int8).view_as(weight), scales


def pack(levels: Tensor, scales: Tensor) -> Tensor:
    """Return levels, int8 [out, in], and float16 scales, [out, groups], as the bytes of packs, uint8 [packs, bytes]; outputs of zeros fill up the last."""
    outputs, inputs = levels.shape
    fill = (0, 0, 0, -outputs % BLOCK)
    runs = F.pad(levels, fill).view(-1, BLOCK, inputs // RUN, RUN).transpose(1, 2).reshape(-1, BLOCK * inputs)
    steps = F.pad(scales, fill).view(-1, BLOCK, inputs // GROUP).transpose(1, 2).reshape(-1, BLOCK * (inputs // GROUP)).contiguous()
    packs = torch.cat([runs.view(torch.uint8), steps.view(torch.uint8)], dim=1)
    return F.pad(packs, (0, -packs.shape[1] % LINE))


def unpack(packed: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """Return the levels, int8 [out, in], and scales, float16 [out, groups], that were packed, those that fill up the last pack among them."""
    levels, steps, _ = packed.split([BLOCK * inputs, 2 * BLOCK * (inputs // GROUP), packed.shape[1] - BLOCK * inputs - 2 * BLOCK * (inputs // GROUP)], dim=1)
    levels = levels.view(torch.int8).view(-1, inputs // RUN, BLOCK, RUN).transpose(1, 2).reshape(-1, inputs)
    return levels, steps.contiguous().view(torch.float16).view(-1, inputs // GROUP, BLOCK).transpose(1, 2).reshape(-1, inputs // GROUP)


def missing_kernels() -> str | None:
    """Say in words what keeps this machine from multiplying such layers; None where nothing does."""
    return f"{OFF}=0" if is_off() else wrong_kernels()


@cache
def wrong_kernels() -> str | None:
    """The same of the compiled kernels, which are tried once a process."""
    try:
        refuse_wrong_kernels([GroupedLinear8(torch.zeros(BLOCK, inputs)) for inputs in (GROUP, 3 * GROUP)])
    except (NotBuilt, UserError) as error:
        return str(error)
    return None
