"""An encoder that lives on: texts come at any time and from any thread, and those that wait together go through it together, without padding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.classification.encoding import EncodedText
from ...data.errors import UserError
from ..engine.embedding import EmbeddingTicket, no_text
from ..engine.live import LiveEngine
from ..engine.loop import Ticket
from ..engine.params import SamplingParams
from ..engine.prompts import Prompt
from ..engine.reading import PromptReading
from ..requests.events import Answer, Event
from ..requests.generation import Generation
from ..requests.request import Request
from ..requests.sequence import new_slot
from ..requests.strategy import Host, Strategy
from ..runners.architecture import Capabilities, ModelOutput, check_pass, refuse_source
from ..runners.batched import CacheSlots
from ..strategies.spec import StrategySpec
from ..text.vocabulary import check_ids

VECTOR = 0  # the layer, in a pass's words, whose states are a text's vector


class Reader(Protocol):
    """What makes a row of numbers of each text: a `SentenceEncoder`, a `Classifier`."""

    model: nn.Module
    trunk: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    size: int

    def vectors(self, encoded: Sequence[EncodedText]) -> Tensor:
        """The rows of some texts: [texts, size]."""


@dataclass(frozen=True, eq=False)
class TextRequest(Request):
    """A text whose vector is asked for, its tokens' types where it has any, and whether it had more tokens than the encoder reads."""

    truncated: bool = False
    token_type_ids: tuple[int, ...] | None = None


class EncoderRunner(CacheSlots):
    """A sentence encoder as a `Runner`: a slot is a text, read at once, of which nothing is kept but how long it was.

    Of a pass it gives no logits, and as the states of layer `VECTOR` each text's vector in the place of its first token; the others hold zeros.
    """

    capabilities = Capabilities(all_positions=False, truncate=False, fork=False, hidden_states=True, parts=False)

    def __init__(self, encoder: Reader):
        super().__init__()
        self.types: dict[int, list[int]] = {}  # of the texts in slots that are still to be read
        self.encoder, self.model, self.config, self.limit = encoder, encoder.model, encoder.trunk.config, encoder.max_length

    @property
    def vocab_size(self) -> int:
        """How many ids a text's tokens can have."""
        return self.encoder.trunk.get_input_embeddings().weight.shape[0]

    @property
    def memory(self) -> int:
        """Nothing: an encoder has no past."""
        return 0

    def bytes_for(self, positions: int, source: int = 0) -> int:
        """Nothing: an encoder has no past."""
        return 0

    def allocate(self, source_ids: Sequence[int] = ()) -> int:
        """Return a new slot; raises UserError for a source, which it does not read."""
        refuse_source(self.config, source_ids)
        return self._add()

    def truncate(self, slot: int, length: int) -> None:
        """Raise UserError: what an encoder has read cannot be cut."""
        raise UserError(f"{self.config.model_type} is an encoder: what it has read cannot be cut")

    def observe(self, slots: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int], layers: Collection[int]) -> ModelOutput:
        """Read whole texts, and return their vectors as the class says."""
        check_pass(slots, ids, keep, self.vocab_size)
        if any(keep) or set(layers) - {VECTOR}:
            raise UserError(f"{self.config.model_type} is an encoder: it gives vectors of texts, and no logits")
        vectors = self.encoder.vectors([EncodedText(list(text), self.types.pop(slot, None), len(text)) for slot, text in zip(slots, ids)])
        for slot, text in zip(slots, ids):
            self._lengths[slot] += len(text)
        self.passes, self.positions = self.passes + 1, self.positions + sum(map(len, ids))
        firsts = torch.tensor([0, *map(len, ids)]).cumsum(0)[:-1]
        states = vectors.new_zeros(sum(map(len, ids)), vectors.shape[1]).index_copy(0, firsts, vectors)
        return ModelOutput(vectors.new_zeros(0, 1), {VECTOR: states})

    def head(self, states: Tensor) -> Tensor:
        """Raise UserError: an encoder has no head that goes on with a text."""
        raise UserError(f"{self.config.model_type} is an encoder: it has no head that goes on with a text")


