"""Texts to vectors: of an encoder by what its folder says of pooling, of a decoder the mean of its last layer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from ...data.classification.encoding import EncodedText, TextEncoder
from ...data.errors import UserError
from ...data.surrogates import refuse_surrogates
from ..checkpoint.load import is_adapter, load, resolve
from ..engine.checkpoint_settings import known_config
from ..engine.embedding import embed as embed_by_decoder
from ..engine.prompts import Prompt
from ..kernels.products import onednn_products
from ..runners.architecture import evaluating, text_limit, transformers_model
from ..runners.paradigm import has_classifier_head, has_tagger_head, is_encoder
from .classify import batches, padded, refuse_broken, room_for
from .readout import Normalise, Readout
from .sentence_folder import is_sentence_folder, read_readout, trunk_folder
from .unpadded import trunk_of, unpadding

logger = logging.getLogger(__name__)

PASS = {"cpu": 2048}  # tokens a pass, of texts of like length: more take no less time each, and more memory
PASS_ELSEWHERE = 32_768
MANY_UNKNOWN = 0.1  # of the tokens, beyond which a tokenizer is no tokenizer of such texts


@dataclass
class TextAccount:
    """What was lost of texts on their way into ids; `unknown` counts the tokens that stand for what the tokenizer has no word for."""

    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    longest: int = 0
    content: int = 0  # tokens beside the special ones
    unknown: int = 0

    def add(self, encoded: Sequence[EncodedText], specials: int, unknown: int | None) -> None:
        """Count some more texts, each with so many special tokens."""
        self.texts += len(encoded)
        self.tokens += sum(len(each.input_ids) for each in encoded)
        self.truncated += sum(each.truncated for each in encoded)
        self.longest = max(self.longest, *(each.whole for each in encoded)) if encoded else self.longest
        self.content += sum(len(each.input_ids) - specials for each in encoded)
        self.unknown += 0 if unknown is None else sum(each.input_ids.count(unknown) for each in encoded)

    def lines(self, most: int | None) -> list[str]:
        """What is worth a warning."""
        told = []
        if self.truncated:
            told.append(
                f"{self.truncated:,} of {self.texts:,} texts are longer than {most} tokens (the longest has {self.longest:,}): of each the first {most} are read"
            )
        return [*told, *self.unknown_lines()]

    def unknown_lines(self) -> list[str]:
        """What share of the tokens is unknown, where that is large."""
        if self.unknown <= MANY_UNKNOWN * self.content:
            return []
        lost = "it was made for another language or script, and what stands there is lost; use a model for these texts"
        return [f"{self.unknown / self.content:.0%} of the tokens are unknown to the model's tokenizer: {lost}"]


class SentenceEncoder:
    """An encoder with what makes vectors of its hidden states; texts of unequal lengths run without padding, and none depends on the others.

        encoder = SentenceEncoder.open("default-encoder")
        vectors = encoder.embed(["a cat", "a kitten"])

    `max_length` is how many tokens of a text are read. Raises UserError for more than the model has positions.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, readout: Readout = Readout()):
        self.model, self.tokenizer, self.readout = transformers_model(model), tokenizer, readout
        self.trunk: PreTrainedModel = trunk_of(self.model)
        self.max_length = length_read(self.trunk, tokenizer, readout.max_length)
        self.encoder = TextEncoder(tokenizer, self.max_length)
        self.specials = tokenizer.num_special_tokens_to_add()

    @classmethod
    def open(
        cls, path: str | os.PathLike, *, device: str = "auto", dtype: str = "auto", pooling: str | None = None, normalise: bool | None = None,
        max_length: int | None = None,
    ) -> SentenceEncoder:  # fmt: skip
        """Load a sentence-transformers folder as it says, or any encoder with a mean over its tokens, not normalised, where nothing else is given.

        Raises UserError as `load` does, and for a pooling beside a folder that says its own.
        """
        readout = readout_in(resolve(path), pooling, normalise, max_length)
        return cls(*load_trunk(path, device=device, dtype=dtype), readout)

    @property
    def size(self) -> int:
        """How many numbers a vector has."""
        return self.readout.size(self.trunk.config.hidden_size)

    def encode(self, texts: Sequence[str], prompt: str | None = None, *, called: str = "text") -> list[EncodedText]:
        """The ids of texts behind the words of a prompt of the model's, by its name. Raises UserError, in which they are so called, for what is no text, and for an empty one."""
        refuse_what_is_no_text(texts, called)
        before = self.readout.prompt_of(prompt)
        whole = [before + text for text in texts]
        return self.encoder([text.lower() for text in whole] if self.readout.lower else whole)

    def vectors(self, encoded: Sequence[EncodedText]) -> Tensor:
        """The vectors of encoded texts: [n, size], in float32 at least, on the CPU."""
        lengths, parameter = [len(each.input_ids) for each in encoded], next(self.trunk.parameters())
        order = sorted(range(len(encoded)), key=lengths.__getitem__)
        out = torch.empty(len(encoded), self.size, dtype=torch.promote_types(parameter.dtype, torch.float32))
        with evaluating(self.model), torch.no_grad(), unpadding(self.trunk), onednn_products():
            for places in batches(order, lengths, PASS.get(parameter.device.type, PASS_ELSEWHERE)):
                batch = padded([encoded[place] for place in places], self.trunk)
                out[places] = self.readout(self.trunk(**batch).last_hidden_state, batch["attention_mask"]).to(out.device, out.dtype)
        return refuse_broken(out, "vectors")

    def embed(self, texts: Sequence[str], *, prompt: str | None = None, too_long: str = "truncate") -> Tensor:
        """The vectors of texts: [n, size], in float32 at least, on the CPU.

        Longer ones lose their ends, as in sentence-transformers, and a warning says how many; with `too_long` "error" they are refused. A warning says
        too where the tokenizer does not know what is written.
        """
        encoded = self.encode(texts, prompt)
        self.refuse_too_long(encoded, too_long)
        for line in self.count(TextAccount(), encoded).lines(self.max_length):
            logger.warning(line)
        return self.vectors(encoded)

    def count(self, account: TextAccount, encoded: Sequence[EncodedText]) -> TextAccount:
        """Count encoded texts, and return the account."""
        account.add(encoded, self.specials, unknown_id(self.tokenizer))
        return account

    def refuse_too_long(self, encoded: Sequence[EncodedText], too_long: str, where: Callable[[int], str] = lambda place: f"text {place + 1}") -> None:
        """Raise UserError where `too_long` is "error" and a text is longer than the encoder."""
        if too_long not in ("truncate", "error"):
            raise UserError(f"too_long must be truncate or error, got {too_long!r}")
        place = next((place for place, each in enumerate(encoded) if each.truncated), None)
        if too_long == "error" and place is not None:
            raise UserError(f"{where(place)} has {encoded[place].whole:,} tokens, more than the {self.max_length} that the encoder reads: shorten it")


