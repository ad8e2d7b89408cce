"""How likely a model finds ids behind ids: beginnings that several have in common are read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..filters.logits import wide
from ..requests.likelihoods import MAX_LOGITS
from ..runners.contract import Runner
from .budget import Budget
from .prefix_tree import Node, prefix_tree, unshared

MAX_POSITIONS = 8192  # new positions a pass
HELD = 32_768  # positions that slots hold at a time, those that they have in common counted in each; fewer where memory is short

Pair = tuple[list[int], list[int]]  # the ids of a prompt and of an answer


class Scored(NamedTuple):
    """What a model says of an answer's ids, [n] each: their log-probabilities, in float32 at least, and whether each is the likeliest in its place."""

    logprobs: Tensor
    likeliest: Tensor


def score_ids(runner: Runner, pairs: Sequence[Pair], sources: Sequence[list[int]] | None = None) -> list[Tensor]:
    """Return the log-probabilities of each answer's ids behind its prompt's ids, [n] each, as `judge_ids` finds them."""
    return [judged.logprobs for judged in judge_ids(runner, pairs, sources)]


def judge_ids(
    runner: Runner, pairs: Sequence[Pair], sources: Sequence[list[int]] | None = None, progress: Callable[[int], object] | None = None
) -> list[Scored]:
    """Judge each answer's ids behind its prompt's ids, in passes of bounded size; results are in the order given.

    `pairs` are (prompt, answer); `sources`, where given, what an encoder reads for each; `progress` is told how many pairs each pass has completed.

    What several pairs begin with is read once, over which they go on, where the runner's slots can be copied and cut. An answer that does not fit in a
    pass goes on in the next, over the cache: no position is computed twice.
    """
    reading = Reading(runner, pairs, sources)
    try:
        while reading.stack:
            done = reading.step()
            if progress is not None:
                progress(done)
    finally:
        runner.release(list(reading.slots))
    return [Scored(*map(torch.cat, zip(*parts))) for parts in reading.found]


@dataclass
class State:
    """How far a node was read, in which slot; how many children have none yet, and slots without use that hold all that stands before these."""

    at: int
    first: int  # position of the first logits that are wanted
    waiting: int
    slot: int | None = None
    spare: list[int] = field(default_factory=list)


class Bite(NamedTuple):
    """What a pass reads of a node: its ids up to `end`, with the logits of the last `rows`."""

    node: Node
    ids: Sequence[int]
    end: int
    rows: int


