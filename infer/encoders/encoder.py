"""An encoder with its head of masked language modelling: texts to ids, and what it makes of chosen positions, without padding."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from ...data.errors import UserError
from ...data.literal import continuing, refuse_more
from ...data.long_text import TooManyTokens
from ...data.surrogates import refuse_surrogates
from ..requests.likelihoods import MAX_LOGITS
from ..runners.architecture import evaluating, text_limit, transformers_model
from ..runners.paradigm import diffusion_of, is_encoder, kind_of_encoder, masked_lm_class
from ..text.vocabulary import check_ids, known_ids

MAX_POSITIONS = 8192  # a pass, of all its rows
SPELLINGS = re.compile(r"[\[<]\|?mask\|?[\]>]", re.IGNORECASE)  # what masks are called elsewhere: [MASK], <mask>, <|mask|>


@dataclass(frozen=True)
class Reading:
    """A text as an encoder reads it: ids and their token types (None where it has none), what the tokenizer put around it, and the word of each token."""

    ids: list[int]
    types: list[int] | None
    around: list[bool]
    words: list[int | None]

    def with_tokens(self, tokens: Mapping[int, int]) -> Reading:
        """The same with other ids at some places."""
        return replace(self, ids=[tokens.get(place, id) for place, id in enumerate(self.ids)])


@dataclass(frozen=True)
class Question:
    """What stands at some places of a reading."""

    reading: Reading
    places: Sequence[int]


class Encoder:
    """A masked language model and its tokenizer. Raises UserError for a model that is none, and for a tokenizer without a mask token."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = transformers_model(model), tokenizer
        refuse_without_masks(self.model.config)
        wanted = masked_lm_class(self.model.config)
        if not isinstance(self.model, wanted):
            remedy = f"use a checkpoint saved as {wanted.__name__}, or train such a head on this one by `seodang mlm`"
            raise UserError(f"{type(self.model).__name__} has no masked-language head, it is {kind_of_encoder([type(self.model).__name__])}: {remedy}")
        if tokenizer.mask_token_id is None:
            raise UserError("the tokenizer has no mask token: give the one that the model was trained with, or set its mask_token")
        self.mask_id: int = tokenizer.mask_token_id
        self.limit = text_limit(self.model)
        self.vocab = self.model.get_input_embeddings().weight.shape[0]
        self._takes = inspect.signature(self.model.forward).parameters

    @property
    def known(self) -> int:
        """How many first ids the tokenizer has a token for."""
        return known_ids(self.tokenizer, self.vocab)

    def read(self, text: str, where: str) -> Reading:
        """Encode a text, with what the tokenizer puts around one. Raises UserError, which begins with `where`, for one that the model cannot read."""
        if not isinstance(text, str):
            raise UserError(f"{where} must be a text, got {type(text).__name__}")
        refuse_surrogates(text, where)
        try:
            refuse_more(self.tokenizer, text, self.limit)
        except TooManyTokens as found:
            raise self._too_long(where, str(found)) from None
        found = self.tokenizer(text, return_special_tokens_mask=True, verbose=False)
        words = found.word_ids() if self.tokenizer.is_fast else [None] * len(found["input_ids"])
        reading = Reading(found["input_ids"], found.get("token_type_ids"), [bool(each) for each in found["special_tokens_mask"]], words)
        return self.checked(reading, where)

    def behind(self, reading: Reading, piece: str, where: str) -> tuple[Reading, range]:
        """A reading with a further text at the end of its own, and where that stands; raises UserError for one without tokens, or if both are too long."""
        refuse_surrogates(piece, where)
        tokens = continuing(self._tokens, piece)
        if not tokens:
            raise UserError(f"{where} has no tokens: there is nothing to judge")
        end = max((place + 1 for place, around in enumerate(reading.around) if not around), default=0)
        if not end:
            raise UserError(f"{where} stands behind a text without tokens: leave that out")

        def inserted(values: list, more: list) -> list:
            return values[:end] + more + values[end:]

        types = None if reading.types is None else inserted(reading.types, reading.types[end - 1 : end] * len(tokens))
        ids, words = inserted(reading.ids, [id for id, _ in tokens]), inserted(reading.words, [word for _, word in tokens])
        whole = Reading(ids, types, inserted(reading.around, [False] * len(tokens)), words)
        return self.checked(whole, where), range(end, end + len(tokens))

    def _tokens(self, text: str) -> list[tuple[int, int | None]]:
        """A text's ids, each with its word."""
        found = self.tokenizer(text, add_special_tokens=False, verbose=False)
        return list(zip(found["input_ids"], found.word_ids() if self.tokenizer.is_fast else [None] * len(found["input_ids"])))

    def checked(self, reading: Reading, where: str) -> Reading:
        """The reading; raises UserError for one that has more tokens than the model positions, or ids beyond its embeddings."""
        if self.limit is not None and len(reading.ids) > self.limit:
            raise self._too_long(where, f"{len(reading.ids)} tokens")
        check_ids(reading.ids or [0], self.vocab, where)
        return reading

    def _too_long(self, where: str, told: str) -> UserError:
        return UserError(f"{where} has {told}, more than the {self.limit} positions of the encoder: shorten it")

    def masks(self, reading: Reading) -> list[int]:
        """Where a reading has masks."""
        return [place for place, id in enumerate(reading.ids) if id == self.mask_id]

    def refuse_other_mask(self, text: str, where: str) -> None:
        """Raise UserError for a text in which a mask is spelled as other tokenizers spell it: this one would read it as so many letters."""
        own = self.tokenizer.mask_token
        if other := next((each for each in SPELLINGS.findall(text.replace(own, "")) if each != own), None):
            raise UserError(f"{where} has {other}, but this checkpoint's mask is spelled {own}: write {own}")

    def answers(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Tensor]]:
        """Yield each question with the logits of its places, [places, vocab], in passes of bounded size.

        Questions of one length that follow one another share a pass, so that no row is padded: give them in the order of their lengths.
        """
        for some in passes(questions):
            yield from zip(some, self._logits(some).split([len(question.places) for question in some]))

    @torch.inference_mode()
    def _logits(self, questions: Sequence[Question]) -> Tensor:
        """The logits of all places of the questions, [sum of places, vocab]."""
        device = self.model.get_input_embeddings().weight.device
        ids = torch.tensor([question.reading.ids for question in questions], device=device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if questions[0].reading.types is not None:
            inputs["token_type_ids"] = torch.tensor([question.reading.types for question in questions], device=device)
        rows = torch.tensor([row for row, question in enumerate(questions) for _ in question.places], device=device)
        places = torch.tensor([place for question in questions for place in question.places], device=device)
        with evaluating(self.model), head_at(self.model, rows, places):
            logits = self.model(**{name: value for name, value in inputs.items() if name in self._takes}).logits
        logits = logits.squeeze(1) if logits.shape[1] == 1 else logits[rows, places]  # the latter where all positions were judged
        if logits.isnan().any():
            raise UserError(f"{type(self.model).__name__} gives nan for what stands at a mask: its weights are damaged, or too large for {logits.dtype}")
        return logits


def passes(questions: Iterable[Question]) -> Iterator[list[Question]]:
    """The questions in passes of bounded size and of one length each, one question at least in each."""
    some: list[Question] = []
    positions = logits = 0
    for question in questions:
        size = len(question.reading.ids)
        full = positions + size > MAX_POSITIONS or logits + len(question.places) > MAX_LOGITS
        if some and (full or size != len(some[0].reading.ids) or (question.reading.types is None) is not (some[0].reading.types is None)):
            yield some
            some, positions, logits = [], 0, 0
        some.append(question)
        positions, logits = positions + size, logits + len(question.places)
    if some:
        yield some


@contextmanager
def head_at(model: nn.Module, rows: Tensor, places: Tensor) -> Iterator[None]:
    """Let a model's head judge these places of these rows alone, [n] each: its logits are then [n, 1, vocab].

    What lies beneath the head hands up the states of those places, as if each were a text of its own: a head judges each position by itself. All are
    judged, [rows, positions, vocab], where head and body are not apart.
    """
    if model.base_model is model:
        yield
        return

    def chosen(module: nn.Module, inputs: tuple, output: ModelOutput | tuple) -> ModelOutput | tuple:
        states = output[0][rows, places].unsqueeze(1)
        if isinstance(output, tuple):
            return (states, *output[1:])
        output[next(iter(output))] = states
        return output

    handle = model.base_model.register_forward_hook(chosen)
    try:
        yield
    finally:
        handle.remove()


def refuse_without_masks(config: PreTrainedConfig) -> None:
    """Raise UserError for a configuration of a model that fills in no masks, by name: a decoder, an encoder-decoder, a model of masked diffusion."""
    if is_encoder(config):
        return
    kind = config.model_type
    if diffusion_of(config) is not None:
        raise UserError(f"this {kind} is a masked-diffusion model, whose gaps `seodang generate` fills (--template): use that, or an encoder")
    if config.is_encoder_decoder:
        raise UserError(f"{kind} is an encoder-decoder model, which writes texts and fills in no masks: use `seodang generate`, or an encoder such as BERT")
    raise UserError(f"{kind} is a decoder, which reads from left to right and fills in no masks: use `seodang generate`, or an encoder such as BERT")
