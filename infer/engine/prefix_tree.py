"""Which beginnings several sequences of ids have in common, as a tree: what is read of one is not read again for the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ..requests.sequence import shared_length

SAVED = 16  # positions that must be saved by reading a beginning first: for fewer, one pass of all is as quick as one more before it


@dataclass(eq=False)
class Node:
    """A stretch of ids, from `begin` to `end`, that all its `members` have, behind what its parent has read; a member ends here, or in a child."""

    members: Sequence[int]
    begin: int
    end: int
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)


def prefix_tree(sequences: Sequence[Sequence[int]]) -> list[Node]:
    """Return the roots of a tree in which each sequence is a way down, in the order of their ids.

    A beginning that several share is a node of its own where that saves `SAVED` positions or more, or where they are alike to their ends; else each
    of them reads it. An empty sequence is nowhere.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    alike = [shared_length(sequences[a], sequences[b]) for a, b in pairwise(order)]  # of each with the next: all between two places share the least
    roots: list[Node] = []
    todo: list[tuple[int, int, int, Node | None]] = [(0, len(order), 0, None)] if order else []
    while todo:
        low, high, begin, parent = todo.pop()
        longest = len(sequences[order[high - 1]])
        common = min(alike[low : high - 1], default=longest)
        if common == longest or (high - low - 1) * (common - begin) >= SAVED:
            if common > begin:
                node = Node(order[low:high], begin, common, parent)
                (roots if parent is None else parent.children).append(node)
                begin, parent = common, node
            if common == longest:
                continue
        borders = [low, *(at for at in range(low + 1, high) if alike[at - 1] == common), high]
        todo += [(a, b, begin, parent) for a, b in reversed(list(pairwise(borders)))]
    return roots


def unshared(sequences: Sequence[Sequence[int]]) -> list[Node]:
    """Return the roots of a tree in which each sequence stands alone, in the order given."""
    return [Node([i], 0, len(ids)) for i, ids in enumerate(sequences)]
