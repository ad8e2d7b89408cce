"""A canvas that becomes one of several texts, whichever of its positions becomes certain first."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import takewhile

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...data.chat import end_of_turn_ids
from ...data.errors import UserError
from ...data.literal import literal_ids
from ..requests.params import RequestParams
from ..requests.sequence import TokenSequence
from ..text.vocabulary import Vocabulary
from .grammar import check_spelling
from .trie import paths

END = -1  # stands where a candidate is over


class Candidates:
    """Lets each position of a canvas become only what one of the candidates has there that agree with all tokens that are certain.

    A candidate is over where an end token stands, or the canvas ends; what follows the end does not matter.
    """

    must_end = False  # an end that is all that may come is no shorter than the answer must be

    def __init__(self, name: str, candidates: Sequence[Sequence[int]], ends: Collection[int], filling: int):
        """filling: which of the `ends` stands behind another end."""
        self.name, self._ends, self._filling = name, frozenset(ends), filling
        candidates = [list(takewhile(lambda id: id not in self._ends, ids)) for ids in candidates]  # a path of ids may have its end
        self.longest = max(map(len, candidates))
        rows = [[*ids, *[END] * (self.longest + 1 - len(ids))] for ids in candidates]
        self._all = self._left = torch.tensor(rows, dtype=torch.long)  # [candidates, longest + 1]
        self._columns: list[list[int]] | None = None

    def see(self, certain: Mapping[int, int]) -> None:
        """Keep the candidates that agree with the certain tokens, ids by their positions; raises UserError where there are none."""
        self._left, self._columns = self._all, None
        for position, id in certain.items():
            self.add(position, id)

    def add(self, position: int, id: int) -> None:
        """Keep, of those that are left, the candidates that have a token at a position; raises UserError where none has."""
        column = self._left[:, min(position, self.longest)]
        agree = column == (END if id in self._ends else id)
        if not bool(agree.any()):
            raise UserError(f"{self.name} has no text that goes with the token {id} at position {position} and those that are certain")
        self._left, self._columns = self._left[agree], None

    @property
    def columns(self) -> list[list[int]]:
        """The ids that each position may become, the last of them for all behind."""
        if self._columns is None:
            found = [column.unique().tolist() for column in self._left.T]
            self._columns = [[*(id for id in ids if id != END), *(sorted(self._ends) if END in ids else ())] for ids in found]
        return self._columns

    def at(self, position: int) -> list[int]:
        """The ids that a position may become."""
        return self.columns[min(position, self.longest)]

    def decided(self, positions: Iterable[int]) -> dict[int, int]:
        """Those of the positions that can become but one thing, with it; behind an end that is what the canvas is filled up with."""
        found = {}
        for position in positions:
            over = position > 0 and self._ends.issuperset(self.at(position - 1))
            ids = [self._filling] if over else self.at(position)
            if len(ids) == 1:
                found[position] = ids[0]
        return found

    def mask(self, sequence: TokenSequence, scores: Tensor) -> Tensor:
        """[1, vocab] to [1, vocab], by the sequence's position."""
        allowed = torch.tensor([id for id in self.at(sequence.position) if id < scores.shape[1]], dtype=torch.long, device=scores.device)
        return torch.full_like(scores, -torch.inf).index_copy(1, allowed, scores[:, allowed])

    def takes(self, ids: Sequence[int]) -> bool:
        """Whether the answer may begin with these ids."""
        given = torch.tensor(ids, dtype=torch.long)
        return len(ids) <= self.longest and bool((self._all[:, : len(ids)] == given).all(dim=1).any())

    def accept(self, id: int) -> None:
        """Hear of the sequence's next token, which `see` knew when it became certain."""

    def fork(self) -> Candidates:
        """Return one that goes on from here by itself."""
        return copy.copy(self)


def candidates_of(
    params: RequestParams, tokenizer: PreTrainedTokenizerBase, prefix_ids: Sequence[int], least: int, ends: Collection[int], own: Collection[int]
) -> Candidates | None:
    """Return what keeps a canvas on the texts of `choice` or `trie`, in the tokenizer's own spelling; None where neither is given.

    Behind a given prefix stand the tokens of the rest. Texts that do not begin with it, and those of fewer tokens than the answer must have, are left out.
    `ends` end an answer, and of them `own` are the model's.
    Raises UserError for a text that the tokenizer cannot write or that is longer than the canvas, and where none is left.
    """
    name = "trie" if params.trie else "choice"
    given = getattr(params, name)
    if not given:
        return None
    if name == "choice":
        check_spelling(name, given, Vocabulary.of(tokenizer))
    found = [behind(tokenizer, params.prefix, prefix_ids, each, ids) for each, ids in zip(given, paths(tokenizer, given))]
    begun = [ids for ids in found if ids is not None]
    if not begun:
        raise UserError(f"prefix={params.prefix!r} is no beginning that {name} allows: change one of them")
    longest = max(map(len, begun))
    if longest > params.max_new_tokens:
        raise UserError(f"{name} has a text of {longest} tokens, but max_new_tokens={params.max_new_tokens}: raise it")
    long = [ids for ids in begun if len(ids) >= least]
    return Candidates(name, long or begun, ends, filling_of(tokenizer, own or ends))


def filling_of(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> int:
    """The one of the end tokens that a canvas is filled up with: the tokenizer's eos, or where that ends a turn, what ends a text."""
    eos, turns = tokenizer.eos_token_id, set(end_of_turn_ids(tokenizer))
    of_a_text = sorted(set(ends) - turns)
    if of_a_text and not turns - {eos}:
        return of_a_text[0]
    return eos if eos in ends else min(ends)


def behind(
    tokenizer: PreTrainedTokenizerBase, prefix: str | None, prefix_ids: Sequence[int], given: str | Sequence[int], ids: list[int]
) -> list[int] | None:
    """The ids of a text, or of a path, where the prefix is its beginning; None for one that begins otherwise."""
    if not prefix_ids:
        return ids
    if not isinstance(given, str):
        return ids if ids[: len(prefix_ids)] == list(prefix_ids) else None
    rest = given.removeprefix(prefix)
    return [*prefix_ids, *(literal_ids(tokenizer, rest) if rest else ())] if given.startswith(prefix) else None
