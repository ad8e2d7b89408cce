"""Linear layers in the blocks of a GGUF file that neither 8 nor 4 bits by groups are: 5 bits, and super-blocks of 256 inputs (its K kinds), by the kernels of `integers.h`."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.quantised_linear import GROUP
from .grouped_linear import GroupedLinear, held, joined, low_bits, parted, parted_with_offsets, runs, steps, with_offsets, words
from .library import BLOCK, INT5, SUPER4, SUPER5, SUPER6

SUPER = 256  # inputs that share a float16 scale
TINY = torch.finfo(torch.float32).tiny
SHARES = 16  # bytes of a super-block that say what part of it a group has: a scale's and an offset's, or of 6 bits a scale's of each half


class GroupedLinear5(GroupedLinear):
    """5 bits a weight, as GGUF's Q5_0 and Q5_1: weight = level * scale + offset, levels 0 to 31, a float16 scale and offset a group."""

    dtype, kind = INT5, "int5"

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        groups = weight.detach().float().view(len(weight), -1, GROUP)
        low, high = groups.amin(dim=-1), groups.amax(dim=-1)
        scales, offsets = held(((high - low) / 30).half(), weight), held(low.half(), weight)
        levels = nearest(groups - offsets.float()[..., None], scales.float()[..., None], 31)
        super().__init__(weight, bias, with_offsets(runs(in_words(levels, 5)), scales, offsets))

    def _written_out(self, dtype: torch.dtype) -> Tensor:
        packed, scales, offsets = parted_with_offsets(self.packed, self.in_features, 5)
        levels = out_of_words(packed, 5).view(len(scales), -1, GROUP).float()
        return (levels * scales.float()[..., None] + offsets.float()[..., None]).view(-1, self.in_features).to(dtype)