class LiveEncoder(LiveEngine):
    """Turns texts into vectors that come at any time, from any thread, in passes that they share; a context manager, as `LiveEngine`."""

    called = "encoder"  # in what is said of it

    def __init__(self, encoder: Reader, **how):
        """`how` is what `LiveEngine` takes: how many texts share a pass at most (`max_rows`), and how many wait."""
        super().__init__(encoder.model, encoder.tokenizer, runner=EncoderRunner(encoder), reuse_prefixes=False, **how)
        self.encoder = encoder

    @property
    def vector_size(self) -> int:
        """How many numbers a vector has."""
        return self.encoder.size

    def submit(self, prompt: Prompt, params: SamplingParams | None = None, **how) -> Ticket:
        """Raise UserError: an encoder answers nothing."""
        raise UserError(f"{self.model.config.model_type} is an encoder: it turns texts into vectors and answers none, use a model that speaks")

    def embed(
        self,
        prompt: Prompt,
        *,
        prompt_name: str | None = None,
        truncate: bool = False,
        on_event: Callable[[Event], None] | None = None,
        **how,
    ) -> EmbeddingTicket:
        """Hand in a text, or ids, to be turned into a vector as by `SentenceEncoder`, and return at once.

        The words of the prompt `prompt_name` stand before a text. Raises UserError for a text that is longer than the encoder reads, unless it is to be
        truncated (the ticket's request, a `TextRequest`, says which were); QueueFull and EngineClosed as `LiveEngine.submit`.
        """
        if given := [name for name, value in how.items() if value is not None]:
            raise UserError(f"{given[0]} is for models that speak: leave it out, {self.model.config.model_type} is an encoder")
        return self._hand_in(lambda: self._request(prompt, prompt_name, truncate), EmbeddingTicket, on_event)

    def describe(self) -> str:
        """What it makes, in a line."""
        readout = self.encoder.readout
        how = f"{' and '.join(readout.modes)} pooling{', normalised' if readout.normalised else ''}"
        return f"an encoder: vectors of {self.vector_size} numbers ({how}) of texts of up to {self.encoder.max_length} tokens"

    def _request(self, prompt: Prompt, name: str | None, truncate: bool) -> TextRequest:
        return self._asked(self.encoder.encode([prompt], name, called="prompt")[0] if isinstance(prompt, str) else self._given(prompt), truncate)

    def _given(self, ids: Sequence[int]) -> EncodedText:
        """Ids as they are given, as many as are read; raises UserError for such as there are not."""
        check_ids(ids, self._loop.engine.runner.vocab_size, "prompt 1")
        return EncodedText(list(ids[: self.encoder.max_length]), None, len(ids))

    def _asked(self, text: EncodedText, truncate: bool) -> TextRequest:
        """The request for a text's vector; raises UserError for one that is longer than is read, unless it is to be truncated."""
        if text.truncated and not truncate:
            most = self.encoder.max_length
            raise UserError(f"prompt 1 has {text.whole} tokens, more than the {most} that the {self.called} reads: shorten it, or have it truncated (truncate)")
        types = None if text.token_type_ids is None else tuple(text.token_type_ids)
        params = SamplingParams(max_new_tokens=1)  # of which nothing is asked: no token is chosen
        return TextRequest(
            0, text.input_ids, params, 0, frozenset(), no_text, VECTORS, tokenizer=self.tokenizer, truncated=text.truncated, token_type_ids=types
        )


def vector(generation: Generation, host: Host) -> Strategy:
    """Leave the text's vector with the request."""
    request, runner = generation.request, host.runner
    reading = PromptReading(generation, runner, new_slot(generation, runner), list(request.prompt_ids))
    if request.token_type_ids is not None:
        runner.types[reading.cache_slot] = list(request.token_type_ids)
    forward = reading.part(len(reading.ids))
    forward.layers = (VECTOR,)
    yield forward
    generation.release_slot(runner, reading.cache_slot)
    generation.embedding = forward.states[VECTOR][0].cpu()
    generation.finish(Answer([], [], [], "stop", request.seed), choice=0)


VECTORS = StrategySpec(
    "vector", vector, about=vector, needs=("hidden_states",), width=lambda request: 1, guided=False, samples=False, encoder_decoder=False, reads_prompt=True,
)  # fmt: skip
