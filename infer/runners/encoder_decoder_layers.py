"""The common encoder-decoders as plain functions over their own weights: T5, mT5, UMT5; BART, PLBart, mBART, Marian, Pegasus, M2M-100, Blenderbot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..kernels.linear_kernel import LinearKernel, linear_kernel
from .layers import MakeKernel, Map, activation, gated, is_plain, layer_norm, rms_norm

T5_KINDS = {"T5ForConditionalGeneration", "MT5ForConditionalGeneration", "UMT5ForConditionalGeneration"}
# by whether a norm stands before what it belongs to, or behind the sum
BART_KINDS = {
    "BartForConditionalGeneration": False, "PLBartForConditionalGeneration": False, "MarianMTModel": False,
    "MBartForConditionalGeneration": True, "PegasusForConditionalGeneration": True, "M2M100ForConditionalGeneration": True,
    "BlenderbotForConditionalGeneration": True,
}  # fmt: skip
Places = Callable[[Sequence[int], int], Sequence[int]]  # new ids behind so many of a slot to the rows of the table of positions


class RelativeBias:
    """T5's bias of the scores, by how far a key stands from its query (Raffel et al. 2020, section 2.1), from the model's own weight."""

    def __init__(self, attention: nn.Module):
        self.weight = attention.relative_attention_bias.weight.detach()  # [buckets, heads]
        self.longest, self.both_ways = attention.relative_attention_max_distance, not attention.is_decoder
        self._buckets: Tensor | None = None  # of the distances from -n to n - 1

    def at(self, queries: Tensor, keys: int) -> Tensor:
        """Return the bias of queries at these positions, [n], towards the keys from 0 on, [heads, n, keys]; it masks none of them."""
        n = 0 if self._buckets is None else len(self._buckets) // 2
        if keys > n or self._buckets.device != queries.device:
            n = max(keys, 2 * n, 128)
            self._buckets = self.buckets(torch.arange(-n, n, device=queries.device))
        distances = torch.arange(n, n + keys, device=queries.device)[None] - queries[:, None]
        return F.embedding(self._buckets[distances], self.weight).permute(2, 0, 1).contiguous()

    def buckets(self, distances: Tensor) -> Tensor:
        """Return the bucket of each distance, key less query: one for each short one, beyond them wider ones that grow as its logarithm."""
        count = len(self.weight)
        if self.both_ways:
            count //= 2
            first, far = (distances > 0).long() * count, distances.abs()
        else:
            first, far = 0, (-distances).clamp(min=0)
        exact = count // 2
        wide = exact + (torch.log(far.float() / exact) / math.log(self.longest / exact) * (count - exact)).long()
        return first + torch.where(far < exact, far, wide.clamp(max=count - 1))


@dataclass
class Block:
    """One layer; the maps take and give [total, features]. What crosses over to the source is a decoder's alone."""

    attention_norm: Map
    qkv: LinearKernel
    out: LinearKernel
    scale: float
    bias: RelativeBias | None
    feed_norm: Map
    feed: Map
    cross_norm: Map | None = None
    cross_query: LinearKernel | None = None
    cross_key_value: LinearKernel | None = None
    cross_out: LinearKernel | None = None


@dataclass
class Stack:
    """The encoder, or the decoder."""

    embed: Callable[[Tensor, Tensor], Tensor]  # ids and places, [total] each, to [total, hidden]
    blocks: list[Block]
    norm: Map | None  # behind the last layer
    norm_first: bool  # in each part of a layer, or behind its sum
    heads: int
    width: int  # of a head

    def add(self, hidden: Tensor, norm: Map, part: Map) -> Tensor:
        """Return the hidden states with what a part of a layer makes of them added, normed where this architecture does it."""
        return part(norm(hidden)).add_(hidden) if self.norm_first else norm(part(hidden).add_(hidden))

    def finish(self, hidden: Tensor) -> Tensor:
        """Return what the stack gives of its last layer's hidden states."""
        return hidden if self.norm is None else self.norm(hidden)


@dataclass
class EncoderDecoder:
    """A whole model."""

    encoder: Stack
    decoder: Stack
    head: Map
    places: Places | None  # None: a token's place is its position
    watched: list[Tensor]  # what the maps hold: where one of these moves, the model must be read again

    def addresses(self) -> list[int]:
        """Where the watched tensors lie in memory."""
        return [tensor.data_ptr() for tensor in self.watched]


def supports_direct_encoder_decoder(model: PreTrainedModel) -> bool:
    """Whether `bind_encoder_decoder` computes what the model computes: a family of ours with nothing put in, on or around its layers."""
    kind = type(model).__name__
    if kind not in T5_KINDS | BART_KINDS.keys() or not is_plain(model) or model.dtype == torch.float16:  # in which transformers clamps
        return False
    return kind != "M2M100ForConditionalGeneration" or model.config.pad_token_id < model.model.decoder.embed_positions.offset


def bind_encoder_decoder(model: PreTrainedModel, kernel: MakeKernel = linear_kernel) -> EncoderDecoder:
    """Return the model's layers as functions of its own weights, which are not copied; `kernel` makes their products."""
    kernel = partial(kernel, quick_few=True)  # the beams of a source are a few rows, always as many
    watched = [*model.parameters(), *model.buffers()]
    scale, bias, head = output_scale(model.config), getattr(model, "final_logits_bias", None), linear_kernel([model.get_output_embeddings()], quick_few=True)
    if type(model).__name__ in T5_KINDS:
        encoder, decoder, places = _t5_stack(model.encoder, kernel), _t5_stack(model.decoder, kernel), None
    else:
        first, trunk = BART_KINDS[type(model).__name__], model.model
        encoder, decoder = _bart_stack(trunk.encoder, first, kernel), _bart_stack(trunk.decoder, first, kernel)
        places = padding_left_out(model.config.pad_token_id) if type(model).__name__.startswith("M2M100") else None
    return EncoderDecoder(encoder, decoder, _head(head, scale, bias), places, watched)


