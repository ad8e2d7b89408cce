"""Filters that forbid tokens, force them, or add to them by name, each with its settings.

logits are [rows, vocab]; ids, words and biases come one collection a row, a history as one [n] tensor of ids a row.
Dropped tokens become -inf. Whether a row has a token left is for the caller to check, and so are ids beyond the vocabulary, by
`check_filters`: where nothing else is said, IndexError is raised for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...data.errors import UserError
from ..requests.options import CONFIG, OPENAI, VLLM, Command, option, settings
from ..requests.params import RequestParams, as_texts
from ..requests.rules import Rule, both, entries, mapping, texts, whole, worst
from ..requests.sequence import TokenSequence
from ..requests.written import numbers_by_token
from .spec import Apply, FilterSpec, given, source

Words = Sequence[Sequence[int]]
Biases = Mapping[tuple[int, ...], float]
MOST_BIAS = 1e30  # more would overflow a float32; as little as -inf is a ban


def ban(logits: Tensor, banned: Sequence[Iterable[int] | Tensor]) -> Tensor:
    """Drop each row's banned ids, [rows, vocab] to [rows, vocab]; those beyond the vocabulary are passed over, and none keeps the row."""
    logits = logits.clone()
    for row, ids in zip(logits, banned):
        ids = as_ids(ids)
        row[ids[ids < len(row)].to(row.device)] = -torch.inf
    return logits


def allow(logits: Tensor, allowed: Sequence[Iterable[int] | Tensor | None]) -> Tensor:
    """Drop all but each row's allowed ids, [rows, vocab] to [rows, vocab]; None keeps the row. Raises IndexError for an id beyond the vocabulary."""
    logits = logits.clone()
    for row, ids in zip(logits, allowed):
        if ids is not None:
            ids = as_ids(ids).to(row.device)
            kept = row[ids]
            row.fill_(-torch.inf)
            row[ids] = kept
    return logits


def force(logits: Tensor, forced: Sequence[Iterable[int] | None]) -> Tensor:
    """Give each row's forced ids a score of 0 and drop the others, [rows, vocab] to [rows, vocab]; None keeps the row.

    What they had before does not matter. Raises IndexError for an id beyond the vocabulary.
    """
    logits = logits.clone()
    for row, ids in zip(logits, forced):
        if ids is not None:
            row.fill_(-torch.inf)
            row[as_ids(ids).to(row.device)] = 0
    return logits


def no_repeat_ngram(logits: Tensor, sizes: Sequence[int], history: Sequence[Tensor]) -> Tensor:
    """Drop the tokens that would complete an n-gram which the row's history has, [rows, vocab] to [rows, vocab]; `sizes` are the rows' n.

    Source: Paulus et al. 2018, A deep reinforced model for abstractive summarization.
    """
    return ban(logits, [after(past, past, size - 1) for size, past in zip(sizes, history)])


@settings
class NoRepeatNgram:
    no_repeat_ngram_size: int | None = option(
        None, "No run of so many tokens comes twice.", whole(1), example=3, same_in=(CONFIG,), off=0
    )


def make_ngram(sequences: Sequence[TokenSequence]) -> Apply:
    """`no_repeat_ngram` by each sequence's size and history."""
    sizes = [sequence.request.params.no_repeat_ngram_size for sequence in sequences]
    return lambda scores: no_repeat_ngram(scores, sizes, [sequence.history() for sequence in sequences])


NO_REPEAT_NGRAM = FilterSpec("no_repeat_ngram_size", "ban", no_repeat_ngram, NoRepeatNgram, make_ngram)


def encoder_no_repeat_ngram(logits: Tensor, sizes: Sequence[int], history: Sequence[Tensor], sources: Sequence[Tensor]) -> Tensor:
    """Drop the tokens that would complete an n-gram of the source: the encoder's input, or the prompt of a decoder.

    [rows, vocab] to [rows, vocab]; `history` and `sources` are one [n] tensor of ids a row.

    Source: transformers' EncoderNoRepeatNGramLogitsProcessor, after ParlAI.
    """
    return ban(logits, [after(text, past, size - 1) for size, past, text in zip(sizes, history, sources)])


