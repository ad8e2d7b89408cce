"""The tree that a beam search walked, from its records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..requests.events import Result
from ..requests.trace import BeamTrace


@dataclass
class Node:
    """A token that a beam took at a step, with the sum of log-probabilities so far; the root has none.

    `lane` is its place among the beams of its step, `endings` are the answers that it is the last unfinished token of.
    """

    step: int
    lane: int
    id: int | None
    total: float
    children: list[Node] = field(default_factory=list)
    endings: list[Result] = field(default_factory=list)
    returned: bool = False  # an answer that was returned goes through it

    def walk(self) -> Iterator[Node]:
        """This node and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def beam_tree(beams: Sequence[tuple[int, BeamTrace]], results: Sequence[Result]) -> Node:
    """Return the root of all beams that lived at some step; the results mark the ways that they took."""
    root = Node(-1, 0, None, 0.0)
    before = [root]
    for step, (_, record) in enumerate(beams):
        row = []
        for lane, (parent, id, total) in enumerate(record.live):
            node = Node(step, lane, id, total)
            before[parent if step else 0].children.append(node)  # at first all go out from the prompt
            row.append(node)
        if row:
            before = row
    begin = beams[0][0] if beams else 0
    for result in results:
        mark(root, result, begin)
    return root


def mark(root: Node, result: Result, begin: int) -> None:
    """Follow an answer, whose first `begin` tokens were given, as far as it was a live beam.

    Groups of beams may walk the same way for a while: the answer is of the one that walks it the farthest.
    """
    ids = result.ids[begin:]
    reached = [[root]]
    for id in ids:
        further = [[*way, child] for way in reached for child in way[-1].children if child.id == id]
        if not further:
            break
        reached = further
    for node in reached[0]:
        node.returned = True
    reached[0][-1].endings.append(result)


def chains(node: Node) -> tuple[list[Node], Node]:
    """Follow a node down while it has one child and nothing ends: the nodes on the way, itself first, and the last of them."""
    way = [node]
    while len(way[-1].children) == 1 and not way[-1].endings:
        way.append(way[-1].children[0])
    return way, way[-1]
