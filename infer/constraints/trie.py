"""The answer is one of a set of given sequences of ids; llguidance, which the grammars use, knows texts alone, whatever their ids."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ...data.literal import literal_ids
from ...data.seq2seq.encoding import beginning_ids
from ..requests.sequence import TokenSequence

Node = dict  # id -> Node; END where a path is complete
END = None


class Trie:
    """Keeps an answer on the paths of a trie; an id in `ends` can come exactly where a path is complete."""

    name = "trie"

    def __init__(self, root: Node, ends: Collection[int]):
        self._node: Node | None = root
        self._ends = frozenset(ends)

    def mask(self, sequence: TokenSequence, scores: Tensor) -> Tensor:
        """[1, vocab] to [1, vocab]."""
        if self._node is None:
            return torch.full_like(scores, -torch.inf)
        allowed = [id for id in self._node if id is not END and id < scores.shape[1]]
        allowed += [id for id in self._ends if END in self._node and id < scores.shape[1]]
        kept = torch.full_like(scores, -torch.inf)
        kept[:, allowed] = scores[:, allowed]
        return kept

    @property
    def longest(self) -> int:
        """How many tokens the longest path from here has."""
        count, level = 0, [self._node or {}]
        while level := [further for node in level for id, further in node.items() if id is not END]:
            count += 1
        return count

    @property
    def must_end(self) -> bool:
        """Whether nothing but the end can come."""
        return self._node is not None and set(self._node) == {END}

    def accept(self, id: int) -> None:
        """Hear of the sequence's next token."""
        if self._node is not None and not (id in self._ends and END in self._node):
            self._node = self._node.get(id)

    def takes(self, ids: Sequence[int]) -> bool:
        """Whether the answer may begin with these ids."""
        node = self._node
        for id in ids:
            node = None if node is None else node.get(id)
        return node is not None

    def fork(self) -> Trie:
        """Return one that goes on from here by itself."""
        return copy.copy(self)


def paths(tokenizer: PreTrainedTokenizerBase, given: Iterable[str | Sequence[int]], begins: bool = False) -> list[list[int]]:
    """Return the ids of every path; a text's are those of its continuation, where it `begins` a text of its own those of that, no part of it a control token.

    Raises UserError for an empty one.
    """
    text_ids = partial(beginning_ids, first=()) if begins else literal_ids
    found = []
    for path in given:
        if not isinstance(path, str | list | tuple):
            raise UserError(f"trie must be a list of texts or of lists of ids, got the entry {path!r}")
        ids = list(path) if not isinstance(path, str) else text_ids(tokenizer, path) if path else []
        if not ids:
            raise UserError(f"trie has an empty path, {path!r}: leave it out")
        for id in ids:
            if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < len(tokenizer):
                raise UserError(f"trie has the id {id!r}, but the tokenizer's {len(tokenizer)} ids begin at 0")
        found.append(ids)
    return found


def trie_of(sequences: Iterable[Sequence[int]]) -> Node:
    """Return the root of a trie of the sequences."""
    root: Node = {}
    for ids in sequences:
        node = root
        for id in ids:
            node = node.setdefault(id, {})
        node[END] = True
    return root
