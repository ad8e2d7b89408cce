"""Rows of documents' tokens, laid end to end and kept apart by their borders, made when they are asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..labels import IGNORE_INDEX
from ..packing import best_fit_order
from .around import Around, around, around_documents
from .counts import RowCounts
from .span_corruption import LEAST, SpanOptions, refuse_few, sentinels_of
from .store import BYTES, DIGEST, TokenStore

WINDOW = 10_000  # pieces among which those are sought that fill a row
NOTHING = Around((), ())
NUMBER = "number"  # a row's place among all rows: what is drawn at random for it hangs on that


@dataclass(frozen=True)
class Pieces:
    """Where in the store each piece of a document begins and ends, and whether it begins or ends the document: [pieces] each."""

    begin: np.ndarray
    end: np.ndarray
    first: np.ndarray
    last: np.ndarray


class TextRows(Sequence):
    """Rows of at most `max_length` tokens: `input_ids`, the `lengths` of the pieces in it, and its `number`.

    A row is made of the store when it is asked for; what is held of the whole is a few numbers a piece. `content` tells these rows from others.
    """

    def __init__(self, store: TokenStore, puts: Around, max_length: int, chosen: np.ndarray, pieces: Pieces, *, every_piece: bool):
        self.store, self.puts, self.longest, self.chosen, self.pieces = store, puts, max_length, chosen, pieces
        self.before = len(puts.before) * (pieces.first | every_piece)
        self.after = len(puts.after) * (pieces.last | every_piece)
        self.lengths = pieces.end - pieces.begin + self.before + self.after
        self.order, self.borders = _filled(self.taken(), max_length)
        self.size = int(self.lengths.max(initial=0)), max(store.highest, *puts.before, *puts.after, 0)  # the longest piece's tokens, the highest id
        self.content = f"{store.content}:{len(chosen)}:{_digest(chosen)}:{max_length}:{puts}"

    def __len__(self) -> int:
        return len(self.borders) - 1

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        some = self.order[self.borders[number] : self.borders[number + 1]]
        ids = [each for piece in some for each in self._of_piece(piece, self.store.tokens, self.puts.before, self.puts.after)]
        return {"input_ids": ids, "lengths": self.lengths[some].tolist(), NUMBER: int(number), **self.further(ids, some)}

    def further(self, ids: list[int], pieces: np.ndarray) -> dict[str, Any]:
        """What rows of a kind hold beside."""
        return {}

    def taken(self) -> np.ndarray:
        """How many tokens of a row each piece takes: [pieces]."""
        return self.lengths

    def _of_piece(self, piece: int, values: np.ndarray, before: Sequence, after: Sequence) -> Iterator:
        """What stands in the store where a piece does, between what is put before and behind it."""
        yield from before if self.before[piece] else ()
        yield from values[self.pieces.begin[piece] : self.pieces.end[piece]].tolist()
        yield from after if self.after[piece] else ()

    @property
    def bytes(self) -> int:
        """Bytes in UTF-8 of the documents in the rows."""
        return int(self.store.documents[self.chosen, BYTES].sum())

    def token_count(self) -> int:
        """Tokens of all rows."""
        return int(self.lengths.sum())

    def counts(self) -> RowCounts:
        """How the documents went into rows."""
        pieces, whole = self.pieces, self.pieces.first & self.pieces.last
        return RowCounts(
            self.longest, documents=int(pieces.first.sum()), pieces=len(pieces.first), rows=len(self), tokens=int(self.taken().sum()),
            split=int((pieces.first & ~pieces.last).sum()), split_pieces=int((~whole).sum()),
        )  # fmt: skip


class CausalRows(TextRows):
    """Rows with `labels`: each token is learned behind those before it in its document, the first of a piece alone is not (-100)."""

    def learned(self) -> int:
        """How many tokens have a label."""
        return self.token_count() - len(self.pieces.first)

    def uncoded(self) -> int:
        """How many tokens of the documents have none: each one's first, where the tokenizer puts nothing before it."""
        return 0 if self.puts.before else len(self.chosen)

    def further(self, ids: list[int], pieces: np.ndarray) -> dict[str, Any]:
        labels = list(ids)
        for start in accumulate(self.lengths[pieces][:-1].tolist(), initial=0):
            labels[start] = IGNORE_INDEX
        return {"labels": labels}


