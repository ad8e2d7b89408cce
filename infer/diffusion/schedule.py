"""How many positions become certain in which pass, or in which pass each does."""

from __future__ import annotations

from collections.abc import Sequence, Sized

EPS = 1e-3  # where Dream's timesteps end


def even(count: int, parts: int) -> list[int]:
    """Split a count into so many parts that differ by one at most, the greater ones first (LLaDA's schedule).

    >>> even(12, 5)
    [3, 3, 2, 2, 2]
    """
    return [count // parts + (part < count % parts) for part in range(parts)]


def blocks_of(length: int, block_length: int | None) -> list[range]:
    """The blocks of a canvas, the last of which may be shorter; without a length one.

    >>> blocks_of(5, 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    step = block_length or length
    return [range(begin, min(begin + step, length)) for begin in range(0, length, step)]


def steps_of(blocks: Sequence[Sized], steps: int | None) -> list[int]:
    """Share steps out among blocks of positions, one each at least; without a number, a step for each position.

    >>> steps_of(blocks_of(5, 2), 4)
    [2, 1, 1]
    """
    if steps is None:
        return [len(block) for block in blocks]
    return [max(share, 1) for share in even(steps, len(blocks))]


def counts(length: int, steps: int) -> list[int]:
    """How many of a block's positions each pass makes certain: all passes make one so, and there are no more than positions.

    >>> counts(8, 16), counts(8, 3)
    ([1, 1, 1, 1, 1, 1, 1, 1], [3, 3, 2])
    """
    return even(length, min(steps, length))


def arrival(noise: float, steps: int) -> int:
    """The step, from 0, in which a position becomes certain whose noise is uniform in [0, 1), by D3PM's law as Dream has it.

    The timesteps t go evenly from 1 down to EPS; a position that is open at t becomes certain in the step to s with probability 1 - s / t, and
    in the last step for sure. So it is still open after step i with probability t[i + 1], whatever the others do.

    >>> [arrival(noise, 4) for noise in (0.0, 0.3, 0.7, 0.9)]
    [3, 2, 1, 0]
    """
    return next(step for step in range(steps) if step == steps - 1 or noise >= 1 - (step + 1) * (1 - EPS) / steps)
