"""Tensors of a GGUF file in their own blocks: each kind's bytes in the order of the native kernels' packs, nothing rounded.

Layouts are those of ggml-common.h: little-endian float16 scales, levels by halves of bytes, what they have above the fourth bit aside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, quants
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from ...data.errors import UserError
from ..runners.native.block_linear import GroupedLinear5, SuperLinear4, SuperLinear5, SuperLinear6, high_bits, pack_super
from ..runners.native.grouped_linear import GroupedLinear, GroupedLinear4, GroupedLinear8, joined, runs, steps, with_offsets
from ..runners.native.library import BLOCK

AT_A_TIME = 128 * BLOCK  # rows, whose bytes stay in the CPU's cache
ONES, THREES, FIFTEENS = 0x01010101, 0x03030303, 0x0F0F0F0F  # in each byte of a word
FLOATS = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}


class Block(NamedTuple):
    """A kind of blocks: the layer that multiplies them, and how its packs are made of them, uint8 [rows, blocks, bytes] to [packs, bytes]."""

    layer: type[GroupedLinear]
    pack: Callable[[Tensor], Tensor]


def layer_of(raw: Tensor, kind: Kind, bias: Tensor | None) -> GroupedLinear:
    """Return the linear layer of a weight in blocks of one of `BLOCKS`, uint8 [out, bytes]; raises UserError for scales that are no numbers."""
    layer, inputs = BLOCKS[kind].layer, inputs_of(raw, kind)
    packed = torch.cat([_packed(part, kind) for part in raw.split(AT_A_TIME)])
    return layer.of_packs(packed, len(raw), inputs, bias)


def floats_of(raw: Tensor, kind: Kind, dtype: torch.dtype) -> Tensor:
    """Return a tensor's numbers, [..., in] in a dtype, of its rows as they are kept, uint8 [..., bytes]; raises UserError for what cannot be dequantised."""
    if kind in FLOATS:
        return raw.contiguous().view(FLOATS[kind]).to(dtype, copy=True)  # of its own: the file may change
    rows, inputs = raw.view(-1, raw.shape[-1]), inputs_of(raw, kind)
    if kind not in BLOCKS:
        try:
            return torch.from_numpy(quants.dequantize(np.ascontiguousarray(raw.numpy()), kind)).to(dtype)
        except NotImplementedError:
            raise UserError(f"weights of the kind {kind.name} cannot be read: use another file of the model") from None
    written = torch.empty(len(rows), inputs, dtype=dtype)
    for part, to in zip(rows.split(AT_A_TIME), written.split(AT_A_TIME)):
        to.copy_(BLOCKS[kind].layer.of_packs(_packed(part, kind), len(part), inputs).dequantised())
    return written.view(*raw.shape[:-1], inputs)


def inputs_of(raw: Tensor, kind: Kind) -> int:
    """How many numbers a row holds."""
    block, size = GGML_QUANT_SIZES[kind]
    return raw.shape[-1] // size * block


def _packed(rows: Tensor, kind: Kind) -> Tensor:
    return BLOCKS[kind].pack(rows.reshape(len(rows), -1, GGML_QUANT_SIZES[kind][1]))


def _words(raw: Tensor, begin: int, end: int) -> Tensor:
    """Bytes of each block as words of four: int32 [rows, blocks, words]."""
    return raw[..., begin:end].contiguous().view(torch.int32)


def _halves(raw: Tensor, begin: int) -> Tensor:
    """A float16 number of each block, [rows, blocks]."""
    found = raw[..., begin : begin + 2].contiguous().view(torch.float16)[..., 0]
    if not found.isfinite().all():
        raise UserError("a block's scale is no number: the file is damaged, fetch it again")
    return found


def _times(scales: Tensor, factor: int) -> Tensor:
    """Offsets, float16; raises UserError where they are beyond it, which a weight never is that a model was trained with."""
    offsets = scales * factor
    if not offsets.isfinite().all():
        raise UserError(f"a block's scale is {scales.abs().max():.3g}, {-factor} times of which float16 does not hold: give dtype float32, which dequantises")
    return offsets


def _q8_0(raw: Tensor) -> Tensor:
    return joined(runs(_words(raw, 2, 34).flatten(1)), steps(_halves(raw, 0)).flatten(1))


def _q4_0(raw: Tensor) -> Tensor:
    scales = _halves(raw, 0)
    return with_offsets(runs(_words(raw, 2, 18).flatten(1)), scales, _times(scales, -8))


def _q4_1(raw: Tensor) -> Tensor:
    return with_offsets(runs(_words(raw, 4, 20).flatten(1)), _halves(raw, 0), _halves(raw, 2))


