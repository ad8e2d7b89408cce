"""Spans of a text hidden for an encoder-decoder to write (Raffel et al. 2020, "Exploring the limits of transfer learning", T5; their figure 2).

How many tokens are hidden, in how many spans and where is drawn as the published code does (`random_spans_noise_mask` of t5.data.preprocessors):
of `length` tokens round(length * noise_density) are hidden, at least one and not all, in round(hidden / mean_noise_span_length) spans, at least one. Hidden tokens
and others are each parted at random into as many spans, which take turns; the first is not hidden, the last is.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from .around import Around, around_documents

SENTINEL = re.compile(r"▁?<extra_id_(\d+)>")
LEAST = 2  # tokens of a piece: one is hidden, one is seen


@dataclass
class SpanOptions:
    """How much of a text is hidden, and in how long spans."""

    noise_density: float = field(default=0.15, metadata={"help": "Encoder-decoders: the share of tokens that are hidden, in spans."})
    mean_noise_span_length: float = field(default=3.0, metadata={"help": "Encoder-decoders: tokens of a hidden span, on average."})

    def __post_init__(self):
        if not 0 < self.noise_density < 1:
            raise UserError(f"noise_density must be between 0 and 1, got {self.noise_density}: 0.15 is T5's")
        if not 1 <= self.mean_noise_span_length < float("inf"):
            raise UserError(f"mean_noise_span_length must be at least 1, got {self.mean_noise_span_length}: 3 is T5's")

    def counts(self, lengths: Any) -> tuple[np.ndarray, np.ndarray]:
        """Of pieces of so many tokens, LEAST or more, how many are hidden and in how many spans; halves are rounded to even."""
        lengths = np.asarray(lengths)
        hidden = np.clip(np.rint(lengths * self.noise_density).astype(np.int64), 1, lengths - 1)
        spans = np.clip(np.rint(hidden / self.mean_noise_span_length).astype(np.int64), 1, lengths - hidden)  # each stands behind a token that is seen
        return hidden, spans

    def sizes(self, lengths: Any) -> tuple[np.ndarray, np.ndarray]:
        """How many tokens the pieces' inputs and targets come to, without what the tokenizer puts around a text: a sentinel a span, and one that closes the target."""
        hidden, spans = self.counts(lengths)
        return np.asarray(lengths) - hidden + spans, hidden + spans + 1

    def longest_piece(self, room: int) -> int:
        """How many tokens a piece may have for its input to come to at most `room`; less than LEAST where there is none.

        >>> SpanOptions().longest_piece(512 - 1)  # T5's own, with the end of the text; its targets are of 113 tokens, a closing sentinel and the end
        568
        """
        most = int((room + 2) / (1 - self.noise_density)) + LEAST  # of so many more than `room` are seen
        return LEAST + bisect_right(range(LEAST, most + 1), room, key=lambda length: int(self.sizes(length)[0])) - 1


def sentinel_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that stand for hidden spans, the first span's first: <extra_id_0>, <extra_id_1>, ... as far as there are all."""
    found = {int(match[1]): id for token, id in tokenizer.get_vocab().items() if (match := SENTINEL.fullmatch(token))}
    return [found[number] for number in range(next(n for n in range(len(found) + 1) if n not in found))]


