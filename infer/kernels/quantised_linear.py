"""Linear layers whose weights are kept in 8 or 4 bits; what goes in and comes out is bfloat16.

8 bits are vector-wise as in LLM.int8() (Dettmers et al. 2022): a scale for each output of the weight and for each row of the input, symmetric about
0; a second term of the input stands in for the outlier columns of the paper. 4 bits are group-wise, a scale and a zero for 32 neighbouring inputs of
an output, in the layout of torch's own kernel; `four_bits.py` finds both.
Nothing that is computed for a row depends on another row's values: where inputs are rounded to 8 bits, each row has a scale of its
own, which is why they are not left to a library: torch's dynamic quantisation shares one scale over a batch. How many rows there are
chooses the kernel, and with it the last bits of the result.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .device import cpu_has_bfloat16
from .four_bits import GROUP, Fitted, Grid, four_bits
from .int4_layout import BLOCK, pack, unpack

FINER = 254  # the second 8 bits of an input count this many times less than the first
ROWS_FOR_INT8_PRODUCT = 6  # from here on the integer product is faster, the rounding of activations included
ROWS_FOR_UNPACKING = 64  # from here on it pays to write the weights out and use the product of floats
NEVER = 1 << 62


class Quantised(nn.Module):
    """A linear layer with few bits a weight; `product` maps [rows, in] to [rows, out]."""

    bias: Tensor | None
    kind: str  # what its weights are called where it is told what computes

    def __init__(self, weight: Tensor, bias: Tensor | None):
        """weight is [out, in], bias [out]; neither is kept as it is."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.bfloat16))

    def product(self, x: Tensor) -> Tensor:
        """Return the product with the bias added: bfloat16 [rows, in] to [rows, out]."""
        raise NotImplementedError

    def like(self, weight: Tensor, bias: Tensor | None) -> Quantised:
        """Return a layer of another weight, [out, in], and bias, [out], that are kept and multiplied as this one's are."""
        raise NotImplementedError

    def borders(self) -> tuple[int, ...]:
        """Return the numbers of rows from which another kernel takes over."""
        raise NotImplementedError

    def dequantised(self) -> Tensor:
        """Return the weight that the layer stands for, [out, in] in float32."""
        return self._written_out(torch.float32)[: self.out_features]

    def _written_out(self, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError

    def _product_of_floats(self, x: Tensor) -> Tensor:
        """Multiply with the weights written out, in the dtype that this CPU multiplies faster."""
        dtype = torch.bfloat16 if cpu_has_bfloat16() else torch.float32
        return F.linear(x.to(dtype), self._written_out(dtype)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] of any dtype to bfloat16 [..., out]."""
        return self.product(x.reshape(-1, self.in_features).to(torch.bfloat16)).view(*x.shape[:-1], -1)

    def _finish(self, y: Tensor) -> Tensor:
        if y.shape[1] != self.out_features:
            y = y[:, : self.out_features]  # the rows that padding added
        return y if self.bias is None else y + self.bias


class Linear8(Quantised):
    """8 bits a weight, symmetric: weight = level * scale, levels int8 [out, in] in -127 to 127, one bfloat16 scale for each output, [out].

    A few rows are multiplied as they are. Of more, the inputs are rounded to one or two times 8 bits (`terms`): two lose
    nothing that could be measured, one is for inputs without outliers. `always` rounds the inputs of a few rows too.
    """

    kind = "int8"

    def __init__(self, weight: Tensor, bias: Tensor | None = None, terms: int = 2, always: bool = False):
        super().__init__(weight, bias)
        self.terms, self.always = terms, always
        self.integers_from, self.floats_from = NEVER, ROWS_FOR_UNPACKING
        if integer_product_is_fast() and integer_product_is_exact():
            self.integers_from, self.floats_from = 1 if always else ROWS_FOR_INT8_PRODUCT, NEVER
        weight = padded(weight.detach().float())
        scale = (weight.abs().amax(dim=1).clamp_min(1e-12) / 127).to(torch.bfloat16)
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (weight / scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8))

    def product(self, x: Tensor) -> Tensor:
        if len(x) >= self.integers_from:
            return self._finish(self._product_of_integers(x))
        if len(x) >= self.floats_from:
            return self._finish(self._product_of_floats(x))
        return self._finish(self._few_rows(x))

    def like(self, weight: Tensor, bias: Tensor | None) -> Linear8:
        return Linear8(weight, bias, self.terms, self.always)

    def borders(self) -> tuple[int, ...]:
        return tuple(border for border in (self.integers_from, self.floats_from) if border != NEVER)

    def _few_rows(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(x, self.weight, self.scale)

    def _product_of_integers(self, x: Tensor) -> Tensor:
        rounded, scale = rounded_rows(x, self.terms)
        sums = torch._int_mm(rounded, self.weight.t())
        if self.terms == 2:
            sums = sums[: len(x)] + sums[len(x) :] * (1 / FINER)
        return torch.mul(sums * scale, self.scale, out=x.new_empty(sums.shape))

    def _written_out(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype).mul_(self.scale.to(dtype)[:, None])


class Linear4(Quantised):
    """4 bits a weight: weight = (level - 8) * scale + zero, levels 0 to 15, a bfloat16 scale and zero for every `GROUP` inputs of an output."""

    kind, grid = "int4", Grid(-8, torch.bfloat16)

    def __init__(self, weight: Tensor, bias: Tensor | None = None, fitted: Fitted | None = None):
        """`fitted` is what stands for the weight where that is known already."""
        super().__init__(weight, bias)
        levels, scale, zero = map(padded, fitted or four_bits(weight.detach().float(), *self.grid))
        self.register_buffer("packed", pack(levels.to(torch.int32)))
        self.register_buffer("scale_and_zero", torch.stack([scale, zero], dim=-1).transpose(0, 1).contiguous())  # [groups, out, 2]

    def product(self, x: Tensor) -> Tensor:
        if len(x) < ROWS_FOR_UNPACKING:
            return self._finish(self._few_rows(x))
        return self._finish(self._product_of_floats(x))

    def _few_rows(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, GROUP, self.scale_and_zero)

    def like(self, weight: Tensor, bias: Tensor | None) -> Linear4:
        return Linear4(weight, bias)

    def borders(self) -> tuple[int, ...]:
        return (ROWS_FOR_UNPACKING,)

    def _written_out(self, dtype: torch.dtype) -> Tensor:
        levels = unpack(self.packed, self.in_features).to(dtype).sub_(8).view(-1, self.in_features // GROUP, GROUP)
        scale, zero = self.scale_and_zero.to(dtype).transpose(0, 1)[..., None].unbind(2)
        return torch.addcmul(zero, levels, scale, out=levels).view(-1, self.in_features)


class OutputSlice(nn.Module):
    """Stands where one of several layers stood that were quantised as one: some of the outputs of the whole."""

    def __init__(self, whole: Quantised, start: int, stop: int):
        super().__init__()
        self.whole, self.start, self.stop = whole, start, stop

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., stop - start]."""
        return self.whole(x)[..., self.start : self.stop]


def padded(weight: Tensor) -> Tensor:
    """Return the weight, [out, in], with rows of zeros up to a whole number of blocks of BLOCK outputs."""
    return F.pad(weight, (0, 0, 0, -len(weight) % BLOCK))


def rounded_rows(x: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """Round each row of [rows, n] to 8 bits by its own largest value: int8 [terms * rows, n] and float32 scales [rows, 1].

    With two terms the second half of the rows is what rounding lost, in steps `FINER` times as small.
    """
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp_min_(1e-12).mul_(1 / 127)
    exact = torch.div(x, scale)
    first = exact.round()
    if terms == 1:
        return first.to(torch.int8), scale
    return torch.cat([first, exact.sub_(first).mul_(FINER).round_()]).to(torch.int8), scale


def integer_product_is_fast() -> bool:
    """Whether the CPU sums products of 8-bit integers by instruction; without, torch takes 25 times as long as for floats."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni") or capabilities.get("amx_int8"))


@cache
def integer_product_is_exact() -> bool:
    """Whether products of the largest 8-bit integers come out right: some kernels add pairs in 16 bits, which overflow."""
    ends = torch.tensor([-127, 127], dtype=torch.int8)
    rows = ends[torch.randint(0, 2, (32, 256), generator=torch.Generator().manual_seed(0))]
    rows[0], rows[1] = 127, -127
    return torch.equal(torch._int_mm(rows, rows.t()).double(), rows.double() @ rows.double().t())