def load_trunk(path: str | os.PathLike, *, device: str = "auto", dtype: str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load what of a checkpoint makes hidden states, and its tokenizer; raises UserError as `load` does."""
    place = resolve(path)
    return load(trunk_folder(place) if is_sentence_folder(place) else place, device=device, dtype=dtype, model_class=AutoModel)


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that stands for what a tokenizer does not know; None where the same id ends texts (GPT-2)."""
    return None if tokenizer.unk_token_id == tokenizer.eos_token_id else tokenizer.unk_token_id


def unknown_lines(texts: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase, paired: bool = False) -> list[str]:
    """A warning with the share of the tokens of texts, or of pairs, that a tokenizer does not know, where that is large."""
    account = TextAccount()
    account.add([EncodedText(ids, None, len(ids)) for ids in texts], tokenizer.num_special_tokens_to_add(pair=paired), unknown_id(tokenizer))
    return [f"warning         {line}" for line in account.unknown_lines()]


def embed(model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], attention_masks: Sequence[Sequence[int] | None] | None = None) -> Tensor:
    """Return a vector for each text (to a decoder also messages, or ids): [n, size], in float32 at least, on the CPU.

    An encoder's is made as its folder says (`SentenceEncoder`), a decoder's is the mean of the last layer's hidden states, after the final norm, over
    all positions of the prompt; those that an attention mask has a 0 for are neither seen nor counted. Its length is what it comes to: divide by it
    where only the direction is to count. Raises UserError, before anything is computed, for a prompt that is empty, for one that a decoder cannot read
    whole, and for a model whose runner gives no hidden states.
    """
    if not gives_states(transformers_model(model)):
        return embed_by_decoder(model, tokenizer, prompts, attention_masks)
    if attention_masks is not None:
        raise UserError("attention_masks are for decoders: an encoder reads its texts whole, leave them out")
    return SentenceEncoder(model, tokenizer, readout_of(model)).embed(prompts)


