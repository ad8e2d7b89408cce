"""Linear layers in few bits by groups of 32 inputs, multiplied by the compiled kernels of `integers.h`."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ....data.errors import UserError
from ...kernels.four_bits import Fitted, Grid, four_bits
from ...kernels.kernel_check import refuse_wrong_kernels
from ...kernels.quantised_linear import GROUP, Quantised
from .compiler import NotBuilt
from .library import BLOCK, INT4, INT8, OFF, Linear, is_off, library

LINE, LARGEST = 64, 127  # bytes to which a pack's scales are filled up; the greatest level of 8 bits


class GroupedLinear(Quantised):
    """A linear layer with weights of few bits in groups of 32 inputs, whose inputs are rounded to 8 bits in the same groups, with float32 scales.

    `packed` is uint8 [packs, bytes], as `integers.h` reads it. Sums are of float32, and a row's do not hang on the rows beside it.
    """

    dtype: int
    packed: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, packed: Tensor):
        super().__init__(weight, bias)
        self.register_buffer("packed", packed)

    @classmethod
    def of_packs(cls, packed: Tensor, outputs: int, inputs: int, bias: Tensor | None = None) -> GroupedLinear:
        """Return the layer of weights that are packed already, uint8 [packs, bytes], with so many outputs and inputs."""
        layer = cls.__new__(cls)
        GroupedLinear.__init__(layer, torch.empty(outputs, inputs, device="meta"), bias, packed)
        return layer

    def product(self, x: Tensor) -> Tensor:
        """Return the product with the bias added, in the dtype of x: [rows, in] to [rows, out]; raises MemoryError where there is none for it."""
        wide, y = x.float().contiguous(), torch.empty(len(x), self.out_features, dtype=torch.float32)
        if library().seodang_product(ctypes.byref(self.as_read()), wide.data_ptr(), len(x), y.data_ptr(), torch.get_num_threads()):
            raise MemoryError(f"no memory for a product of {len(x)} rows")
        return (y if self.bias is None else y.add_(self.bias)).to(x.dtype)

    def as_read(self, begin: int = 0, count: int | None = None) -> Linear:
        """Where the layer lies, or so many outputs from `begin` on, behind whole packs, as the native step reads it; the layer must outlive it."""
        bias = None if self.bias is None else self.bias[begin:].data_ptr()
        outputs = self.out_features - begin if count is None else count
        return Linear(self.dtype, self.in_features, outputs, 0, -1, self.packed[begin // BLOCK :].data_ptr(), bias)

    def like(self, weight: Tensor, bias: Tensor | None) -> GroupedLinear:
        return type(self)(weight, bias)

    def borders(self) -> tuple[int, ...]:
        return tuple(range(2, 10))  # each number of rows that are multiplied at once has code of its own


class GroupedLinear8(GroupedLinear):
    """8 bits a weight, as GGUF's Q8_0: weight = level * scale, levels -127 to 127, a float16 scale a group."""

    dtype, kind = INT8, "int8"

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__(weight, bias, pack8(*levels_and_scales(weight.detach().float())))

    def _written_out(self, dtype: torch.dtype) -> Tensor:
        levels, scales = unpack8(self.packed, self.in_features)
        return (levels.view(-1, self.in_features // GROUP, GROUP).to(dtype) * scales.to(dtype)[..., None]).view(-1, self.in_features)


class GroupedLinear4(GroupedLinear):
    """4 bits a weight, as GGUF's Q4_1: weight = level * scale + offset, levels 0 to 15, a float16 scale and offset a group, fitted by least squares."""

    dtype, kind = INT4, "int4"
    grid = Grid(0, torch.float16)

    def __init__(self, weight: Tensor, bias: Tensor | None = None, fitted: Fitted | None = None):
        """`fitted` is what stands for the weight where that is known already."""
        levels, scales, offsets = fitted or four_bits(weight.detach().float(), *self.grid)
        super().__init__(weight, bias, pack4(levels.to(torch.uint8), held(scales, weight), held(offsets, weight)))

    def _written_out(self, dtype: torch.dtype) -> Tensor:
        levels, scales, offsets = unpack4(self.packed, self.in_features)
        groups = levels.view(-1, self.in_features // GROUP, GROUP).to(dtype)
        return torch.addcmul(offsets.to(dtype)[..., None], groups, scales.to(dtype)[..., None]).view(-1, self.in_features)


def levels_and_scales(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return for a float32 weight [out, in] levels, int8 [out, in], and float16 scales [out, groups]; raises UserError where float16 cannot hold one."""
    groups = weight.view(len(weight), -1, GROUP)
    scales = held((groups.abs().amax(dim=-1) / LARGEST).to(torch.float16), weight)
    levels = groups / scales.float()[..., None].clamp_min(torch.finfo(torch.float16).smallest_normal / 1024)  # a group of zeros has a scale of zero
    return levels.round_().clamp_(-LARGEST, LARGEST).to(torch.int8).view_as(weight), scales


def held(scales: Tensor, weight: Tensor) -> Tensor:
    """Return float16 scales or offsets of a weight; raises UserError where one is beyond them."""
    if not scales.isfinite().all():
        raise UserError(f"weights in few bits have no scale for a weight of {weight.abs().max():.3g}: leave weights out")
    return scales


def pack8(levels: Tensor, scales: Tensor) -> Tensor:
    """Return levels, int8 [out, in], and float16 scales, [out, groups], as the bytes of packs, uint8 [packs, bytes]; outputs of zeros fill up the last."""
    return joined(runs(levels.view(torch.int32)), steps(scales).flatten(1))


def unpack8(packed: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """Return the levels, int8 [out, in], and scales, float16 [out, groups], that were packed, those that fill up the last pack among them."""
    levels, halves = parted(packed, BLOCK * inputs, BLOCK * (inputs // GROUP))
    return words(levels).view(torch.int8), halves.view(-1, inputs // GROUP, BLOCK).transpose(1, 2).contiguous().view(-1, inputs // GROUP)


def pack4(levels: Tensor, scales: Tensor, offsets: Tensor) -> Tensor:
    """The same of levels 0 to 15, uint8 [out, in], and float16 scales and offsets, [out, groups]: two runs of inputs share their bytes."""
    return with_offsets(runs(low_bits(levels).view(torch.int32).flatten(1)), scales, offsets)


def unpack4(packed: Tensor, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the levels, uint8 [out, in], scales and offsets, float16 [out, groups], that were packed, those that fill up the last pack among them."""
    pairs, scales, offsets = parted_with_offsets(packed, inputs, 4)
    pairs = pairs.view(torch.uint8).view(len(pairs), inputs // GROUP, GROUP // 2)
    return torch.cat([pairs & 15, pairs >> 4], dim=2).view(-1, inputs), scales, offsets


def low_bits(levels: Tensor) -> Tensor:
    """The lower 4 bits of levels, uint8 [out, in], those of a group's second half in the upper halves of the bytes: [out, groups, GROUP / 2]."""
    lower, upper = (levels & 15).view(len(levels), -1, 2, GROUP // 2).unbind(2)
    return lower | upper << 4


def with_offsets(levels: Tensor, scales: Tensor, offsets: Tensor) -> Tensor:
    """The bytes of packs of levels, uint8 [packs, n], with float16 scales and offsets, [out, groups]."""
    return joined(levels, torch.stack([steps(scales), steps(offsets)], dim=2).flatten(1))


def parted_with_offsets(packed: Tensor, inputs: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """The reverse: levels of so many bits as int32 [out, words], float16 scales and offsets, [out, groups]."""
    groups = inputs // GROUP
    levels, halves = parted(packed, BLOCK * inputs * bits // 8, 2 * BLOCK * groups)
    scales, offsets = halves.view(-1, groups, 2, BLOCK).permute(2, 0, 3, 1).contiguous().view(2, -1, groups)
    return words(levels), scales, offsets


def runs(levels: Tensor) -> Tensor:
    """Levels as words of 4 bytes, int32 [out, words], in the order of packs: uint8 [packs, bytes], a word of each of a pack's outputs and then the next."""
    filled = F.pad(levels, (0, 0, 0, -len(levels) % BLOCK))
    return filled.view(-1, BLOCK, levels.shape[1]).transpose(1, 2).contiguous().view(torch.uint8).flatten(1)


def words(packs: Tensor) -> Tensor:
    """The reverse of `runs`."""
    held = packs.contiguous().view(torch.int32)
    return held.view(len(packs), -1, BLOCK).transpose(1, 2).contiguous().view(len(packs) * BLOCK, -1)


def steps(scales: Tensor) -> Tensor:
    """Scales, [out, groups], in the order of packs: [packs, groups, BLOCK]."""
    return F.pad(scales, (0, 0, 0, -len(scales) % BLOCK)).view(-1, BLOCK, scales.shape[1]).transpose(1, 2)


def joined(levels: Tensor, halves: Tensor) -> Tensor:
    """The bytes of packs, uint8 [packs, n], with their float16 numbers, [packs, m], behind them."""
    packs = torch.cat([levels, halves.contiguous().view(torch.uint8)], dim=1)
    return F.pad(packs, (0, -packs.shape[1] % LINE))


def parted(packed: Tensor, levels: int, halves: int) -> tuple[Tensor, Tensor]:
    """The reverse of `joined`, for so many bytes and float16 numbers a pack."""
    return packed[:, :levels], packed[:, levels : levels + 2 * halves].contiguous().view(torch.float16)


def missing_kernels() -> str | None:
    """Say in words what keeps this machine from multiplying such layers; None where nothing does."""
    return f"{OFF}=0" if is_off() else wrong_kernels()


@cache
def wrong_kernels() -> str | None:
    """The same of the compiled kernels, which are tried once a process."""
    try:
        refuse_wrong_kernels([kind(torch.zeros(BLOCK, inputs)) for kind in (GroupedLinear8, GroupedLinear4) for inputs in (GROUP, 3 * GROUP)])
    except (NotBuilt, UserError) as error:
        return str(error)
    return None