def output_scale(config: PreTrainedConfig) -> float:
    """What the decoder's states are multiplied by before they come to the head."""
    tied = config.model_type in ("umt5", "switch_transformers") and config.tie_word_embeddings
    return config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", tied) else 1.0


def padding_left_out(padding: int) -> Places:
    """Return the places of M2M-100, which count from behind the padding's own and pass over ids of padding."""

    def places(ids: Sequence[int], past: int) -> list[int]:
        found, count = [], past
        for id in ids:
            count += id != padding
            found.append(padding + count if id != padding else padding)
        return found

    return places


def _head(head: LinearKernel, scale: float, bias: Tensor | None) -> Map:
    if bias is not None:
        return lambda x: head(x).add_(bias)
    return head if scale == 1.0 else lambda x: head(x * scale)


def _t5_stack(trunk: nn.Module, kernel: MakeKernel) -> Stack:
    biases: list[RelativeBias] = []
    blocks = [_t5_block(block.layer, biases, kernel) for block in trunk.block]
    attention = trunk.block[0].layer[0].SelfAttention
    return Stack(
        embed=lambda ids, places: trunk.embed_tokens(ids),
        blocks=blocks,
        norm=t5_norm(trunk.final_layer_norm),
        norm_first=True,
        heads=attention.n_heads,
        width=attention.key_value_proj_dim,
    )


def _t5_block(parts: nn.ModuleList, biases: list[RelativeBias], kernel: MakeKernel) -> Block:
    own, feed = parts[0].SelfAttention, parts[-1].DenseReluDense
    if own.has_relative_attention_bias:  # in T5 the first layer's is that of all
        biases.append(RelativeBias(own))
    block = Block(
        attention_norm=t5_norm(parts[0].layer_norm),
        qkv=kernel([own.q, own.k, own.v]),
        out=kernel([own.o]),
        scale=own.scaling,
        bias=biases[-1],
        feed_norm=t5_norm(parts[-1].layer_norm),
        feed=_t5_feed(feed, kernel),
    )
    if len(parts) == 3:
        cross = parts[1].EncDecAttention
        block.cross_norm, block.cross_out = t5_norm(parts[1].layer_norm), kernel([cross.o])
        block.cross_query, block.cross_key_value = kernel([cross.q]), kernel([cross.k, cross.v])
    return block


def _t5_feed(feed: nn.Module, kernel: MakeKernel) -> Map:
    act, shrink = activation(feed.act), kernel([feed.wo])
    if hasattr(feed, "wi"):
        grow = kernel([feed.wi])
        return lambda x: shrink(act(grow(x)))
    return gated(kernel([feed.wi_0, feed.wi_1]), act, shrink)


def t5_norm(module: nn.Module) -> Map:
    """Return the root mean square norm of T5, which counts in float32 and multiplies in its own dtype."""
    if module.weight.dtype != torch.float64:
        return rms_norm(module)
    weight, eps = module.weight.detach(), module.variance_epsilon
    return lambda x: weight * (x * torch.rsqrt(x.float().square().mean(dim=-1, keepdim=True) + eps))


def _bart_stack(trunk: nn.Module, norm_first: bool, kernel: MakeKernel) -> Stack:
    attention = trunk.layers[0].self_attn
    norm = getattr(trunk, "layer_norm", None)
    return Stack(
        embed=_bart_embedding(trunk),
        blocks=[_bart_block(layer, kernel) for layer in trunk.layers],
        norm=None if norm is None else layer_norm(norm),
        norm_first=norm_first,
        heads=attention.num_heads,
        width=attention.head_dim,
    )


def _bart_embedding(trunk: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Tokens and positions, learned or sinusoidal; some models scale the tokens by themselves, others have an embedding that does."""
    tokens, positions, scale = trunk.embed_tokens, trunk.embed_positions, getattr(trunk, "embed_scale", 1.0)
    table = positions.weight.detach() if isinstance(positions, nn.Embedding) else positions.weights
    offset = getattr(positions, "offset", 0) if isinstance(positions, nn.Embedding) else 0
    norm = getattr(trunk, "layernorm_embedding", None)
    norm = None if norm is None else layer_norm(norm)

    def embed(ids: Tensor, places: Tensor) -> Tensor:
        hidden = tokens(ids) * scale + table[places + offset]
        return hidden if norm is None else norm(hidden)

    return embed


def _bart_block(layer: nn.Module, kernel: MakeKernel) -> Block:
    own = layer.self_attn
    grow, act, shrink = kernel([layer.fc1]), activation(layer.activation_fn), kernel([layer.fc2])
    block = Block(
        attention_norm=layer_norm(layer.self_attn_layer_norm),
        qkv=kernel([own.q_proj, own.k_proj, own.v_proj]),
        out=kernel([own.out_proj]),
        scale=own.scaling,
        bias=None,
        feed_norm=layer_norm(layer.final_layer_norm),
        feed=lambda x: shrink(act(grow(x))),
    )
    if hasattr(layer, "encoder_attn"):
        cross = layer.encoder_attn
        block.cross_norm, block.cross_out = layer_norm(layer.encoder_attn_layer_norm), kernel([cross.out_proj])
        block.cross_query, block.cross_key_value = kernel([cross.q_proj]), kernel([cross.k_proj, cross.v_proj])
    return block
