"""Records to rows that an encoder-decoder is trained on: source ids, what the decoder is shown, what it is to say."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..accounting import EMPTY, Accounting, check_unusable, counted
from ..errors import UserError
from ..labels import EMPTY_ANSWERS, IGNORE_INDEX
from ..surrogates import refuse_surrogates
from .encoding import source_ids, split_target, target_ids
from .languages import language_ids, writes_languages
from .records import Exchange

EMPTY_SOURCE = "empty source"
SOURCE_TOO_LONG, TARGET_TOO_LONG = "source longer than max_source_length", "target longer than max_target_length"
TOO_LONG = ("truncate", "drop", "error")
DEFAULT_LENGTH = 512  # of a side whose positions nothing bounds

Row = dict[str, Any]  # input_ids; decoder_input_ids and labels, of one length; where


@dataclass
class Seq2SeqCounts(Accounting):
    """What became of the records; `truncated` counts sources that lost their end."""

    target_tokens: int = 0
    trained_tokens: int = 0
    max_source_length: int = DEFAULT_LENGTH
    longest: int = 0  # tokens of the longest source that there was

    def add(self, row: Row) -> None:
        """Count what a row holds."""
        self.tokens += len(row["input_ids"]) + len(row["labels"])
        self.target_tokens += len(row["labels"])
        self.trained_tokens += sum(label != IGNORE_INDEX for label in row["labels"])

    def lines(self) -> list[str]:
        """The counts for people: what there is always, what had to be done only where it was."""
        given = f" ({self.target_tokens - self.trained_tokens:,} are given)" if self.target_tokens > self.trained_tokens else ""
        lines = [
            self.records_line(),
            f"tokens          {self.tokens - self.target_tokens:,} in sources, {self.target_tokens:,} in targets, {self.trained_tokens:,} trained{given}",
            *self.lost_lines(),
        ]
        if self.truncated:
            what = f"sources longer than {self.max_source_length} tokens lost their end (the longest has {self.longest:,})"
            lines.append(counted("truncated", self.truncated, what))
        return [*lines, *self.note_lines()]


@dataclass(frozen=True)
class Seq2SeqLabeller:
    """How records become rows for an encoder-decoder: `rows(exchange, counts)`, or `seq2seq_rows` of many.

    A row has `input_ids`, the source as the tokenizer encodes one, behind the text of `source_prefix`; `labels`, the target as the tokenizer encodes one,
    its end included; and `decoder_input_ids`, as long as they: what `first_ids` says the decoder is shown before a target, and the target but for its last
    id. Nothing is learned (-100) where a token is given: in what is shown first, and in the record's prefix, whose ids are those that generation begins
    with, whatever the tokenizer would have merged over its end (`boundary_merges` counts these).

    A source longer than `max_source_length` loses its end, but for the tokens that close it, and is counted; `too_long` "drop" leaves it out, "error"
    refuses it. In a chat template it is never cut, but left out. A target is never cut: one beyond `max_target_length` is left out and counted.
    `empty_answers`, for a source or target of nothing but blanks, is `error` or `drop`. A record that is left out is counted, or with `unusable` "error"
    refused by its place. Raises UserError for settings that there are not.
    """

    tokenizer: PreTrainedTokenizerBase
    first_ids: Callable[[list[int]], Sequence[int]]
    max_source_length: int = DEFAULT_LENGTH
    max_target_length: int = DEFAULT_LENGTH
    source_prefix: str = ""
    literal: bool = True
    too_long: str = "truncate"
    empty_answers: str = "error"
    unusable: str = "drop"

    def __post_init__(self) -> None:
        for name, allowed in (("too_long", TOO_LONG), ("empty_answers", EMPTY_ANSWERS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        check_unusable(self.unusable)
        for name in ("max_source_length", "max_target_length"):
            if getattr(self, name) < 2:
                raise UserError(f"{name} must be at least 2, got {getattr(self, name)}")

    def rows(self, exchange: Exchange, counts: Seq2SeqCounts) -> list[Row]:
        """The row of one record, or none. Raises UserError that begins with where the record stands."""
        reasons: Counter = Counter()
        try:
            refuse_surrogates(vars(exchange))
            row = self._row(exchange, counts, reasons)
            rows = [] if row is None else [row]
            counts.count_record(rows, reasons, self.unusable, asked=exchange.messages, where=exchange.where, taken=exchange.taken)
        except UserError as error:
            raise UserError(f"{exchange.where}: {error}" if exchange.where else str(error)) from error
        for row in rows:
            counts.add(row)
        return rows

    def _row(self, exchange: Exchange, counts: Seq2SeqCounts, reasons: Counter) -> Row | None:
        if not self._says_something(exchange, reasons):
            return None
        target, given, merged = self._target(exchange)
        first = list(self.first_ids(target))
        if len(first) - 1 + len(target) > self.max_target_length:
            reasons[TARGET_TOO_LONG] += 1
            return None
        source = self._source(exchange, counts, reasons)
        if source is None:
            return None
        counts.count_notes(["boundary_merges"] * merged)
        labels = [*[IGNORE_INDEX] * (len(first) - 1 + given), *target[given:]]
        return {"input_ids": source, "decoder_input_ids": [*first, *target[:-1]], "labels": labels, "where": exchange.where}

    def _says_something(self, exchange: Exchange, reasons: Counter) -> bool:
        source = exchange.source if isinstance(exchange.source, str) else "".join(message["content"] for message in exchange.source)
        empty = [(reason, side) for reason, side, text in ((EMPTY_SOURCE, "source", source), (EMPTY, "target", exchange.target)) if not text.strip()]
        if empty and self.empty_answers == "error":
            raise UserError(f"the {empty[0][1]} is empty: fill it in, or leave such records out with --empty_answers drop")
        reasons.update(reason for reason, _ in empty)
        return not empty

    def _source(self, exchange: Exchange, counts: Seq2SeqCounts, reasons: Counter) -> list[int] | None:
        """What the encoder reads; None, and the reason, where that is left out."""
        ids = source_ids(self.tokenizer, exchange.behind(self.source_prefix).source, self.literal)
        if len(ids) <= self.max_source_length:
            return ids
        if self.too_long == "error":
            told = f"the source has {len(ids):,} tokens, more than max_source_length {self.max_source_length}"
            raise UserError(f"{told}: shorten it, or have it cut with --too_long truncate")
        counts.longest = max(counts.longest, len(ids))
        in_template = self.tokenizer.chat_template and not isinstance(exchange.source, str)  # whose end asks for the answer
        if in_template or self.too_long == "drop":
            reasons[SOURCE_TOO_LONG] += 1
            return None
        counts.truncated += 1
        return cut_source(self.tokenizer, ids, self.max_source_length)

    def _target(self, exchange: Exchange) -> tuple[list[int], int, bool]:
        """The target's ids, how many of them are given, and whether the tokenizer would have merged some over the end of these."""
        whole = target_ids(self.tokenizer, exchange.target)
        if not exchange.prefix:
            return whole, 0, False
        given, rest = split_target(self.tokenizer, exchange.prefix, exchange.target)
        return given + rest, len(given), whole != given + rest


