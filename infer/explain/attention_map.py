"""What each position attends to, in one layer, and an answer's steps to their source: a pass with the weights written out."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...data.errors import UserError
from ..engine.scoring import first_ids
from ..runners.architecture import context_limit, evaluating, transformers_model
from ..runners.model_lock import configs_of, use_attention
from ..runners.paradigm import refuse_diffusion
from ..text.vocabulary import check_ids

LONGEST = 512  # positions: the weights of every layer are held at once


def attention_map(model: nn.Module, ids: Sequence[int], layer: int, head: int | None = None) -> Tensor:
    """Return how much each position attends to each, [n, n], a row a query; without a `head` the mean of them all.

    The model is run once on `ids` with eager attention and left as it was. Raises UserError for a layer or head that it does not have, and
    for models that do not tell their weights.
    """
    maps = attention_maps(model, ids, layer)
    if head is not None and not 0 <= head < len(maps):
        raise UserError(f"attention head {head} does not exist: the model has heads 0 to {len(maps) - 1} in a layer")
    return maps.mean(dim=0) if head is None else maps[head]


@torch.no_grad()
def attention_maps(model: nn.Module, ids: Sequence[int], layer: int) -> Tensor:
    """Return the weights of all heads of a layer on the CPU in float32, [heads, n, n]; raises UserError as `attention_map` does."""
    inner = transformers_model(model)
    check_attention(inner, layer)
    check_length(inner, len(ids))
    check_ids(ids, inner.config.get_text_config().vocab_size, "attention's text")
    device = inner.get_input_embeddings().weight.device
    with use_attention(inner, configs_of(inner), "eager"), evaluating(inner):
        out = inner(input_ids=torch.tensor([list(ids)], device=device), use_cache=False, output_attentions=True)
    weights = getattr(out, "attentions", None) or ()
    if len(weights) <= layer or weights[layer] is None or weights[layer].shape[-2:] != (len(ids), len(ids)):
        raise UserError(f"{inner.config.model_type} does not tell the attention of layer {layer}: leave attention out")
    return weights[layer][0].float().cpu()


@torch.no_grad()
def cross_attention_maps(model: nn.Module, source: Sequence[int], answer: Sequence[int]) -> list[Tensor]:
    """Return how much each step of an encoder-decoder's answer attends to each token of the source, for each layer: [heads, steps, source], on the CPU in float32.

    Step i is the one that says answer[i], behind what comes before. The model is run once with eager attention and left as it was. Raises UserError
    for a model that is no encoder-decoder, and for one that does not tell its weights.
    """
    inner = transformers_model(model)
    if not inner.config.is_encoder_decoder:
        raise UserError(f"{inner.config.model_type} has no encoder, at whose source its decoder could look: attention_maps tells what it has")
    for name, ids, embeddings in (("the source", source, inner.get_input_embeddings()), ("the answer", answer, inner.get_output_embeddings())):
        if not all(isinstance(id, int) for id in ids):
            raise UserError(f"{name} must be the ids of one text, a list of whole numbers: of a tensor [1, n] give [0].tolist()")
        if not 0 < len(ids) <= LONGEST:
            raise UserError(f"{name} has {len(ids)} tokens: attention can be shown of 1 to {LONGEST}")
        check_ids(ids, embeddings.weight.shape[0], name)
    first = first_ids(inner, list(answer))
    device = inner.get_input_embeddings().weight.device
    given = {"input_ids": [*source], "decoder_input_ids": [*first, *answer[:-1]]}
    with use_attention(inner, configs_of(inner), "eager"), evaluating(inner):
        out = inner(**{name: torch.tensor([ids], device=device) for name, ids in given.items()}, use_cache=False, output_attentions=True)
    weights = getattr(out, "cross_attentions", None) or ()
    if not weights or any(layer is None for layer in weights):
        raise UserError(f"{inner.config.model_type} does not tell how its decoder attends to the source")
    return [layer[0, :, len(first) - 1 :].float().cpu() for layer in weights]


def parse_attention(text: str) -> tuple[int, int | None]:
    """Read LAYER or LAYER.HEAD; raises UserError for anything else.

    >>> parse_attention("3.1")
    (3, 1)
    """
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise UserError(f"attention must be LAYER or LAYER.HEAD, such as 3 or 3.1, got {text!r}")
    layer, _, head = text.partition(".")
    return int(layer), int(head) if head else None


def check_attention(model: nn.Module, layer: int, head: int | None = None) -> None:
    """Raise UserError for a layer or head that the model does not have, or whose attention it cannot tell."""
    inner = transformers_model(model)
    config = inner.config.get_text_config()
    if inner.config.is_encoder_decoder:
        raise UserError(f"{inner.config.model_type} is an encoder-decoder, whose attention is not one picture: leave attention out")
    refuse_diffusion(inner.config, "a map of attention")
    if getattr(inner, "_is_stateful", False):
        raise UserError(f"{inner.config.model_type} remembers by other means than attention: leave attention out")
    if not 0 <= layer < config.num_hidden_layers:
        raise UserError(f"attention layer {layer} does not exist: the model has layers 0 to {config.num_hidden_layers - 1}")
    heads = getattr(config, "num_attention_heads", None)
    if head is not None and isinstance(heads, int) and not 0 <= head < heads:
        raise UserError(f"attention head {head} does not exist: the model has heads 0 to {heads - 1} in a layer")


def check_length(model: PreTrainedModel, tokens: int) -> None:
    """Raise UserError for more positions than the model or a picture can have."""
    limit = min(context_limit(model) or LONGEST, LONGEST)
    if not 0 < tokens <= limit:
        raise UserError(f"the attention of {tokens} tokens cannot be shown, only of 1 to {limit}: shorten the prompt or lower max_new_tokens")
