"""What of an answer is given before it is filled in: the ids of a template, a prefix, a suffix and forced texts, by their positions."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ...data.literal import literal_ids
from ...data.seq2seq.encoding import beginning_ids
from ..requests.params import RequestParams
from ..requests.sequence import TokenSequence
from ..text.vocabulary import Vocabulary


class Pin(NamedTuple):
    """A given token, and the setting that gives it."""

    id: int
    setting: str


@dataclass(frozen=True)
class Layout:
    """A template in tokens: how many they are, the given ids by their positions, and where a token brings the space that a text ended with."""

    length: int
    ids: Mapping[int, int] = field(default_factory=dict)
    spaced: frozenset[int] = frozenset()


def laid_out(tokenizer: PreTrainedTokenizerBase, template: Sequence[str | int]) -> Layout:
    """Lay a template out in tokens; texts without a gap between them are one, and no part of them is a control token.

    A space at the end of a text, where a gap follows, is left to the gap's first token: tokens of words bring the space before them.
    Raises UserError for a text that the tokenizer has no tokens for.
    """
    vocabulary, ids, spaced, at = Vocabulary.of(tokenizer), {}, set(), 0
    pieces = joined(template)
    for piece, behind in zip(pieces, [*pieces[1:], ""]):
        if isinstance(piece, int):
            at += piece
            continue
        left = isinstance(behind, int) and piece.endswith(" ") and vocabulary.extends(b" ")
        own = [] if left and piece == " " else tokens_of(tokenizer, piece[:-1] if left else piece, "template")
        if left:
            spaced.add(at + len(own))
        ids.update(enumerate(own, at))
        at += len(own)
    return Layout(at, ids, frozenset(spaced))


def joined(template: Sequence[str | int]) -> list[str | int]:
    """The texts of a template and its gaps in turn: texts side by side are one text, gaps one gap."""
    return [sum(same) if is_gap else "".join(same) for is_gap, same in groupby(template, key=is_whole)]


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str, setting: str) -> list[int]:
    """Return the ids of a setting's text in the middle of an answer; raises UserError where there are none."""
    ids = literal_ids(tokenizer, text)
    if not ids:
        raise UserError(f"the tokenizer has no tokens for {setting} {text!r}: give another")
    return ids


def forced_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Mapping[int, str | int], room: int, told: str = "max_new_tokens", begins: bool = False
) -> dict[int, int]:
    """Return the id of every position that `forced_text` fixes; raises UserError for texts that overlap or do not fit in what is `told`.

    A text at the first position `begins` one of its own where an answer does, that of an encoder-decoder.
    """
    forced: dict[int, int] = {}
    for start, text in sorted(texts.items()):
        if not (is_whole(start) and start >= 0 and (is_whole(text) or isinstance(text, str) and text)):
            raise UserError(f"forced_text takes positions from 0, and texts of at least one character or ids, got {start!r}: {text!r}")
        if isinstance(text, str):
            ids = beginning_ids(tokenizer, text, first=()) if begins and start == 0 else tokens_of(tokenizer, text, "forced_text")
        else:
            ids = [text]
        if start in forced:
            raise UserError(f"forced_text {text!r} at token {start} meets the one before, which reaches to {max(forced)}: move it")
        if start + len(ids) > room:
            raise UserError(f"forced_text {text!r} at token {start} takes {len(ids)} tokens, but {told}={room}: raise it")
        forced.update(enumerate(ids, start))
    return forced


def is_whole(value: object) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def pinned_tokens(
    params: RequestParams, tokenizer: PreTrainedTokenizerBase, prefix_ids: Sequence[int], layout: Layout | None, ends: Collection[int], mask: int
) -> dict[int, Pin]:
    """Return what is given of a canvas, by its positions; `layout` is that of the template, `ends` are the ids that end an answer.

    Raises UserError for a position that is given twice or outside the canvas, for the mask, for an end of the answer before another given token, and
    where nothing is left to be filled in.
    """
    length = params.max_new_tokens
    suffix = tokens_of(tokenizer, params.suffix, "suffix") if params.suffix else []
    if len(suffix) + len(prefix_ids) >= length and suffix:
        beside = f" beside the prefix' {len(prefix_ids)}" if prefix_ids else ""
        raise UserError(f"suffix takes {len(suffix)} tokens of the answer{beside}, but max_new_tokens={length}: raise it")
    told = "max_new_tokens" if layout is None else "the template's length"
    pinned = in_one(
        ("prefix", dict(enumerate(prefix_ids))),
        ("template", {} if layout is None else layout.ids),
        ("suffix", dict(enumerate(suffix, length - len(suffix)))),
        ("forced_text", forced_tokens(tokenizer, params.forced_text or {}, length, told)),
    )
    if len(pinned) == length:
        raise UserError(f"all {length} tokens of the answer are given, so that nothing is left to be filled in: give fewer, or raise max_new_tokens")
    check_pinned(params, pinned, ends, mask)
    return pinned