def _fives(lower: Tensor, fifth: Tensor) -> Tensor:
    """Levels in words, [rows, words], of their lower halves and of a word of fifth bits, an input each, [rows, blocks, 1]."""
    four = torch.arange(0, 32, 4, dtype=torch.int32)
    spread = (fifth >> four & 15) * 0x00204081 & ONES  # a run's four bits, each to a byte of its own: [rows, blocks, runs]
    return torch.cat([lower, high_bits(spread, 5)], dim=2).flatten(1)


def _q5_0(raw: Tensor) -> Tensor:
    scales = _halves(raw, 0)
    return with_offsets(runs(_fives(_words(raw, 6, 22), _words(raw, 2, 6))), scales, _times(scales, -16))


def _q5_1(raw: Tensor) -> Tensor:
    return with_offsets(runs(_fives(_words(raw, 8, 24), _words(raw, 4, 8))), _halves(raw, 0), _halves(raw, 2))


def _apart(pairs: Tensor) -> Tensor:
    """The lower halves of 32 bytes as a group, and the upper as another: int32 [..., 8] to [..., 2, 4], each with its second half of inputs in upper halves."""
    first, second = pairs.unflatten(-1, (2, 4)).unbind(-2)
    lower = first & FIFTEENS | (second & FIFTEENS) << 4
    upper = first >> 4 & FIFTEENS | second & ~FIFTEENS
    return torch.stack([lower, upper], dim=-2)


def _six_bits(raw: Tensor) -> Tensor:
    """Eight scales and eight offsets of 6 bits in 12 bytes, uint8 [rows, supers, 12], side by side: [rows, supers, 16]."""
    scales, offsets, rest = raw.unflatten(-1, (3, 4)).unbind(-2)
    last = (rest & 15 | (scales >> 6) << 4, rest >> 4 | (offsets >> 6) << 4)
    whole = [torch.cat([first & 63, second], dim=-1) for first, second in zip((scales, offsets), last)]
    return torch.stack(whole, dim=-1).flatten(-2)


def _both(raw: Tensor) -> Tensor:
    """d and dmin of each super-block, float16 [rows, supers, 2]."""
    return torch.stack([_halves(raw, 0), _halves(raw, 2)], dim=-1)


def _q4_k(raw: Tensor) -> Tensor:
    levels = _apart(_words(raw, 16, 144).unflatten(-1, (4, 8)))  # two groups in 32 bytes
    return pack_super(levels.flatten(1), _both(raw), _six_bits(raw[..., 4:16]))


def _q5_k(raw: Tensor) -> Tensor:
    lower = _apart(_words(raw, 48, 176).unflatten(-1, (4, 8))).flatten(-3, -2)  # [rows, supers, groups, 4]
    numbers = torch.arange(8, dtype=torch.int32)[:, None]
    fifth = _words(raw, 16, 48)[..., None, :] >> numbers & ONES  # of an input each, a bit a group: [rows, supers, groups, runs]
    levels = torch.cat([lower, high_bits(fifth.flatten(1, 2), 5).view(*lower.shape[:3], 1)], dim=-1)
    return pack_super(levels.flatten(1), _both(raw), _six_bits(raw[..., 4:16]))


def _q6_k(raw: Tensor) -> Tensor:
    # of each half of a super-block 64 bytes, whose lower halves are its first two groups, the upper the others; 32 bytes of two more bits, a group each
    lower = _apart(_words(raw, 0, 128).unflatten(-1, (2, 2, 8))).transpose(-3, -2).flatten(-4, -2)  # [rows, supers, groups, 4]
    twos = torch.arange(0, 8, 2, dtype=torch.int32)[:, None]
    higher = (_words(raw, 128, 192).unflatten(-1, (2, 1, 8)) >> twos & THREES).flatten(-3, -2)  # [rows, supers, groups, runs]
    levels = torch.cat([lower, high_bits(higher.flatten(1, 2), 6).view(*lower.shape[:3], 2)], dim=-1)
    return pack_super(levels.flatten(1), _halves(raw, 208)[..., None], raw[..., 192:208].contiguous())


BLOCKS = {
    Kind.Q8_0: Block(GroupedLinear8, _q8_0), Kind.Q4_0: Block(GroupedLinear4, _q4_0), Kind.Q4_1: Block(GroupedLinear4, _q4_1),
    Kind.Q5_0: Block(GroupedLinear5, _q5_0), Kind.Q5_1: Block(GroupedLinear5, _q5_1), Kind.Q4_K: Block(SuperLinear4, _q4_k),
    Kind.Q5_K: Block(SuperLinear5, _q5_k), Kind.Q6_K: Block(SuperLinear6, _q6_k),
}  # fmt: skip