class MaskedRows(TextRows):
    """Rows without labels, for these come with a corruption; where the store knows words, with `word_starts`, whether each token begins one."""

    def further(self, ids: list[int], pieces: np.ndarray) -> dict[str, Any]:
        starts = self.store.word_starts
        if starts is None:
            return {}
        ones = [True] * len(self.puts.before), [True] * len(self.puts.after)  # what is put around a text is no part of a word
        begins = [each for piece in pieces for each in self._of_piece(piece, starts, *ones)]
        for start in accumulate(self.lengths[pieces][:-1].tolist(), initial=len(self.puts.before)):
            begins[start] = True  # a piece may begin within a word
        return {"word_starts": begins}


class SpanRows(TextRows):
    """Rows of bare pieces, of which spans are to be hidden (`SpanCorruption`): what is left of a row's pieces as inputs comes to at most `max_length` tokens.

    A piece of fewer than LEAST tokens is in no row; `short` of them were left out.
    """

    def __init__(self, store: TokenStore, puts: Around, max_length: int, chosen: np.ndarray, pieces: Pieces, options: SpanOptions, special: Sequence[int]):
        whole = pieces.end - pieces.begin >= LEAST
        self.options, self.around, self.short = options, len(puts), int((~whole).sum())
        pieces = Pieces(*(values[whole] for values in (pieces.begin, pieces.end, pieces.first, pieces.last)))
        super().__init__(store, NOTHING, max_length, chosen, pieces, every_piece=True)
        sides, highest = self.options.sizes(self.lengths), max(self.size[1], *special)
        self.size = *(int(side.max(initial=0)) + self.around for side in sides), highest, highest  # the longest input, the longest target, the highest id of each
        self.content += f":{options}"

    def taken(self) -> np.ndarray:
        return self.options.sizes(self.lengths)[0] + self.around

    def target_count(self) -> int:
        """Tokens of all targets."""
        return int((self.options.sizes(self.lengths)[1] + self.around).sum())


def causal_rows(store: TokenStore, tokenizer: PreTrainedTokenizerBase, max_length: int, documents: np.ndarray | None = None) -> CausalRows:
    """Rows to learn text from left to right, of all documents or those of the given numbers.

    A document stands between what the tokenizer puts around a text, with its end of text. A longer one goes on in the next piece, whose first
    token is the last of the piece before: each token but the document's first is learned once.
    """
    puts = around_documents(tokenizer)
    _check_length(max_length, max(len(puts) + 1, 2), puts)
    chosen = _chosen(store, documents)
    pieces = _pieces(store, chosen, max_length, len(puts.before), len(puts.after), overlap=1)
    return CausalRows(store, puts, max_length, chosen, pieces, every_piece=False)


def masked_rows(store: TokenStore, tokenizer: PreTrainedTokenizerBase, max_length: int, documents: np.ndarray | None = None) -> MaskedRows:
    """Rows to learn masked text from, of all documents or those of the given numbers: each piece stands between what the tokenizer puts around a text.

    Raises UserError where the tokenizer knows no token of any of the documents: what is unknown is never hidden, so that nothing would be learned.
    """
    puts = around(tokenizer)
    _check_length(max_length, len(puts) + 1, puts)
    chosen = _chosen(store, documents)
    _refuse_unknown(store, chosen, tokenizer)
    return MaskedRows(store, puts, max_length, chosen, _pieces(store, chosen, max_length - len(puts), 0, 0, overlap=0), every_piece=True)


