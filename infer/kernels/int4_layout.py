"""How torch's 4-bit kernel lays weights out in bytes: found by packing known ones, for it differs with the CPU's instructions."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ...data.errors import UserError

BLOCK = 64  # rows: a whole number of blocks in every layout


def pack(levels: Tensor) -> Tensor:
    """Return levels 0 to 15, int32 [out, in], as the kernel's bytes; out is a multiple of BLOCK."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1)


def unpack(packed: Tensor, in_features: int) -> Tensor:
    """Return the levels that were packed, uint8 [out, in]."""
    return _in_order(packed, in_features, found_layout())


@cache
def found_layout() -> tuple[int, ...]:
    """Return where the rows of a block lie: for each row its place among the lower halves of the bytes, then the upper ones.

    With AVX512 a block has 64 rows, with AVX2 32; without either the rows of a byte are neighbours.
    Raises UserError where known weights do not come back by any such order.
    """
    row = torch.arange(BLOCK)[:, None].expand(BLOCK, 32)
    digits = [pack(digit.to(torch.int32).contiguous()).flatten().int() for digit in (row % 16, row // 16)]
    held = [sum((digit >> bits & 15) << 4 * i for i, digit in enumerate(digits)) for bits in (0, 4)]  # the row of each half byte
    known = torch.randint(0, 16, (2 * BLOCK, 96), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    for size in (64, 32, 16):
        rows = torch.cat([half[: size // 2] for half in held])
        layout = tuple(rows.argsort().tolist())
        if rows.sort().values.tolist() == list(range(size)) and torch.equal(_in_order(pack(known), 96, layout), known.to(torch.uint8)):
            return layout
    capability = torch.backends.cpu.get_cpu_capability()
    raise UserError(f"weights=int4: torch {torch.__version__} packs 4 bits in an unknown order on this CPU ({capability}): choose int8")


def _in_order(packed: Tensor, in_features: int, layout: tuple[int, ...]) -> Tensor:
    pairs = packed.view(-1, in_features, len(layout) // 2).transpose(1, 2)
    levels = torch.stack([pairs & 15, pairs >> 4], dim=1).view(-1, len(layout), in_features)  # [blocks, rows as they lie, in]
    if layout != tuple(range(len(layout))):
        levels = levels[:, list(layout)]
    return levels.view(-1, in_features)