class SuperLinear(GroupedLinear):
    """A linear layer in super-blocks of 256 inputs: a group's scale is a float16 number of the super-block times a byte of its own, which is exact in float32."""

    bits: int
    halves: int  # float16 numbers of a super-block

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return levels, uint8 [out, in], float16 numbers, [out, supers, halves], and shares, uint8 [out, supers, SHARES], those that fill up the last pack among them."""
        supers, size = self.in_features // SUPER, 2 * BLOCK * self.halves + BLOCK * SHARES
        levels, rest = parted(self.packed, BLOCK * self.in_features * self.bits // 8, supers * size // 2)
        rest = rest.view(torch.uint8).view(-1, supers, size)
        numbers, shares = rest.split([2 * BLOCK * self.halves, BLOCK * SHARES], dim=2)
        numbers = numbers.contiguous().view(torch.float16).view(-1, supers, self.halves, BLOCK)
        told = [each.permute(0, 3, 1, 2).contiguous().view(-1, supers, each.shape[2]) for each in (numbers, shares.reshape(-1, supers, SHARES, BLOCK))]
        return out_of_words(words(levels), self.bits), *told


class SuperLinear4(SuperLinear):
    """4 bits a weight, as GGUF's Q4_K: weight = level * (d * share) - dmin * share of the offset; levels 0 to 15, shares 0 to 63."""

    dtype, kind, bits, halves = SUPER4, "q4_k", 4, 2

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        groups = weight.detach().float().view(len(weight), -1, SUPER // GROUP, GROUP)
        low = groups.amin(dim=-1).clamp(max=0)
        wanted = torch.stack([(groups.amax(dim=-1) - low) / (15 if self.bits == 4 else 30), -low], dim=-1)  # scales and offsets
        numbers = held((wanted.amax(dim=2) / 63).half(), weight)
        shares = nearest(wanted, numbers.float()[:, :, None], 63)
        scales, offsets = (numbers.float()[:, :, None] * shares)[..., None].unbind(3)
        levels = nearest(groups + offsets, scales, 2**self.bits - 1)
        super().__init__(weight, bias, pack_super(in_words(levels.view(weight.shape), self.bits), numbers, shares.flatten(2)))

    def _written_out(self, dtype: torch.dtype) -> Tensor:
        levels, numbers, shares = self.parts()
        scales, offsets = (numbers.float()[:, :, None] * shares.view(*shares.shape[:2], -1, 2).float()).unbind(-1)
        return (levels.view(*scales.shape, GROUP).float() * scales[..., None] - offsets[..., None]).view(-1, self.in_features).to(dtype)


class SuperLinear5(SuperLinear4):
    """5 bits a weight, as GGUF's Q5_K: the same with levels 0 to 31."""

    dtype, kind, bits = SUPER5, "q5_k", 5


class SuperLinear6(SuperLinear):
    """6 bits a weight, as GGUF's Q6_K: weight = (level - 32) * (d * share), levels 0 to 63, a share, -128 to 127, for each 16 inputs."""

    dtype, kind, bits, halves = SUPER6, "q6_k", 6, 1

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        parts = weight.detach().float().view(len(weight), -1, SHARES, SUPER // SHARES)
        ends = parts.gather(-1, parts.abs().argmax(dim=-1, keepdim=True)).squeeze(-1) / -32  # the greater side has one level more
        numbers = held((ends.abs().amax(dim=-1, keepdim=True) / 127).half(), weight)
        shares = (ends / numbers.float().clamp_min(TINY)).round_().to(torch.int8)
        levels = nearest(parts, (numbers.float() * shares)[..., None], 31, -32) + 32
        super().__init__(weight, bias, pack_super(in_words(levels.view(weight.shape).byte(), self.bits), numbers, shares.view(torch.uint8)))

    def _written_out(self, dtype: torch.dtype) -> Tensor:
        levels, numbers, shares = self.parts()
        scales = numbers.float() * shares.view(torch.int8).float()
        return ((levels.view(*scales.shape, -1).float() - 32) * scales[..., None]).view(-1, self.in_features).to(dtype)


BLOCK_LINEARS = (GroupedLinear5, SuperLinear4, SuperLinear5, SuperLinear6)


def nearest(numbers: Tensor, step: Tensor, top: int, low: int = 0) -> Tensor:
    """The whole multiples of a step, from `low` to `top`, that lie nearest to numbers, in bytes; 0 where the step is."""
    return torch.where(step == 0, 0, numbers / step).round_().clamp_(low, top).to(torch.int8 if low else torch.uint8)


def pack_super(levels: Tensor, numbers: Tensor, shares: Tensor) -> Tensor:
    """The bytes of packs, uint8 [packs, bytes], of levels as words, int32 [out, words], float16 numbers, [out, supers, halves], and shares, uint8 [out, supers, SHARES]."""
    supers = numbers.shape[1]
    parts = [steps(each.flatten(1)).contiguous().view(-1, supers, each.shape[2] * BLOCK).view(torch.uint8) for each in (numbers, shares)]
    return joined(runs(levels), torch.cat(parts, dim=2).flatten(1))


def in_words(levels: Tensor, bits: int) -> Tensor:
    """Levels of 4, 5 or 6 bits, uint8 [out, in] or in groups, as words in the order of a pack: int32 [out, in * bits / 32]."""
    levels = levels.reshape(len(levels), -1, GROUP)
    lower = low_bits(levels.flatten(1)).view(torch.int32)
    higher = levels.view(torch.int32) >> 4 & (0x03030303 if bits == 6 else 0x01010101)  # [out, groups, runs]
    return torch.cat([lower, high_bits(higher, bits)], dim=2).flatten(1)


def high_bits(higher: Tensor, bits: int) -> Tensor:
    """What levels of 5 or 6 bits have above the fourth, int32 [out, groups, runs] in each of its bytes, in one word a group or two: [out, groups, bits - 4]."""
    found = higher.new_zeros(*higher.shape[:2], bits - 4)
    for run in range(higher.shape[2] if bits > 4 else 0):
        if bits == 5:
            found[..., 0] |= higher[..., run] << run
        else:
            found[..., run // 4] |= higher[..., run] << 2 * (run % 4)
    return found


def out_of_words(packed: Tensor, bits: int) -> Tensor:
    """The reverse of `in_words`: levels, uint8 [out, in]."""
    packed = packed.view(len(packed), -1, bits)
    lower = packed[..., :4].contiguous().view(torch.uint8)
    levels = torch.cat([lower & 15, lower >> 4], dim=2).view(torch.int32)  # [out, groups, runs]
    for run in range(levels.shape[2] if bits > 4 else 0):
        high = packed[..., 4] >> run & 0x01010101 if bits == 5 else packed[..., 4 + run // 4] >> 2 * (run % 4) & 0x03030303
        levels[..., run] |= high << 4
    return levels.view(torch.uint8).flatten(1)
