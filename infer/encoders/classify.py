"""Texts, alone or in pairs, to classes with their probabilities, or to a number."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...data.classification.encoding import EncodedText, TextEncoder
from ...data.classification.labels import MULTI, REGRESSION, SINGLE
from ...data.errors import UserError
from ...data.files.sources import at_a_time
from ...data.packing import pad_right, padded_rows
from ...data.tagging.encoding import Window
from ..checkpoint.adapter_head import head_of
from ..checkpoint.load import is_adapter, resolve
from ..engine.checkpoint_settings import known_config
from ..filters.logits import wide
from ..runners.architecture import evaluating, text_limit, transformers_model
from ..runners.paradigm import has_classifier_head
from .unpadded import trunk_of, unpadding

TOKENS = 4096  # of one pass
WINDOW = 1024  # texts that are sorted by length before they are computed: what is held of a file
NO_LIMIT = 10**6  # what a tokenizer gives for model_max_length where nobody has told it

Input = str | tuple[str, str]  # a text, or a text and its pair


@dataclass(frozen=True)
class Classified:
    """What a classifier says of a text.

    `label` is the likeliest class; of several labels those at least as likely as the threshold, of a regression the number. `probs` has the
    probability of every class, of a regression nothing. `tokens` were read, and `truncated` says whether the text had more.
    """

    label: str | tuple[str, ...] | float
    probs: dict[str, float]
    tokens: int
    truncated: bool = False


def classify(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Input],
    *,
    max_length: int | None = None,
    cut: str = "right",
    threshold: float = 0.5,
) -> list[Classified]:
    """Say of each text, or pair of texts, which class it is of, in their order.

    The model is an AutoModelForSequenceClassification, with or without an adapter. A text longer than `max_length` tokens, by default those that
    the model can read, loses its right, middle or left (`cut`). Raises UserError for a model that is no classifier, and for texts that are none.
    """
    if isinstance(texts, str):
        raise UserError("texts must be a list of texts, got one: put it in a list")
    return list(Classifier(model, tokenizer, max_length=max_length, cut=cut, threshold=threshold).stream(texts))


class Classifier:
    """A classifier and how it reads texts; made once, asked as often as one likes. The arguments are those of `classify`."""

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None, cut: str = "right", threshold: float = 0.5
    ):
        if not 0 < threshold < 1:
            raise UserError(f"threshold must be between 0 and 1, got {threshold}")
        self.model, self.inner, self.threshold = model, check_classifier(model), threshold
        self.problem, self.names = problem_of(self.inner.config), names_of(self.inner.config)
        self.encoder, self.tokenizer = TextEncoder(tokenizer, room_for(self.inner, tokenizer, max_length), cut), tokenizer

    @property
    def max_length(self) -> int | None:
        """How many tokens of a text are read."""
        return self.encoder.max_length

    @property
    def trunk(self) -> PreTrainedModel:
        """What stands beneath the head."""
        return trunk_of(self.inner)

    @property
    def size(self) -> int:
        """How many numbers the head gives."""
        return self.inner.config.num_labels

    def vectors(self, encoded: Sequence[EncodedText]) -> Tensor:
        """The logits of some texts, [texts, labels]."""
        return self.logits(encoded)

    def stream(self, texts: Iterable[Input]) -> Iterator[Classified]:
        """Say it of one text after the other; no more than `WINDOW` of them are held at a time."""
        for some in at_a_time(texts, WINDOW):
            encoded = self.encode(some)
            yield from map(self.said, self.logits(encoded), encoded)

    def encode(self, texts: Sequence[Input]) -> list[EncodedText]:
        """The texts as the model reads them. Raises UserError for what is no text, for a pair among single texts, and for one without a token."""
        paired = [not isinstance(text, str) for text in texts]
        for place, text in enumerate(texts, start=1):
            if not isinstance(text, str) and not (isinstance(text, (tuple, list)) and len(text) == 2 and all(isinstance(each, str) for each in text)):
                raise UserError(f"text {place} must be a text or a pair of texts, got {text!r:.60}")
        if any(paired) and not all(paired):
            raise UserError("some texts are pairs and some are not: classify them apart")
        if any(paired):
            self.encoder.check_pairs()
        encoded = self.encoder([text[0] for text in texts], [text[1] for text in texts]) if any(paired) else self.encoder(texts)
        if empty := next((place for place, each in enumerate(encoded, start=1) if not each.input_ids), None):
            raise UserError(f"text {empty} is empty, and {self.inner.config.model_type} reads nothing of it: leave it out")
        return encoded

    def logits(self, encoded: Sequence[EncodedText], tokens: int = TOKENS) -> Tensor:
        """What the head gives for each text, [texts, labels] in float32 at least, on the CPU; passes hold so many tokens, texts of like length together."""
        alone = self.inner.config.get_text_config().pad_token_id is None  # a head that looks for the last token needs to know padding
        found = head_outputs(self.model, encoded, 1 if alone else tokens)
        return refuse_broken(torch.stack(found), "logits") if found else torch.empty(0, self.inner.config.num_labels)

    def probabilities(self, logits: Tensor) -> Tensor:
        """[..., labels] as probabilities: of one class of all, or of each label for itself; of a regression as they are."""
        if self.problem == REGRESSION:
            return logits
        return logits.softmax(-1) if self.problem == SINGLE else logits.sigmoid()

    def said(self, logits: Tensor, text: EncodedText) -> Classified:
        """What the logits of one text, [labels], say."""
        read = {"tokens": len(text.input_ids), "truncated": text.truncated}
        if self.problem == REGRESSION:
            return Classified(logits[0].item(), {}, **read)
        probs = dict(zip(self.names, self.probabilities(logits).tolist(), strict=True))
        if self.problem == MULTI:
            return Classified(tuple(name for name, p in probs.items() if p >= self.threshold), probs, **read)
        return Classified(max(probs, key=probs.get), probs, **read)


def check_classifier(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside, which must be a classifier; raises UserError for another."""
    inner = transformers_model(model)
    if not type(inner).__name__.endswith("ForSequenceClassification"):
        raise UserError(f"{type(inner).__name__} has no head that classifies: train one by `seodang classify`, and name that folder")
    return inner