def span_rows(
    store: TokenStore, tokenizer: PreTrainedTokenizerBase, max_length: int, documents: np.ndarray | None = None, *, options: SpanOptions | None = None
) -> SpanRows:
    """Rows to learn hidden spans from, of all documents or those of the given numbers: a long document is cut into pieces whose inputs fill a row.

    What is hidden comes with a `SpanCorruption` of the same options. Raises UserError for a tokenizer without sentinels, or with too few, and where nothing
    can be hidden.
    """
    puts, options, sentinels = around_documents(tokenizer), options or SpanOptions(), sentinels_of(tokenizer)
    room = options.longest_piece(max_length - len(puts))
    if room < LEAST:
        raise UserError(f"max_length {max_length} has no room for text: a token, a sentinel and the {len(puts)} that the tokenizer puts around a text take {2 + len(puts)}")
    chosen = _chosen(store, documents)
    _refuse_unknown(store, chosen, tokenizer)
    rows = SpanRows(store, puts, max_length, chosen, _pieces(store, chosen, room, 0, 0, overlap=0), options, [*sentinels, *puts.before, *puts.after])
    if not len(rows):
        raise UserError(f"none of {len(chosen):,} documents has {LEAST} tokens or more, of which one could be hidden: give more text, or part it otherwise (--documents)")
    refuse_few(sentinels, options, int(rows.lengths.max()))
    return rows


def held_out(store: TokenStore, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the documents to train on and of those held out, at random but the same for the same seed; see `apart`."""
    return apart(store.documents[:, DIGEST], fraction, seed)


def apart(digests: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the documents to train on and of those held out, by what tells their texts from others, whatever made them tokens.

    Documents of the same words go together, so that none is on both sides. Raises UserError where nothing would be left.
    """
    different, group = np.unique(digests, return_inverse=True)
    count = max(1, round(len(different) * fraction))
    if count >= len(different):
        raise UserError(f"eval_fraction {fraction} leaves nothing of {len(different)} documents to train on: lower it, or part the text (--documents line)")
    held = np.zeros(len(different), dtype=bool)
    held[np.argsort(np.random.Generator(np.random.Philox(seed)).random(len(different)), kind="stable")[:count]] = True
    return np.flatnonzero(~held[group]), np.flatnonzero(held[group])


def shared_documents(rows: TextRows, others: TextRows) -> int:
    """How many documents of some rows are in others too, word for word."""
    digests = [each.store.documents[each.chosen, DIGEST] for each in (rows, others)]
    return int(np.isin(*digests).sum())


def _chosen(store: TokenStore, documents: np.ndarray | None) -> np.ndarray:
    return np.arange(len(store)) if documents is None else np.asarray(documents)


def _check_length(max_length: int, least: int, puts: Around) -> None:
    if max_length < least:
        raise UserError(f"max_length {max_length} has no room for text, for the tokenizer puts {len(puts)} tokens around it: set {least} or more")


def _refuse_unknown(store: TokenStore, chosen: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where all tokens of the documents stand for what the tokenizer cannot say."""
    spans = store.spans()
    if not any((store.tokens[spans[i] : spans[i + 1]] != tokenizer.unk_token_id).any() for i in chosen):
        told = "the document's tokens" if len(chosen) == 1 else f"the tokens of {len(chosen):,} documents"
        raise UserError(f"all {told} are unknown to the tokenizer ({tokenizer.unk_token}), and nothing of them can be learned: take a tokenizer that was made for such text")


def _pieces(store: TokenStore, chosen: np.ndarray, room: int, before: int, after: int, overlap: int) -> Pieces:
    """Documents in pieces that with `before` and `after` tokens at the document's two ends come to at most `room`, sharing `overlap` tokens."""
    spans = store.spans()
    begin, end = spans[chosen], spans[chosen + 1]
    step = room - overlap
    count = np.maximum(-(-(end - begin + before + after - overlap) // step), 1)
    document = np.repeat(np.arange(len(chosen)), count)
    place = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)  # of a piece in its document
    at = begin[document] - before + place * step
    first, last = place == 0, place == count[document] - 1
    return Pieces(np.clip(at, begin[document], end[document] - overlap), np.minimum(at + room, end[document]), first, last)


def _filled(lengths: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """The pieces in the order in which they lie in rows, and where each row begins there, and the last ends."""
    order, sizes = [np.zeros(0, dtype=np.int64)], [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(lengths), WINDOW):
        of_window, ends = best_fit_order(lengths[start : start + WINDOW], room)
        order.append(of_window + start)
        sizes.append(np.diff(ends, prepend=0))
    return np.concatenate(order), np.cumsum(np.concatenate(sizes))


def _digest(chosen: np.ndarray) -> int:
    weights = np.arange(1, len(chosen) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return int((chosen.astype(np.uint64) * weights).sum(dtype=np.uint64))
