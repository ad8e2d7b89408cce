"""Filters that forbid tokens, force them, or add to them by name.

logits are [rows, vocab]; ids, words and biases come one collection a row, a history as one [n] tensor of ids a row.
Dropped tokens become -inf. Whether a row has a token left is for the caller to check.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

Words = Sequence[Sequence[int]]
Biases = Mapping[tuple[int, ...], float]


def ban(logits: Tensor, banned: Sequence[Iterable[int] | Tensor]) -> Tensor:
    """Drop each row's banned ids; those beyond the vocabulary are passed over, and none keeps the row."""
    logits = logits.clone()
    for row, ids in zip(logits, banned):
        ids = as_ids(ids)
        row[ids[ids < len(row)].to(row.device)] = -torch.inf
    return logits


def allow(logits: Tensor, allowed: Sequence[Iterable[int] | Tensor | None]) -> Tensor:
    """Drop all but each row's allowed ids; None keeps the row."""
    logits = logits.clone()
    for row, ids in zip(logits, allowed):
        if ids is not None:
            ids = as_ids(ids).to(row.device)
            kept = row[ids]
            row.fill_(-torch.inf)
            row[ids] = kept
    return logits


def force(logits: Tensor, forced: Sequence[Iterable[int] | None]) -> Tensor:
    """Give each row's forced ids a score of 0 and drop the others, whatever they had before; None keeps the row."""
    logits = logits.clone()
    for row, ids in zip(logits, forced):
        if ids is not None:
            row.fill_(-torch.inf)
            row[as_ids(ids).to(row.device)] = 0
    return logits


def no_repeat_ngram(logits: Tensor, sizes: Sequence[int], history: Sequence[Tensor]) -> Tensor:
    """Drop the tokens that would complete an n-gram which the row's history has (Paulus et al., 2018)."""
    return ban(logits, [after(past, past, size - 1) for size, past in zip(sizes, history)])


def encoder_no_repeat_ngram(logits: Tensor, sizes: Sequence[int], history: Sequence[Tensor], source: Sequence[Tensor]) -> Tensor:
    """Drop the tokens that would complete an n-gram of the source: the encoder's input, or the prompt of a decoder."""
    return ban(logits, [after(text, past, size - 1) for size, past, text in zip(sizes, history, source)])


def after(text: Tensor, past: Tensor, n: int) -> Tensor:
    """Return the tokens of a text that follow the newest n tokens of the past, wherever the text has them."""
    if len(past) < n or len(text) <= n:
        return text[:0]
    windows = text.unfold(0, n + 1, 1)  # [places, n + 1]
    return windows[(windows[:, :n] == past[len(past) - n :]).all(dim=-1), -1]


def bad_words(logits: Tensor, words: Sequence[Words], history: Sequence[Tensor]) -> Tensor:
    """Drop the tokens that would complete one of the row's words, each a sequence of ids.

    An end token given as a word is banned like any other; transformers passes over it.
    """
    return ban(logits, [completing(own, past) for own, past in zip(words, history)])


def completing(words: Words, past: Tensor) -> list[int]:
    """Return the last ids of the words whose other ids end the past."""
    tail = past[-max(map(len, words), default=1) :].tolist()  # read once: there may be thousands of words
    return [word[-1] for word in words if len(word) == 1 or tail[1 - len(word) :] == list(word[:-1])]


def sequence_bias(logits: Tensor, biases: Sequence[Biases], history: Sequence[Tensor]) -> Tensor:
    """Add its bias to every token that would complete a sequence; a sequence of one token always counts."""
    logits = logits.clone()
    for row, own, past in zip(logits, biases, history):
        for sequence, bias in own.items():
            if ends_with(past, sequence[:-1]):
                row[sequence[-1]] += bias
    return logits


def logit_bias(logits: Tensor, biases: Sequence[Mapping[int, float]]) -> Tensor:
    """Add a bias to tokens (OpenAI)."""
    logits = logits.clone()
    for row, own in zip(logits, biases):
        row[as_ids(own.keys()).to(row.device)] += torch.tensor(list(own.values()), dtype=row.dtype, device=row.device)
    return logits


def ends_with(past: Tensor, ids: Sequence[int]) -> bool:
    """Whether the past ends with these ids."""
    return len(ids) <= len(past) and past[len(past) - len(ids) :].tolist() == list(ids)


def as_ids(ids: Iterable[int] | Tensor) -> Tensor:
    return ids if isinstance(ids, Tensor) else torch.tensor([int(id) for id in ids], dtype=torch.long)