def in_one(*given: tuple[str, Mapping[int, int]]) -> dict[int, Pin]:
    """What several settings give, by its positions; raises UserError for a position that two of them give."""
    pinned: dict[int, Pin] = {}
    for setting, ids in given:
        for position, id in ids.items():
            if position in pinned:
                raise UserError(f"{setting} at token {position} meets {pinned[position].setting}, which is there already: move one of them")
            pinned[position] = Pin(id, setting)
    return pinned


def check_pinned(params: RequestParams, pinned: Mapping[int, Pin], ends: Collection[int], mask: int) -> None:
    """Raise UserError for given tokens that cannot stand where they do."""
    last = max(pinned, default=0)
    for position, (id, setting) in pinned.items():
        if id == mask:
            raise UserError(f"{setting} has the id {id} at token {position}: it is the mask, which stands for what is to be filled in: give another")
        if id in ends and position < last:
            raise UserError(f"{setting} has the id {id} at token {position}, which ends the answer before token {last}, which is given too: drop one of them")
    for name, position in (("forced_bos_token_id", 0), ("begin_suppress_tokens", 0), ("forced_eos_token_id", params.max_new_tokens - 1)):
        if getattr(params, name) not in (None, (), []) and position in pinned:
            raise UserError(f"{name}={getattr(params, name)} is for token {position}, which {pinned[position].setting} gives: drop one of them")
    for setting, text in texts_given(params):
        if stop := next((stop for stop in params.stop if stop in text), None):
            raise UserError(f"{setting} has {text!r}, at which stop={stop!r} would end the answer: drop one of them")


def texts_given(params: RequestParams) -> Iterator[tuple[str, str]]:
    """The texts that stand in an answer behind its beginning, with the settings that give them."""
    yield from (("template", each) for each in joined(params.template or ()) if isinstance(each, str))
    yield from (("suffix", each) for each in (params.suffix,) if each)
    yield from (("forced_text", each) for each in (params.forced_text or {}).values() if isinstance(each, str))


class Gaps:
    """Keeps what is filled in from taking the place of what is given behind it: no end comes before that, and a text's last space stays."""

    must_end = False

    def __init__(self, name: str, last: int, ends: Iterable[int], spaced: Collection[int], spaces: Iterable[int]):
        """Nothing in `ends` comes before the position `last`; in the positions `spaced` comes one of `spaces`."""
        self.name, self._last, self._spaced = name, last, frozenset(spaced)
        self._ends, self._spaces = (torch.tensor(sorted(ids), dtype=torch.long) for ids in (ends, spaces))

    def mask(self, sequence: TokenSequence, scores: Tensor) -> Tensor:
        """[1, vocab] to [1, vocab], by the sequence's position."""
        vocab, device = scores.shape[1], scores.device
        if sequence.position in self._spaced:
            allowed = self._spaces[self._spaces < vocab].to(device)
            scores = torch.full_like(scores, -torch.inf).index_copy(1, allowed, scores[:, allowed])
        if sequence.position < self._last:
            scores = scores.index_fill(1, self._ends[self._ends < vocab].to(device), -torch.inf)
        return scores

    def accept(self, id: int) -> None:
        """Hear of the sequence's next token, which changes nothing."""

    def fork(self) -> Gaps:
        """Return one that goes on from here by itself."""
        return copy.copy(self)


def gaps_between(pinned: Mapping[int, Pin], layout: Layout | None, ends: Collection[int], tokenizer: PreTrainedTokenizerBase) -> list[Gaps]:
    """What keeps the gaps between given tokens, [] where none is before one of these."""
    last, spaced = max(pinned, default=-1), frozenset() if layout is None else layout.spaced
    if len(pinned) == last + 1 and not spaced:
        return []
    spaces = Vocabulary.of(tokenizer).beginning_with(b" ") if spaced else ()
    return [Gaps(pinned[last].setting if pinned else "template", last, ends, spaced, spaces)]
