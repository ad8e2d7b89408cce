"""How likely the model by itself finds tokens, whatever chooses among them: its log-probabilities before guidance, filters and temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..text.vocabulary import Vocabulary

MAX_LOGITS = 512  # rows of logits a pass that judges tokens: 100 MB of float32 at a vocabulary of 49,152


@dataclass(frozen=True)
class ScoredToken:
    """A token with its natural log-probability, what it says, and its bytes, None where it stands for no text (a control token).

    The bytes of an answer's tokens join to its text, a character that is spread over tokens too, which `text` shows as U+FFFD; some
    tokenizers put a space before the first word that the text leaves out.
    """

    id: int
    logprob: float
    text: str
    bytes: bytes | None


@dataclass(frozen=True)
class TokenLogprobs(ScoredToken):
    """A token that was said or read, and the likeliest ones in its place, likeliest first; it is among them where it is as likely."""

    top: tuple[ScoredToken, ...] = ()


class Likelihoods:
    """The model's distributions in some places, over its whole vocabulary: a softmax of the logits in float32 at least."""

    def __init__(self, logits: Tensor, most: int):
        """logits are [places, vocab], and stay as they are; of each place the `most` likeliest tokens can be had."""
        self._logits = logits
        self._totals = logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(dim=-1, keepdim=True)
        best = logits.topk(min(most, logits.shape[-1]), dim=-1)
        self._ids, self._logprobs = best.indices.tolist(), (best.values - self._totals).tolist()

    def at(self, place: int, id: int, count: int, tokenizer: PreTrainedTokenizerBase | None) -> TokenLogprobs:
        """Return a token's log-probability in a place, with the `count` likeliest there."""
        ids, logprobs = self._ids[place], self._logprobs[place]
        own = logprobs[ids.index(id)] if id in ids else float(self._logits[place, id] - self._totals[place, 0])
        top = tuple(ScoredToken(each, logprob, *said(tokenizer, each)) for each, logprob in zip(ids[:count], logprobs[:count]))
        return TokenLogprobs(id, own, *said(tokenizer, id), top)


class Place(NamedTuple):
    """A place among some likelihoods: the one of a sequence's next token."""

    likelihoods: Likelihoods
    row: int


def said(tokenizer: PreTrainedTokenizerBase | None, id: int) -> tuple[str, bytes | None]:
    """Return what a token says and its bytes; without a tokenizer nothing."""
    if tokenizer is None:
        return "", None
    tokens = Vocabulary.of(tokenizer).tokens
    spelled: Sequence | None = tokens[id] if id < len(tokens) else None
    if spelled is None:
        return tokenizer.convert_ids_to_tokens(id) or f"<{id}>", None
    return spelled.decode(errors="replace"), spelled