def told_languages(
    tokenizer: PreTrainedTokenizerBase, source_lang: str | None, target_lang: str | None, translated: bool
) -> tuple[str | None, str | None]:
    """The languages that a tokenizer is told: where they name keys of records (`translated`) those that it has tokens for, else all, which it may refuse."""
    if not translated:
        return source_lang, target_lang
    return source_lang if writes_languages(tokenizer) else None, target_lang if language_ids(tokenizer) else None


def cut_source(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], most: int) -> list[int]:
    """The first so many ids of a source, but with the tokens that close it. Raises UserError where there is room for nothing else.

    Of [5, 6, 7, 8, eos], the first three are [5, 6, eos].
    """
    end = closing(tokenizer, ids)
    if end >= most:
        raise UserError(f"max_source_length {most} leaves no room beside the {end} tokens that close a source: raise it")
    return [*ids[: most - end], *ids[len(ids) - end :]]


def closing(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """How many ids at the end the tokenizer puts behind a text: its end token, a language's."""
    special = {*tokenizer.all_special_ids, *language_ids(tokenizer).values()} - {tokenizer.unk_token_id}
    return next((count for count, id in enumerate(reversed(ids)) if id not in special), len(ids))


def seq2seq_rows(exchanges: Iterable[Exchange], labeller: Seq2SeqLabeller) -> tuple[list[Row], Seq2SeqCounts]:
    """The rows of all records, in their order, and the counts of what became of them. Raises UserError naming the record, or where nothing is left."""
    counts = Seq2SeqCounts(remembers=None, max_source_length=labeller.max_source_length)
    rows = [row for exchange in exchanges for row in labeller.rows(exchange, counts)]
    counts.refuse_empty()
    return rows, counts