class Reading:
    """Pairs that are read as a tree, depth first, so that no more slots are held than the ways down need that were begun."""

    def __init__(self, runner: Runner, pairs: Sequence[Pair], sources: Sequence[list[int]] | None):
        can = runner.capabilities
        self.runner, self.pairs, self.sources = runner, pairs, sources
        self.ids = [prompt + answer[:-1] for prompt, answer in pairs]  # the last answer token predicts nothing that is asked for
        self.found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in pairs]
        shares = sources is None and can.fork and can.truncate and can.parts
        self.stack = (prefix_tree if shares else unshared)(self.ids)[::-1]  # what can be read next is last
        self.slots: set[int] = set()  # all that are held
        self._gone: list[int] = []  # of them those that nothing needs any more
        self._states: dict[Node, State] = {}
        self._held = 0
        self._room = min(HELD, Budget.default(runner.model).positions(runner)) if shares and any(root.children for root in self.stack) else HELD

    def step(self) -> int:
        """Run a pass, and judge what it tells; return how many pairs it has completed."""
        bites = self._next_pass()
        logits = self.runner.forward([self._states[bite.node].slot for bite in bites], [bite.ids for bite in bites], [bite.rows for bite in bites])
        self._judge(bites, logits)
        ended = [bite.node for bite in bites if bite.end == bite.node.end]
        for node in reversed(ended):
            self.stack += reversed(node.children)
        for node in ended:
            if not node.children:
                self._held -= node.end
                self._hand_up(node, [self._states[node].slot])
        self.runner.release(self._gone)  # together: what is left has to move less
        self.slots -= set(self._gone)
        self._gone = []
        return sum(len(self.ids[pair]) == node.end for node in ended for pair in node.members)

    def _next_pass(self) -> list[Bite]:
        """Take what fits in the next pass off the stack; what a pass breaks off stays there."""
        bites: list[Bite] = []
        positions = rows = promised = 0
        while self.stack:
            node = self.stack[-1]
            state = self._states.get(node) or self._begun(node)
            first, needs = max(state.first, state.at), needed(node)
            wanted = node.end - first
            full = positions + node.end - state.at > MAX_POSITIONS or wanted and rows == MAX_LOGITS
            if bites and (full or state.slot is None and self._held + promised + needs > self._room):
                break
            if wanted:  # a long prompt stands alone in its pass
                wanted = max(min(wanted, MAX_LOGITS - rows, MAX_POSITIONS - positions - (first - state.at)), 1)
            end = first + wanted
            if state.slot is None:
                state.slot = self._slot_for(node)
            bites.append(Bite(node, self.ids[node.members[0]][state.at : end], end, wanted))
            positions, rows, promised = positions + end - state.at, rows + wanted, promised + needs - node.end
            state.at = end
            if end < node.end:
                break
            self.stack.pop()
        return bites

    def _begun(self, node: Node) -> State:
        first = min(len(self.pairs[pair][0]) for pair in node.members) - 1  # which predicts the answer's first id
        state = self._states[node] = State(node.begin, min(max(first, node.begin), node.end), len(node.children))
        return state

    def _slot_for(self, node: Node) -> int:
        """Return a slot that holds what stands before a node: at best one that does already, its parent's for the last child, else a copy."""
        self._held += node.end
        if node.parent is None:
            slot = self.runner.allocate(() if self.sources is None else self.sources[node.members[0]])
            self.slots.add(slot)
            return slot
        parent = self._states[node.parent]
        parent.waiting -= 1
        if not parent.waiting:
            slot, parent.slot = parent.slot, None
            self._held -= node.parent.end
            spare, parent.spare = parent.spare, []
            self._hand_up(node.parent, spare)
            return slot
        giver = next((each for each in above(node) if self._states[each].spare), None)
        if giver is None:
            [slot] = self.runner.fork([parent.slot])
            self.slots.add(slot)
            return slot
        slot = self._states[giver].spare.pop()
        if giver is not node.parent:
            self.runner.copy(parent.slot, slot, giver.end, node.parent.end)
        return slot

    def _hand_up(self, node: Node, slots: list[int]) -> None:
        """Give slots that a node has no use for to the nearest node above that has, cut to what it holds; or back."""
        heir = next((each for each in above(node) if self._states[each].waiting), None)
        if heir is None:
            self._gone += slots
            return
        for slot in slots:
            self.runner.truncate(slot, heir.end)
        self._states[heir].spare += slots

    def _judge(self, bites: Sequence[Bite], logits: Tensor) -> None:
        """Find in a pass's logits, [rows, vocab], what is asked of them: a row may be asked of several ids."""
        asked: list[tuple[int, int]] = []  # a pair, and how many of its ids
        rows: list[int] = []
        targets: list[int] = []
        row = 0
        for bite in bites:
            start = bite.end - bite.rows
            for pair in bite.node.members if bite.rows else ():
                prompt, answer = self.pairs[pair]
                first = len(prompt) - 1
                begin = max(start, first)
                if begin < bite.end:
                    asked.append((pair, bite.end - begin))
                    rows += range(row + begin - start, row + bite.rows)
                    targets += answer[begin - first : bite.end - first]
            row += bite.rows
        if asked:
            counts = [count for _, count in asked]
            judged = zip(chosen(logits, targets, rows).split(counts), likeliest(logits, targets, rows).split(counts))
            for (pair, _), part in zip(asked, judged):
                self.found[pair].append(part)


def above(node: Node) -> Iterator[Node]:
    """Yield what a node goes on from, the nearest first."""
    while (node := node.parent) is not None:
        yield node


def needed(node: Node) -> int:
    """How many positions slots hold at a time for a node, and for those of its children that end there."""
    return max(node.end, sum(child.end for child in node.children if not child.children))


def chosen(logits: Tensor, targets: list[int], rows: list[int] | None = None) -> Tensor:
    """Return the log-probability of each target, [n], float32 at least: in its row of the logits, [rows, vocab], by default one after the other."""
    logits = wide(logits)
    at, ids = places(logits, targets, rows)
    return (logits[at, ids] - logits.logsumexp(dim=-1)[at]).cpu()


def likeliest(logits: Tensor, targets: list[int], rows: list[int]) -> Tensor:
    """Say of each target whether it has the highest of its row's logits, [n]; of equal ones the first has."""
    at, ids = places(logits, targets, rows)
    return (logits.argmax(dim=-1)[at] == ids).cpu()


def places(logits: Tensor, targets: list[int], rows: list[int] | None) -> tuple[Tensor, Tensor]:
    """Return the rows and ids of targets as indices of the logits."""
    return torch.tensor(range(len(targets)) if rows is None else rows, device=logits.device), torch.tensor(targets, device=logits.device)