@settings
class EncoderNoRepeatNgram:
    encoder_no_repeat_ngram_size: int | None = option(
        None, "No run of so many tokens is copied from the source, or the prompt.", whole(1), example=3, same_in=(CONFIG,), off=0
    )


def make_encoder_ngram(sequences: Sequence[TokenSequence]) -> Apply:
    """`encoder_no_repeat_ngram` by each sequence's size, history and source."""
    sizes = [sequence.request.params.encoder_no_repeat_ngram_size for sequence in sequences]
    sources = [source(sequence) for sequence in sequences]
    return lambda scores: encoder_no_repeat_ngram(scores, sizes, [sequence.history() for sequence in sequences], sources)


ENCODER_NO_REPEAT_NGRAM = FilterSpec(
    "encoder_no_repeat_ngram_size", "ban", encoder_no_repeat_ngram, EncoderNoRepeatNgram, make_encoder_ngram
)


def after(text: Tensor, past: Tensor, n: int) -> Tensor:
    """Return the ids of a text, [some], that follow the newest n ids of the past, [n], wherever the text, [n], has them."""
    if len(past) < n or len(text) <= n:
        return text[:0]
    windows = text.unfold(0, n + 1, 1)  # [places, n + 1]
    return windows[(windows[:, :n] == past[len(past) - n :]).all(dim=-1), -1]


def bad_words(logits: Tensor, words: Sequence[Words], history: Sequence[Tensor]) -> Tensor:
    """Drop the tokens that would complete one of the row's words, each a sequence of ids, [rows, vocab] to [rows, vocab].

    An end token given as a word is banned like any other; transformers passes over it.

    Source: transformers' NoBadWordsLogitsProcessor.
    """
    return ban(logits, [completing(own, past) for own, past in zip(words, history)])


def completing(words: Words, past: Tensor) -> list[int]:
    """Return the last ids of the words whose other ids end the past."""
    tail = past[-max(map(len, words), default=1) :].tolist()  # read once: there may be thousands of words
    return [word[-1] for word in words if len(word) == 1 or tail[1 - len(word) :] == list(word[:-1])]


def filled(name: str, value: Any) -> str | None:
    """The rule that no sequence of ids is empty."""
    return worst(value, len, lambda ids: f"{name} has an empty sequence: leave it out")


def each_id(sequences: Iterable[Iterable[int]]) -> list[int]:
    """The ids of all sequences."""
    return [id for ids in sequences for id in ids]


@settings
class BadWords:
    bad_words: Sequence[str] = option((), "Texts that do not come.", texts, example=("bad",), same_in=(VLLM,), convert=as_texts)
    bad_words_ids: Sequence[Sequence[int]] = option(
        (), "Sequences of ids that do not come.", both(entries("a list of lists of ids", lambda word: isinstance(word, list | tuple)), filled),
        example=((5, 6),), same_in=(CONFIG,), command=False, ids=each_id,
    )  # fmt: skip


def make_bad_words(sequences: Sequence[TokenSequence]) -> Apply:
    """`bad_words` by each sequence's words and history; raises UserError for words that are texts alone."""
    if unread := [sequence.request.params.bad_words for sequence in sequences if not sequence.request.params.bad_words_ids]:
        raise UserError(f"bad_words={unread[0]!r} are texts, of which a request made by hand knows no ids: give bad_words_ids")
    words = [[tuple(word) for word in sequence.request.params.bad_words_ids] for sequence in sequences]
    return lambda scores: bad_words(scores, words, [sequence.history() for sequence in sequences])


def long_words(params: RequestParams) -> list[str]:
    """The setting that bans words of several tokens, so far as their ids are known."""
    if all(len(word) == 1 for word in params.bad_words_ids):
        return []
    return ["bad_words" if params.bad_words else "bad_words_ids"]


BAD_WORDS = FilterSpec(
    "bad_words", "ban", bad_words, BadWords, make_bad_words, asks=given("bad_words", "bad_words_ids"), looks_back=long_words
)


def sequence_bias(logits: Tensor, biases: Sequence[Biases], history: Sequence[Tensor]) -> Tensor:
    """Add its bias to every token that would complete a sequence; a sequence of one token always counts.

    [rows, vocab] to [rows, vocab]; raises IndexError for a last id beyond the vocabulary.

    Source: transformers' SequenceBiasLogitsProcessor.
    """
    logits = logits.clone()
    for row, own, past in zip(logits, biases, history):
        for sequence, bias in own.items():
            if ends_with(past, sequence[:-1]):
                row[sequence[-1]] += bias
    return logits