def is_classifier(path: str | os.PathLike) -> bool:
    """Whether a checkpoint that is not loaded is a classifier, or an adapter with the head of one."""
    return has_head(path, AutoModelForSequenceClassification, has_classifier_head)


def has_head(path: str | os.PathLike, model_class: Any, told: Callable[[PreTrainedConfig], bool]) -> bool:
    """Whether a checkpoint that is not loaded has a head of a class, as its config has told, or is an adapter with one."""
    place = resolve(path)
    if is_adapter(place):
        head = head_of(place)
        return head is not None and head.model_class is model_class
    config = known_config(place)
    return config is not None and told(config)


def problem_of(config: PreTrainedConfig) -> str:
    """What a classifier's outputs are; where its config does not say, transformers takes one for a number and several for classes."""
    return config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE)


def names_of(config: PreTrainedConfig) -> list[str]:
    """The names of the labels, in their order."""
    return [config.id2label[place] for place in range(config.num_labels)]


def room_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> int | None:
    """How many tokens a text may have: `max_length`, and no more than model and tokenizer can; None where nothing bounds them.

    Raises UserError for a `max_length` beyond that.
    """
    limit = text_limit(model)
    bounds = [] if limit is None else [limit]
    bounds += [tokenizer.model_max_length] if tokenizer.model_max_length < NO_LIMIT else []
    most = min(bounds, default=None)
    if max_length is not None and most is not None and max_length > most:
        raise UserError(f"max_length is {max_length}, but the model reads {most} tokens at most: set it to that or less")
    return most if max_length is None else max_length


def head_outputs(model: nn.Module, encoded: Sequence[EncodedText | Window], tokens: int = TOKENS) -> list[Tensor]:
    """What a model's head gives for each text, in their order, in float32 at least on the CPU: [labels], or of every token, padded or not, [longest of its batch, labels].

    Passes hold so many tokens when padded, texts of like length together.
    """
    inner, order = transformers_model(model), sorted(range(len(encoded)), key=lambda index: len(encoded[index].input_ids))
    found: list[Any] = [None] * len(encoded)
    with torch.inference_mode(), unpadding(model), evaluating(model):
        for some in batches(order, [len(each.input_ids) for each in encoded], tokens):
            out = model(**padded([encoded[index] for index in some], inner)).logits
            for index, row in zip(some, wide(out).cpu(), strict=True):
                found[index] = row
    return found


def refuse_broken(found: Tensor, what: str) -> Tensor:
    """The numbers that a model gave for texts, [texts, size]. Raises UserError for such as are none."""
    if not found.isfinite().all():
        raise UserError(f"the model gives {what} that are no numbers: it overflows in its dtype (load it in float32 or bfloat16), or its weights are broken")
    return found


def batches(order: Sequence[int], lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """The places of texts, sorted by length, in batches of so many tokens at most when padded; one that is longer stands alone."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[index] > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(texts: Sequence[EncodedText | Window], model: PreTrainedModel) -> dict[str, Tensor]:
    """The texts as a batch, padded on the right: input_ids, attention_mask and, where the model takes them, token_type_ids, each [texts, longest] int64."""
    batch = padded_rows([text.input_ids for text in texts], model.config.get_text_config().pad_token_id or 0)
    if any(text.token_type_ids for text in texts) and "token_type_ids" in inspect.signature(model.forward).parameters:
        batch["token_type_ids"] = pad_right([text.token_type_ids or [0] * len(text.input_ids) for text in texts], 0)  # ids that are given have none
    return {name: rows.to(model.device) for name, rows in batch.items()}
