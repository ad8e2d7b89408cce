"""Prompts to vectors: the mean of what a model's last layer makes of their positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ...data.long_text import TooManyTokens
from ..filters.logits import wide
from ..requests.events import Answer
from ..requests.generation import Generation
from ..requests.request import Request
from ..requests.sequence import new_slot
from ..requests.strategy import Host, Strategy
from ..runners.architecture import transformers_model
from ..runners.by_length import hangs_on_length
from ..runners.contract import Runner
from ..runners.open import open_runner
from ..runners.paradigm import refuse_diffusion
from ..strategies.spec import StrategySpec
from ..text.spans import positions_to_mask
from .core import Engine
from .generate import run
from .loop import EngineClosed, Ticket
from .params import SamplingParams
from .prompts import Prompt, encode, refuse_masking
from .reading import PromptReading

LAST = -1  # layer, after the final norm


def embed(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], attention_masks: Sequence[Sequence[int] | None] | None = None
) -> Tensor:
    """Return a vector for each text (or messages, or ids): [n, hidden], in float32 at least, on the CPU.

    It is the mean of the last layer's hidden states, after the final norm, over all positions of the prompt; those that an attention mask has
    a 0 for are neither seen nor counted. Its length is what it comes to: divide by it where only the direction is to count. Raises
    UserError, before anything is computed, for a prompt that is empty or too long, and for a model whose runner gives no hidden states.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise UserError(f"prompts must be a list of prompts, got {type(prompts).__name__}: put the one prompt in a list")
    masks = [None] * len(prompts) if attention_masks is None else attention_masks
    if len(masks) != len(prompts):
        raise UserError(f"{len(masks)} attention masks for {len(prompts)} prompts: give one a prompt, or None")
    engine = Engine(open_runner(model))
    asked = [embedding_request(index, prompt, tokenizer, engine, mask) for index, (prompt, mask) in enumerate(zip(prompts, masks))]
    generations = [Generation(request) for request in asked]
    for _ in run(engine, generations, raises=True):
        pass
    none = torch.empty(0, embedding_size(model))
    return torch.stack([generation.embedding for generation in generations]) if generations else none


def embedding_size(model: nn.Module) -> int:
    """Return how many numbers a vector of the model has."""
    return transformers_model(model).config.get_text_config().hidden_size


class EmbeddingTicket(Ticket):
    """A prompt that was handed in to be turned into a vector; of events it has the `Finished` alone."""

    def embedding(self, timeout: float | None = None) -> Tensor:
        """Wait for the vector, [hidden], in float32 at least, and return it.

        Raises TimeoutError where it is not there after so many seconds, the UserError that ended the request, EngineClosed where it was cancelled.
        """
        self.results(timeout)
        if self.generation.error is not None:
            raise self.generation.error
        if self.generation.embedding is None:
            raise EngineClosed("the embedding was cancelled before it was there: ask for it again")
        return self.generation.embedding


def embedding_request(
    index: int, prompt: Prompt, tokenizer: PreTrainedTokenizerBase, host: Host, attention_mask: Sequence[int] | None = None
) -> Request:
    """Encode a prompt and return the request for its vector, which no prefix cache is read or written for.

    Raises UserError for a prompt that the model cannot read whole, and for a model without hidden states of it.
    """
    runner, name = host.runner, f"prompt {index + 1}"
    refuse_without_states(runner)
    try:
        ids = encode(tokenizer, prompt, name, runner.config.vocab_size, most=runner.limit)
        if runner.limit is not None and len(ids) > runner.limit:
            raise TooManyTokens(f"{len(ids)} tokens")
    except TooManyTokens as found:
        raise UserError(f"{name} has {found}, more than the {runner.limit} positions of the model: shorten it") from None
    masked: tuple[int, ...] = ()
    if attention_mask is not None:
        refuse_masking(runner)
        masked = positions_to_mask(tokenizer, prompt, ids, (), attention_mask, name)
    params = SamplingParams(max_new_tokens=1)  # of which nothing is asked: no token is chosen
    return Request(index, ids, params, 0, frozenset(), no_text, EMBEDDING, masked_positions=masked, tokenizer=tokenizer)


def refuse_without_states(runner: Runner) -> None:
    """Raise UserError where a runner gives no hidden states of a prompt."""
    kind = runner.config.model_type
    if runner.model.config.is_encoder_decoder:
        raise UserError(f"{kind} is an encoder-decoder model, which Seodang has no embeddings of: use a decoder, or an encoder")
    refuse_diffusion(runner.model.config, "an embedding")
    if not runner.capabilities.hidden_states:
        raise UserError(f"embeddings need hidden states, which the runner of {kind} does not give: use another architecture")


def embedding(generation: Generation, host: Host) -> Strategy:
    """Leave the mean of the last layer's hidden states, after the final norm, with the request."""
    request, runner = generation.request, host.runner
    masked = frozenset(request.masked_positions)
    seen = [id for position, id in enumerate(request.prompt_ids) if position not in masked]
    reading = PromptReading(generation, runner, new_slot(generation, runner), seen)
    total: Tensor | float = 0.0
    while reading.seen < len(seen):
        forward = reading.part(len(seen))
        forward.layers = (LAST,)
        if hangs_on_length(runner.config):  # each state is to be turned by the length of the whole
            forward.partial = False
        yield forward
        total = total + wide(forward.states[LAST]).sum(dim=0)
    generation.release_slot(runner, reading.cache_slot)
    generation.embedding = (total / len(seen)).cpu()
    generation.finish(Answer([], [], [], "stop", request.seed), choice=0)


def no_text() -> None:
    """What follows the prompt: nothing."""


EMBEDDING = StrategySpec(
    "embedding", embedding, about=embedding, needs=("hidden_states",), width=lambda request: 1, guided=False, samples=False, encoder_decoder=False,
    reads_prompt=True,
)  # fmt: skip
