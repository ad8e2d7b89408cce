"""What each pass over a canvas is for: block by block, by a schedule, by the drawn steps of its positions, or by how sure the model is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..requests.rng import uniform
from .canvas import Canvas, CanvasSequence
from .orders import DEFAULT_ORDER, ORIGIN
from .remasking import commit_chance, remask_chance, share_at
from .schedule import arrival, blocks_of, counts, steps_of


class Task(NamedTuple):
    """What the next pass over a block is for: to make so many positions certain, or these, or, with None, to leave the whole block in the cache.

    What is in `remask` becomes masks again with it; without a position to be made certain no pass is needed for that.
    """

    block: range
    due: int | list[int] | None
    remask: list[int] = []


@dataclass(eq=False)
class Plan:
    """The tasks of an answer, each made of what the canvas has come to when it is asked for.

    `own_blocks` is the length of the blocks that the model itself is made for, each of which is read once more when it is done, as the next one sees it.
    """

    sequence: CanvasSequence
    canvas: Canvas
    own_blocks: int | None

    def __post_init__(self):
        self.params = self.sequence.request.params
        self.order = self.params.alg or DEFAULT_ORDER

    @property
    def window(self) -> range | None:
        """The positions that every pass reads; None where it is those of the block."""
        return None if self.own_blocks else self.canvas.all

    @property
    def end(self) -> int:
        """The first certain token that ends the answer: what is behind it does not matter. With remasking it still may."""
        if self.params.remask is not None:
            return len(self.canvas.ids)
        ends, certain = self.sequence.request.ends, zip(self.canvas.ids, self.canvas.open)
        return next((position for position, (id, is_open) in enumerate(certain) if not is_open and id in ends), len(self.canvas.ids))

    def wanted(self, block: range) -> list[int]:
        """The open positions of a block that can matter."""
        return self.canvas.open_in(range(block.start, min(block.stop, self.end)))

    def tasks(self) -> Iterator[Task]:
        """Yield what each pass makes certain: something in each, until nothing that can matter is open."""
        blocks = blocks_of(len(self.canvas.ids), self.own_blocks or self.params.block_length)
        open_in = {block: self.canvas.open_in(block) for block in blocks}
        filled = [block for block in blocks if open_in[block]]
        shares = dict(zip(filled, steps_of([open_in[block] for block in filled], self.params.steps)))
        for block in blocks:
            if block in shares:
                yield from self._passes(block, shares[block])
                yield from self._left(block)
            if self.own_blocks:
                yield Task(block, None)

    def _passes(self, block: range, steps: int) -> Iterator[Task]:
        if self.own_blocks and self.params.block_length == 1:
            return self._in_order(block)
        if self.order == ORIGIN:
            return self._by_arrival(block, steps) if self.params.remask is None else self._by_chance(block, steps)
        if self.params.confidence_threshold is None and self.params.entropy_bound is None:
            return self._by_count(block, steps)
        return self._as_sure(block)

    def _in_order(self, block: range) -> Iterator[Task]:
        """From left to right, one a pass."""
        while left := self.wanted(block):
            yield Task(block, left[:1])

    def _left(self, block: range) -> Iterator[Task]:
        """What did not go together with other tokens of its pass."""
        while left := self.wanted(block):
            yield Task(block, left if self.order == ORIGIN else 1)

    def _as_sure(self, block: range) -> Iterator[Task]:
        """As many as the model is sure enough of, one at least."""
        while self.wanted(block):
            yield Task(block, 1)

    def _by_count(self, block: range, steps: int) -> Iterator[Task]:
        """As many as the schedule says, and as many more as become masks again."""
        total, done = len(self.wanted(block)), 0
        for step, due in enumerate(counts(total, steps)):
            if not self.wanted(block):
                return
            left = total - done - due
            again = self._again(block, step, done / total, (done + due) / total)[:left]
            yield Task(block, due + len(again), again)
            done += due

    def _by_arrival(self, block: range, steps: int) -> Iterator[Task]:
        """Each position in its own step; a step that none has is left out."""
        found: dict[int, list[int]] = {}
        for position in self.canvas.open_in(block):
            found.setdefault(arrival(uniform(self.sequence.seed, position, "arrival"), steps), []).append(position)
        for step in sorted(found):
            if due := sorted({*found[step]} & {*self.wanted(block)}):
                yield Task(block, due)

    def _by_chance(self, block: range, steps: int) -> Iterator[Task]:
        """D3PM's order with remasking: by its law an open position's step is no longer one number drawn beforehand."""
        for step in range(steps):
            before, after = share_at(step, steps), share_at(step + 1, steps)
            moves = commit_chance(before, after, remask_chance(before, after, self.params.remask))
            due = [position for position in self.wanted(block) if uniform(self.sequence.seed, position, f"arrival {step}") < moves]
            again = sorted(self._again(block, step, before, after))
            if due or again:
                yield Task(block, due, again)

    def _again(self, block: range, step: int, before: float, after: float) -> list[int]:
        """Certain positions of a block that become masks again, in an order of chance: none that was published, or that the caller gave."""
        if self.params.remask is None:
            return []
        sigma = remask_chance(before, after, self.params.remask)
        fixed = self.canvas.pinned
        places = [at for at in block if at >= self.sequence.position and not self.canvas.open[at] and at not in fixed]
        drawn = sorted((uniform(self.sequence.seed, at, f"remask {step}"), at) for at in places)
        return [at for noise, at in drawn if noise < sigma]