def gives_states(model: PreTrainedModel) -> bool:
    """Whether a model is asked for hidden states of whole texts, and not to go on with them: an encoder, or a trunk without a head."""
    return is_encoder(model.config) or not model.config.is_encoder_decoder and model.get_output_embeddings() is None


def readout_of(model: nn.Module) -> Readout:
    """How vectors are made of a model's states, by the folder that it was loaded from; a mean over the tokens where that does not say."""
    place = transformers_model(model).config._name_or_path
    return read_readout(place) if place and is_sentence_folder(place) else Readout()


def readout_in(place: str, pooling: str | None = None, normalise: bool | None = None, max_length: int | None = None) -> Readout:
    """How vectors are made of a checkpoint's states, by its folder or, where that does not say, by what is given."""
    own = read_readout(place) if is_sentence_folder(place) else None
    if own is not None and pooling is not None and own.modes != (pooling,):
        raise UserError(f"pooling {pooling}: {place} says itself how it pools ({' and '.join(own.modes)}), and another gives no meaningful vectors: leave it out")
    readout = own or Readout(modes=(pooling or "mean",))
    if normalise is not None and normalise != readout.normalised:
        readout = replace(readout, steps=(*readout.steps, Normalise()) if normalise else tuple(step for step in readout.steps if not isinstance(step, Normalise)))
    return readout if max_length is None else replace(readout, max_length=max_length)


def length_read(trunk: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: int | None) -> int | None:
    """How many tokens of a text are read: those asked for, whatever the tokenizer's own limit. Raises UserError for more than the model has positions."""
    if asked is None:
        return room_for(trunk, tokenizer)
    most = text_limit(trunk)
    if most is not None and asked > most:
        raise UserError(f"max_length {asked} is more than the {most} positions of the model: lower it")
    return asked


def refuse_what_is_no_text(texts: Sequence[str], called: str = "text") -> None:
    """Raise UserError for texts that are not in a list, and for one that is none, is empty or holds half a character."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise UserError(f"{called}s must be a list of texts, got {type(texts).__name__}: put the one text in a list")
    for place, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise UserError(f"{called} {place} must be a text, got {text!r:.60}")
        if not text.strip():
            raise UserError(f"{called} {place} is empty: leave it out, no vector says anything of it")
        refuse_surrogates(text, f"{called} {place}")


def makes_vectors(path: str | os.PathLike, headed: bool = False) -> bool:
    """Whether a checkpoint that is not loaded is an encoder without a head, or one of sentence-transformers, of which vectors are all that can be asked.

    With `headed` an encoder with a classifier's or a tagger's head counts too.
    """
    place = resolve(path)
    if is_adapter(place):
        return False
    if is_sentence_folder(place):
        return True
    config = known_config(place)
    return config is not None and is_encoder(config) and (headed or not (has_classifier_head(config) or has_tagger_head(config)))
