"""How likely an encoder finds a text: each token by itself, masked, where all others are seen (pseudo-log-likelihood)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ..engine.id_scoring import chosen
from .encoder import Encoder, Question, Reading

METRICS = ("original", "within_word_l2r")


@dataclass(frozen=True)
class PseudoLogLikelihood:
    """What an encoder gives each token of a text, [n], natural logarithms in float32 at least, and the ids of these tokens."""

    ids: list[int]
    logprobs: Tensor

    @property
    def value(self) -> float:
        """The sum: the pseudo-log-likelihood (PLL)."""
        return math.fsum(self.logprobs.tolist())

    @property
    def per_token(self) -> float:
        """The mean of the tokens."""
        return self.value / len(self.ids)

    @property
    def perplexity(self) -> float:
        """The pseudo-perplexity (PPPL), exp(-mean)."""
        return math.exp(min(-self.per_token, 700.0))


@dataclass(frozen=True)
class Judged:
    """A reading and the places of the tokens that are judged; all others are seen."""

    reading: Reading
    places: Sequence[int]

    @property
    def ids(self) -> list[int]:
        """The ids of the tokens that are judged."""
        return [self.reading.ids[place] for place in self.places]


def pseudo_log_likelihood(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, metric: str = "original"
) -> list[PseudoLogLikelihood]:
    """Return the pseudo-log-likelihood of each text by an encoder: of all its tokens but those that the tokenizer puts around a text.

    With metric="original" each token is masked alone (Salazar et al. 2020, "Masked Language Model Scoring"), so that a word of several tokens is
    easily guessed from its own rest. With "within_word_l2r" the tokens behind it in its word are masked too (Kauf and Ivanova 2023, "A Better Way to Do
    Masked Language Model Scoring"); where a word begins is said by the tokenizer. A text of n tokens is read n times, in passes of bounded size without
    padding. Raises UserError, before anything is computed, for a model without a masked-language head, and for a text that has no token, has a
    mask, or is longer than the model's positions.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise UserError(f"texts must be a list of texts, got {type(texts).__name__}: put the one text in a list")
    encoder = Encoder(model, tokenizer)
    check_metric(metric, tokenizer)
    judged = [judged_text(encoder, text, f"text {number}") for number, text in enumerate(texts, 1)]
    return [PseudoLogLikelihood(each.ids, found) for each, found in zip(judged, pseudo_logprobs(encoder, judged, metric))]


def judged_text(encoder: Encoder, text: str, where: str) -> Judged:
    """All of a text, to be judged; raises UserError, which begins with `where`, for one that cannot be."""
    reading = encoder.read(text, where)
    places = [place for place, around in enumerate(reading.around) if not around]
    if not places:
        raise UserError(f"{where} has no tokens: there is nothing to judge")
    return without_masks(encoder, Judged(reading, places), where)


def judged_behind(encoder: Encoder, context: str, text: str, where: str) -> Judged:
    """A text behind another one, which is seen and not judged; raises UserError, which begins with `where`, for one that cannot be."""
    return without_masks(encoder, Judged(*encoder.behind(encoder.read(context, where), text, where)), where)


def without_masks(encoder: Encoder, judged: Judged, where: str) -> Judged:
    """What is to be judged; raises UserError where it has a mask, which stands for no token."""
    if encoder.masks(judged.reading):
        raise UserError(f"{where} has {encoder.tokenizer.mask_token}, the mask token: fill it in first, with `seodang fill-mask`")
    return judged


def check_metric(metric: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError for a metric that there is not, or that needs words from a tokenizer that does not tell them."""
    if metric not in METRICS:
        raise UserError(f"metric must be {' or '.join(METRICS)}, got {metric!r}")
    if metric != METRICS[0] and not tokenizer.is_fast:
        raise UserError(f"metric {metric} needs to know where words begin, which {type(tokenizer).__name__} does not tell: use {METRICS[0]}")


def pseudo_logprobs(encoder: Encoder, judged: Sequence[Judged], metric: str = "original") -> list[Tensor]:
    """The log-probability of each judged token, [n] for each reading, in their order; of a reading no more copies are made than fit in a pass."""
    found: list[list[Tensor]] = [[] for _ in judged]
    order = sorted(range(len(judged)), key=lambda number: len(judged[number].reading.ids))
    asked = ((number, place) for number in order for place in judged[number].places)
    for (number, place), (_, logits) in zip(asked, encoder.answers(questions(encoder, [judged[number] for number in order], metric)), strict=True):
        found[number].append(chosen(logits, [judged[number].reading.ids[place]]))
    return [torch.cat(each) for each in found]


def questions(encoder: Encoder, judged: Sequence[Judged], metric: str) -> Iterator[Question]:
    """What is asked of each token of each reading, made as it is wanted."""
    for each in judged:
        for place in each.places:
            word = each.reading.words[place]
            of_word = metric == "within_word_l2r" and word is not None
            hidden = [place, *(other for other in each.places if of_word and other > place and each.reading.words[other] == word)]
            yield Question(each.reading.with_tokens(dict.fromkeys(hidden, encoder.mask_id)), [place])
