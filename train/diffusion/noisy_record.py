"""An answer with masks behind its prompt, as it goes through the model: as it stands, or, of a model of blocks, behind the answer without masks.

A block that is being filled in sees the finished ones before it as they were read when they were done, without masks. So that all blocks of an
answer are learnt in one pass, the clean blocks stand first, and behind them a masked copy of each, at the same positions (Arriola et al. 2025,
"Block Diffusion", the vectorised training). `attend_both_ways` knows who sees whom. No copy sees the last block without masks, which is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ...infer.diffusion.schedule import blocks_of
from ...infer.runners.paradigm import BIDIRECTIONAL, Diffusion


@dataclass(frozen=True)
class NoisyRecord:
    """What the model reads, `input_ids` and `position_ids`, the last `copied` tokens being the answer with its masks.

    `read_at` are the places where each of the answer's tokens is read. `causal` is how many of the first tokens see only what stands before them.
    """

    input_ids: list[int]
    position_ids: list[int]
    read_at: list[int]
    causal: int
    copied: int


def noisy_record(prompt: list[int], answer: list[int], masked: Sequence[bool], diffusion: Diffusion) -> NoisyRecord:
    """Lay an answer, of which some tokens are `masked`, behind its prompt.

    Under a shift the first token of a block is read where what stands before the block ends, which has no masks.

    >>> record = noisy_record([5], [6, 7, 8], [True, False, True], Diffusion(0, shift=1, attention="block_causal", block_length=2))
    >>> record.input_ids, record.position_ids, record.read_at
    ([5, 6, 7, 0, 7, 0], [0, 1, 2, 1, 2, 3], [0, 3, 2])
    """
    first, blocks = len(prompt), blocks_of(len(answer), diffusion.block_length)
    clean, starts = blocks[-1].start, {block.start for block in blocks}
    canvas = [diffusion.mask_token_id if hidden else id for id, hidden in zip(answer, masked, strict=True)]
    border = first + clean
    return NoisyRecord(
        [*prompt, *answer[:clean], *canvas],
        [*range(border), *range(first, first + len(answer))],
        [first + place - 1 if diffusion.shift and place in starts else border + place - diffusion.shift for place in range(len(answer))],
        0 if diffusion.attention == BIDIRECTIONAL else first,
        len(canvas),
    )
