"""Texts to the entities in them: which parts are whose names, with their places and probabilities."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...data.errors import UserError
from ...data.files.sources import at_a_time
from ...data.tagging.encoding import Place, TagEncoder, TagEncoding
from ...data.tagging.rows import entities_from
from ...data.tagging.schemes import Span, parted, spans_of
from ..runners.architecture import transformers_model
from ..runners.paradigm import has_tagger_head
from .classify import TOKENS, WINDOW, has_head, head_outputs, names_of, refuse_broken, room_for


@dataclass(frozen=True)
class Entity:
    """A part of a text, [start, end) in characters, what it is, what stands there, and how sure the model is: the mean probability of its tags."""

    start: int
    end: int
    label: str
    text: str
    score: float


def tag_texts(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_length: int | None = None, stride: int | None = None, all_subwords: bool | None = None
) -> list[list[Entity]]:
    """The entities of each text, in its order.

    The model is an AutoModelForTokenClassification whose labels are O, B-LABEL and I-LABEL, with or without an adapter. The tags taken together are the likeliest of
    those in which no I- stands without its B- before it (Viterbi's algorithm). A text longer than `max_length` tokens, by default those that the
    model reads, is read in windows that have `stride` tokens in common (None: 32, of small windows a fourth). A word is tagged by its first token, or with `all_subwords`
    every token is (None: as the checkpoint says it was trained). Raises UserError for a model that is no tagger, and for texts that are none.
    """
    if isinstance(texts, str):
        raise UserError("texts must be a list of texts, got one: put it in a list")
    return list(Tagger(model, tokenizer, max_length=max_length, stride=stride, all_subwords=all_subwords).stream(texts))


class Tagger:
    """A tagger and how it reads texts; made once, asked as often as one likes. The arguments are those of `tag_texts`."""

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None, stride: int | None = None, all_subwords: bool | None = None
    ):
        self.model, self.inner, self.tokenizer = model, check_tagger(model), tokenizer
        self.names = names_of(self.inner.config)
        check_tags(self.names)
        every = labels_all_subwords(self.inner.config) if all_subwords is None else all_subwords
        self.encoder = TagEncoder(tokenizer, room_for(self.inner, tokenizer, max_length), stride, every)
        self._allowed = transitions(self.names)

    def stream(self, texts: Iterable[str]) -> Iterator[list[Entity]]:
        """The entities of one text after the other; no more than `WINDOW` of them are held at a time."""
        for some in at_a_time(texts, WINDOW):
            yield from self.entities(some, self.encode(some))

    def encode(self, texts: Sequence[str], words: Sequence[Sequence[Place] | None] | None = None) -> list[TagEncoding]:
        """The texts, with the words that they may come with, as the model reads them. Raises UserError for what is no text."""
        for place, text in enumerate(texts, start=1):
            if not isinstance(text, str):
                raise UserError(f"text {place} must be a text, got {text!r:.60}")
        return self.encoder(texts, words)

    def entities(self, texts: Sequence[str], encoded: Sequence[TagEncoding], tokens: int = TOKENS) -> list[list[Entity]]:
        """The entities of texts that are encoded, in passes of so many tokens."""
        logits = self.logits(encoded, tokens)
        return [self.said(text, found, rows) for text, found, rows in zip(texts, encoded, logits, strict=True)]

    def logits(self, encoded: Sequence[TagEncoding], tokens: int = TOKENS) -> list[Tensor]:
        """What the head gives for the parts of each text that get a tag, [parts, tags] each, in float32 at least on the CPU."""
        windows = [(text, window) for text, found in enumerate(encoded) for window in found.windows if window.asked]
        of: list[list[Tensor]] = [[] for _ in encoded]
        for (text, window), logits in zip(windows, head_outputs(self.model, [window for _, window in windows], tokens), strict=True):
            of[text].append(refuse_broken(logits[list(window.asked)], "logits"))
        return [torch.cat(parts) if parts else torch.empty(0, len(self.names)) for parts in of]

    def said(self, text: str, found: TagEncoding, logits: Tensor) -> list[Entity]:
        """What the logits of a text's parts, [parts, tags], say."""
        probs = logits.softmax(-1)
        tags, spans = tags_and_spans(logits, self.names, self._allowed)
        taken = probs[torch.arange(len(tags)), tags] if len(tags) else probs.new_empty(0)
        places = entities_from(spans, found.units)
        return [
            Entity(start, end, label, text[start:end], taken[span.start : span.end].mean().item())
            for (start, end, label), span in zip(places, spans, strict=True)
        ]


# What tags may follow one another


def transitions(names: Sequence[str]) -> Tensor:
    """What may stand first, and what behind each tag: [1 + tags, tags] boolean. An I- needs a B- or I- of its label before it, where there is such a B-."""
    begins = {label for prefix, label in map(parted, names) if prefix == "B"}
    allowed = torch.ones(len(names) + 1, len(names), dtype=torch.bool)
    for place, (prefix, label) in enumerate(map(parted, names)):
        if prefix == "I" and label in begins:
            allowed[0, place] = False
            allowed[1:, place] = torch.tensor([parted(before) in (("B", label), ("I", label)) for before in names])
    return allowed


def tags_and_spans(logits: Tensor, names: Sequence[str], allowed: Tensor) -> tuple[Tensor, list[Span]]:
    """What the logits of a text's parts, [parts, tags], say: the likeliest tags that may stand so, [parts] int64, and the entities that they are, counted in parts."""
    tags = likeliest_tags(logits.log_softmax(-1), allowed)
    return tags, spans_of([names[tag] for tag in tags.tolist()])


def likeliest_tags(logprobs: Tensor, allowed: Tensor) -> Tensor:
    """The sequence of the highest sum of log-probabilities, [tokens, tags], in which every tag may stand behind the one before it: [tokens] int64.

    Where the likeliest tag of each token makes such a sequence, that is it.
    """
    tags = logprobs.argmax(-1)
    before = torch.cat([tags.new_zeros(1), tags + 1])[:-1]
    if not len(tags) or allowed[before, tags].all():
        return tags
    closed = torch.zeros(allowed.shape, dtype=logprobs.dtype).masked_fill(~allowed, -torch.inf)
    best, came = logprobs[0] + closed[0], []
    for row in logprobs[1:]:
        best, source = (best[:, None] + closed[1:]).max(0)
        best = best + row
        came.append(source)
    tag = best.argmax()
    path = [tag]
    for source in reversed(came):
        tag = source[tag]
        path.append(tag)
    return torch.stack(path[::-1])


# What a checkpoint says


def check_tagger(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside, which must be a tagger; raises UserError for another."""
    inner = transformers_model(model)
    if not type(inner).__name__.endswith("ForTokenClassification"):
        raise UserError(f"{type(inner).__name__} has no head that tags tokens: train one by `seodang tag`, and name that folder")
    return inner


def is_tagger(path: str | os.PathLike) -> bool:
    """Whether a checkpoint that is not loaded is a tagger, or an adapter with the head of one."""
    return has_head(path, AutoModelForTokenClassification, has_tagger_head)


def check_tags(names: Sequence[str]) -> None:
    """Raise UserError for a model whose labels are not those of entities."""
    for name in names:
        try:
            parted(name)
        except UserError:
            raise UserError(f"the model tells apart {', '.join(names[:6])}, and {name!r} is no tag of entities: use one whose labels are O, B-LABEL and I-LABEL") from None


def labels_all_subwords(config: PreTrainedConfig) -> bool:
    """Whether a tagger was trained to tag every token; one of others is taken to tag the first of a word, as most are."""
    return bool(getattr(config, "label_all_subwords", False))