def biasing(wanted: str, key: type | tuple[type, ...]) -> Rule:
    """The rule of a dictionary of biases: numbers, by keys of a type, none too great."""
    number = (int, float)
    return both(
        mapping,
        lambda name, value: worst(
            value.items(), lambda pair: isinstance(pair[1], number) and not isinstance(pair[1], bool) and isinstance(pair[0], key),
            lambda pair: f"{name} must be {wanted}, got {pair[0]!r}: {pair[1]!r}",
        ),
        lambda name, value: worst(
            value.items(), lambda pair: pair[1] <= MOST_BIAS,
            lambda pair: f"{name} must be at most {MOST_BIAS:g}, got {pair[0]!r}: {pair[1]!r}",
        ),
    )  # fmt: skip


@settings
class SequenceBias:
    sequence_bias: Mapping[tuple[int, ...], float] | None = option(
        None, "Added to the logit of the last id of a sequence whose others stand before it.",
        both(biasing("numbers by tuples of ids", tuple), filled), example={(5,): 1.0}, same_in=(CONFIG,), command=False, ids=each_id,
        from_json=lambda value: {tuple(ids): bias for ids, bias in value} if isinstance(value, list) else value,
    )  # fmt: skip


def make_sequence_bias(sequences: Sequence[TokenSequence]) -> Apply:
    """`sequence_bias` by each sequence's biases and history."""
    biases = [sequence.request.params.sequence_bias for sequence in sequences]
    return lambda scores: sequence_bias(scores, biases, [sequence.history() for sequence in sequences])


def long_sequences(params: RequestParams) -> list[str]:
    """The setting, where it has biases for sequences of several tokens."""
    return ["sequence_bias"] if any(len(ids) > 1 for ids in params.sequence_bias or ()) else []


SEQUENCE_BIAS = FilterSpec("sequence_bias", "bias", sequence_bias, SequenceBias, make_sequence_bias, looks_back=long_sequences)


def logit_bias(logits: Tensor, biases: Sequence[Mapping[int, float]]) -> Tensor:
    """Add a bias to tokens, by their ids, [rows, vocab] to [rows, vocab]; raises IndexError for an id beyond the vocabulary.

    Source: OpenAI's API reference, logit_bias.
    """
    logits = logits.clone()
    for row, own in zip(logits, biases):
        row[as_ids(own.keys()).to(row.device)] += torch.tensor(list(own.values()), dtype=row.dtype, device=row.device)
    return logits


def by_ids(given: Any) -> dict[int, float]:
    """Biases by id; JSON writes ids as texts."""
    try:
        return {int(id): float(bias) for id, bias in given.items()}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"logit_bias must be numbers by token id, got {given!r}") from None


@settings
class LogitBias:
    logit_bias: Mapping[int | str, float] | None = option(
        None, "Added to the logits of texts or ids (yes=2.5 15=-100); of a text of several tokens, to the last behind the others.",
        biasing("numbers by token id or text", object), example={5: 1.0}, same_in=(OPENAI,), ids=tuple, from_json=by_ids,
        command=Command(list[str], read=partial(numbers_by_token, "logit_bias")),
    )  # fmt: skip


def make_logit_bias(sequences: Sequence[TokenSequence]) -> Apply:
    """`logit_bias` by each sequence's biases."""
    biases = [sequence.request.params.logit_bias for sequence in sequences]
    return lambda scores: logit_bias(scores, biases)


LOGIT_BIAS = FilterSpec("logit_bias", "bias", logit_bias, LogitBias, make_logit_bias, memoryless=True)


def ends_with(past: Tensor, ids: Sequence[int]) -> bool:
    """Whether the past, [n], ends with these ids."""
    return len(ids) <= len(past) and past[len(past) - len(ids) :].tolist() == list(ids)


def as_ids(ids: Iterable[int] | Tensor) -> Tensor:
    """Ids as a tensor, [n]."""
    return ids if isinstance(ids, Tensor) else torch.tensor([int(id) for id in ids], dtype=torch.long)