@dataclass(frozen=True)
class SpanCorruption:
    """Pieces of text with spans of them hidden, as an encoder reads them, and what the decoder writes: each hidden span behind its sentinel.

    Of "thank you for inviting me to your party last week" with the density 0.4 and the mean 2, the sentinels X, Y, Z, the end E, and S to begin with:

        input_ids          thank you X me to your party Y E
        labels             X for inviting Y last week Z E
        decoder_input_ids  S X for inviting Y last week Z
    """

    options: SpanOptions
    sentinels: tuple[int, ...]
    puts: Around  # around inputs and targets
    start: int  # what the decoder begins with

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, options: SpanOptions, start: int, vocab_size: int | None = None) -> "SpanCorruption":
        """By a tokenizer and the model's decoder_start_token_id. Raises UserError for a tokenizer without sentinels, and for sentinels beyond `vocab_size`."""
        sentinels = sentinels_of(tokenizer)
        if vocab_size is not None and max(sentinels) >= vocab_size:
            raise UserError(f"the sentinel {tokenizer.convert_ids_to_tokens(max(sentinels))} ({max(sentinels)}) is beyond the model's vocabulary of {vocab_size}: the tokenizer belongs to another model")
        return cls(options, tuple(sentinels), around_documents(tokenizer), start)

    def __call__(self, row: dict[str, Any], noise: np.random.Generator) -> dict[str, Any]:
        """The pieces of a row, parted by `lengths`, corrupted one after the other: `input_ids`, `lengths`, `decoder_input_ids`, `labels` and `target_lengths`."""
        borders = [0, *accumulate(row.get("lengths") or [len(row["input_ids"])])]
        pairs = [self.corrupt(np.array(row["input_ids"][a:b]), noise) for a, b in zip(borders, borders[1:])]
        return {
            "input_ids": [id for source, _ in pairs for id in source],
            "lengths": [len(source) for source, _ in pairs],
            "decoder_input_ids": [id for _, target in pairs for id in (self.start, *target[:-1])],
            "labels": [id for _, target in pairs for id in target],
            "target_lengths": [len(target) for _, target in pairs],
        }

    def corrupt(self, ids: np.ndarray, noise: np.random.Generator) -> tuple[list[int], list[int]]:
        """What is read and what is to be written of a piece of at least LEAST tokens, both with what the tokenizer puts around a text.

        Of the tokens 11 to 20, hidden with the density 0.3 and the mean 2, three are in two spans: with the sentinels 99, 98, 97 and the end 1
        11 12 99 14 15 16 17 18 98 1 is read and 99 13 98 19 20 97 1 written where the seen spans have 2 and 5 tokens and the hidden ones 1 and 2.
        """
        seen, hidden = random_spans(len(ids), self.options, noise)
        ends = np.cumsum(np.stack([seen, hidden], axis=1))  # of seen and hidden spans in turn
        parts = [part.tolist() for part in np.split(ids, ends[:-1])]
        source = [id for number, part in enumerate(parts[::2]) for id in (*part, self.sentinels[number])]
        target = [id for number, part in enumerate(parts[1::2]) for id in (self.sentinels[number], *part)]
        put = lambda middle: [*self.puts.before, *middle, *self.puts.after]
        return put(source), put([*target, self.sentinels[len(hidden)]])


def random_spans(length: int, options: SpanOptions, noise: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens each seen span has, and each hidden one behind it: [spans] both, at least one token each."""
    hidden, spans = (int(count) for count in options.counts(length))
    return random_segments(length - hidden, spans, noise), random_segments(hidden, spans, noise)


def random_segments(items: int, segments: int, noise: np.random.Generator) -> np.ndarray:
    """How many of so many items each segment has, at least one: each of the ways to part them is equally likely."""
    cuts = np.sort(noise.choice(items - 1, segments - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [items]]))


def filled_in(source: list[int], target: list[int], sentinels: list[int] | tuple[int, ...]) -> list[int]:
    """A source's ids with each sentinel replaced by what the target says behind it, as much as it says; special tokens around both stay where they are."""
    said = spans_of(target, sentinels)
    return [id for each in source for id in (said.get(each, []) if each in sentinels else [each])]


def spans_of(target: list[int], sentinels: list[int] | tuple[int, ...]) -> dict[int, list[int]]:
    """What a target says behind each sentinel, up to the next: behind one that comes again, what it says first."""
    places = [place for place, id in enumerate(target) if id in sentinels]
    found: dict[int, list[int]] = {}
    for begin, end in zip(places, [*places[1:], len(target)]):
        found.setdefault(target[begin], target[begin + 1 : end])
    return found


def sentinels_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`sentinel_ids`. Raises UserError where the tokenizer has none, or no end of text, with which a target ends."""
    if not (found := sentinel_ids(tokenizer)):
        masks = " (BART's kind learns by a mask token instead, which is not taught here)" if tokenizer.mask_token_id is not None else ""
        raise UserError(
            f"the tokenizer has no sentinels (<extra_id_0>, ...) to stand for hidden spans{masks}: use T5's, or learn one, "
            "`seodang tokenizer --family encoder-decoder`; on pairs the model can be taught by `seodang seq2seq`"
        )
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end of text (eos_token), with which inputs and targets end: use T5's, or learn one, `seodang tokenizer --family encoder-decoder`")
    return found


def refuse_few(sentinels: list[int], options: SpanOptions, longest: int) -> None:
    """Raise UserError where a piece of so many tokens has more spans than there are sentinels, of which one closes the target."""
    spans = int(options.counts(longest)[1])
    if spans + 1 > len(sentinels):
        raise UserError(
            f"a piece of {longest:,} tokens has {spans} hidden spans, which with the one that closes the target take {spans + 1} sentinels, and the tokenizer has "
            f"{len(sentinels)}: lower --max_length or --noise_density, or raise --mean_noise_span_length"
        )
