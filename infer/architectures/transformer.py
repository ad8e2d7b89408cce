"""The Transformer of "Attention Is All You Need" (Vaswani et al. 2017), as the paper writes it; numbers are those of its sections.

At the margin are shapes: B rows, n positions that ask, m positions that are looked at, h heads, d = d_model / h.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache, initialization
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...data.errors import UserError
from .seq2seq_model import Seq2SeqConfig, Seq2SeqLanguageModel, Seq2SeqModel, at_least_one, one_of

WRITTEN_MASKS = ("eager", "sdpa")  # the ways to attend that take the masks of this file


class TransformerConfig(Seq2SeqConfig):
    """What a Transformer is; the defaults are the paper's base model.

    `norm_position` is "post", LayerNorm(x + Sublayer(x)), as in the paper, or "pre", x + Sublayer(LayerNorm(x)) with a norm at the end (Xiong et al. 2020).
    `positions` are "sinusoidal", which extend beyond all lengths seen, or "learned", which do not: a table of max_encoder_position_embeddings for the
    source and one of max_decoder_position_embeddings for the target. Raises UserError for sizes that do not go together.
    """

    model_type = "seodang_transformer"
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "encoder_layers", "num_attention_heads": "num_heads", "intermediate_size": "d_ff"}

    vocab_size: int = 37_000
    encoder_layers: int = 6
    decoder_layers: int | None = None  # as many as the encoder has
    num_heads: int = 8
    d_ff: int = 2048
    norm_position: str = "post"
    positions: str = "sinusoidal"
    max_encoder_position_embeddings: int | None = None
    max_decoder_position_embeddings: int | None = None

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        if self.decoder_layers is None:
            self.decoder_layers = self.encoder_layers
        for name in ("encoder_layers", "decoder_layers", "num_heads", "d_ff"):
            at_least_one(name, getattr(self, name))
        if self.d_model % self.num_heads:
            raise UserError(f"d_model {self.d_model} cannot be shared out among {self.num_heads} heads: make it a multiple of them")
        one_of("norm_position", self.norm_position, ("post", "pre"))
        one_of("positions", self.positions, ("sinusoidal", "learned"))
        tables = [self.max_encoder_position_embeddings, self.max_decoder_position_embeddings]
        if self.positions == "learned":
            for side, count in zip(("encoder", "decoder"), tables):
                if count is None:
                    raise UserError(f"learned positions end somewhere: say where by max_{side}_position_embeddings, or use sinusoidal ones")
                at_least_one(f"max_{side}_position_embeddings", count)
        elif tables != [None, None]:
            raise UserError("sinusoidal positions have no end: leave max_encoder_position_embeddings and max_decoder_position_embeddings out, or use learned ones")
        elif self.d_model % 2:
            raise UserError(f"sinusoidal positions are sines and cosines by pairs, and d_model {self.d_model} is odd: make it even")


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return softmax(Q K^T / sqrt(d)) V, [.., n, d], and its weights, [.., n, m] (3.2.1).

    query is [.., n, d], key and value [.., m, d]; the mask, which broadcasts to [.., n, m], is true where a query may look.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # [.., n, m]
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)  # "illegal connections" (3.2.3)
    weights = scores.softmax(dim=-1)  # [.., n, m]
    return weights @ value, weights


def padding_mask(attention_mask: Tensor | None) -> Tensor | None:
    """Nobody looks at padding: [B, m], 0 where it is, to [B, 1, 1, m]."""
    return None if attention_mask is None else attention_mask.bool()[:, None, None]


def causal_mask(n: int, m: int, attention_mask: Tensor | None, device: torch.device) -> Tensor:
    """The last n of m positions look at themselves and what stands before them, but not at padding: [n, m], or [B, 1, n, m] with a mask [B, m] (3.2.3)."""
    seen = torch.ones(n, m, dtype=torch.bool, device=device).tril(m - n)
    if attention_mask is None:
        return seen
    itself = torch.eye(m, dtype=torch.bool, device=device)[m - n :]  # padding too looks at something, or its softmax would be of nothing
    return seen & (padding_mask(attention_mask) | itself)


def sinusoidal_encoding(positions: Tensor, d_model: int) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i / d_model)), PE(pos, 2i + 1) the cosine: positions [n] to [n, d_model] in float64 (3.5)."""
    wavelengths = 10_000 ** (torch.arange(0, d_model, 2, dtype=torch.float64, device=positions.device) / d_model)
    angles = positions[:, None] / wavelengths  # [n, d_model / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class SinusoidalPositions(nn.Module):
    """`sinusoidal_encoding` of words that stand behind so many others, [B, n, d_model] to [1, n, d_model]: of any length, for nothing is learned."""

    def forward(self, words: Tensor, past: int = 0) -> Tensor:
        positions = torch.arange(past, past + words.shape[1], device=words.device)
        return sinusoidal_encoding(positions, words.shape[2]).to(words.dtype)[None]


class LearnedPositions(nn.Embedding):
    """The same from a table, which has an end; raises UserError beyond it."""

    def forward(self, words: Tensor, past: int = 0) -> Tensor:
        if (end := past + words.shape[1]) > self.num_embeddings:
            raise UserError(f"{end} tokens are more than the {self.num_embeddings} learned positions: shorten the text, or train with sinusoidal ones, which extend")
        return super().forward(torch.arange(past, end, device=words.device))[None]


def attend_as_written(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """`scaled_dot_product_attention` of all heads, [B, h, n, d], as transformers calls it: [B, n, h, d], and the weights, [B, h, n, m]."""
    out, weights = scaled_dot_product_attention(query, key, value, attention_mask)
    return out.transpose(1, 2), weights


class MultiHeadAttention(nn.Module):
    """Concat(head_1, ..., head_h) W^O, where head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V) (3.2.2)."""

    def __init__(self, config: TransformerConfig, layer_idx: int, is_decoder: bool = False, is_causal: bool = False):
        super().__init__()
        self.config, self.layer_idx, self.is_decoder, self.is_causal = config, layer_idx, is_decoder, is_causal
        self.head_dim = config.d_model // config.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(config.d_model, config.d_model, bias=False) for _ in range(4))

    def forward(
        self,
        states: Tensor,
        source: Tensor | None = None,
        mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Let states, [B, n, d_model], look at one another, or at a source, [B, m, d_model]; return what they see there, and the weights, [B, h, n, m]."""
        query = self.heads(self.q_proj(states))  # [B, h, n, d]
        key, value = self.keys_and_values(states, source, past_key_values)  # [B, h, m, d]
        implementation = self.config._attn_implementation
        if output_attentions and implementation == "sdpa":  # which does not tell its weights
            implementation = "eager"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, attend_as_written)
        out, weights = attend(self, query, key, value, mask, scaling=self.head_dim**-0.5, dropout=0.0, **kwargs)  # [B, n, h, d]
        return self.out_proj(out.flatten(-2)), weights

    def heads(self, states: Tensor) -> Tensor:
        """[B, n, d_model] to [B, h, n, d]."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def keys_and_values(self, states: Tensor, source: Tensor | None, past: EncoderDecoderCache | None) -> tuple[Tensor, Tensor]:
        """Those of all positions that are looked at; a cache keeps them, those of a source from the first time."""
        if source is not None and past is not None and past.is_updated.get(self.layer_idx):
            layer = past.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        seen = states if source is None else source
        key, value = self.heads(self.k_proj(seen)), self.heads(self.v_proj(seen))
        if past is None:
            return key, value
        if source is None:
            return past.self_attention_cache.update(key, value, self.layer_idx)
        past.is_updated[self.layer_idx] = True
        return past.cross_attention_cache.update(key, value, self.layer_idx)


class FeedForward(nn.Sequential):
    """max(0, x W_1 + b_1) W_2 + b_2 (3.3)."""

    def __init__(self, config: TransformerConfig):
        super().__init__(nn.Linear(config.d_model, config.d_ff), nn.ReLU(), nn.Linear(config.d_ff, config.d_model))


class SublayerLayerNorm(nn.LayerNorm):
    """The norm of a sublayer: behind the sum of what goes in and what comes out (3.1), or before what goes in."""

    def __init__(self, config: TransformerConfig):
        super().__init__(config.d_model)
        self.post = config.norm_position == "post"

    def before(self, states: Tensor) -> Tensor:
        """What the sublayer is given."""
        return states if self.post else self(states)

    def after(self, total: Tensor) -> Tensor:
        """What becomes of x + Sublayer(x)."""
        return self(total) if self.post else total


class EncoderLayer(GradientCheckpointingLayer):
    """Self-attention and a feed-forward network, each with a residual, dropout and a norm (3.1, 5.4)."""

    def __init__(self, config: TransformerConfig, layer_idx: int):
        super().__init__()
        self.self_attention, self.self_attention_norm = MultiHeadAttention(config, layer_idx), SublayerLayerNorm(config)
        self.feed_forward, self.feed_forward_norm = FeedForward(config), SublayerLayerNorm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor, mask: Tensor | None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """[B, n, d_model] to the same; and the weights of attention."""
        attended, weights = self.self_attention(self.self_attention_norm.before(states), mask=mask, **kwargs)
        states = self.self_attention_norm.after(states + self.dropout(attended))
        fed = self.feed_forward(self.feed_forward_norm.before(states))
        return self.feed_forward_norm.after(states + self.dropout(fed)), weights


class DecoderLayer(GradientCheckpointingLayer):
    """As an encoder's, whose self-attention looks back alone, and between the two attention to the source (3.1, 3.2.3)."""

    def __init__(self, config: TransformerConfig, layer_idx: int):
        super().__init__()
        self.self_attention, self.self_attention_norm = MultiHeadAttention(config, layer_idx, is_decoder=True, is_causal=True), SublayerLayerNorm(config)
        self.cross_attention, self.cross_attention_norm = MultiHeadAttention(config, layer_idx, is_decoder=True), SublayerLayerNorm(config)
        self.feed_forward, self.feed_forward_norm = FeedForward(config), SublayerLayerNorm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, states: Tensor, mask: Tensor | None, source: Tensor, source_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """[B, n, d_model] to the same, over a source [B, m, d_model]; and the weights of both attentions."""
        attended, weights = self.self_attention(self.self_attention_norm.before(states), mask=mask, **kwargs)
        states = self.self_attention_norm.after(states + self.dropout(attended))
        attended, to_source = self.cross_attention(self.cross_attention_norm.before(states), source=source, mask=source_mask, **kwargs)
        states = self.cross_attention_norm.after(states + self.dropout(attended))
        fed = self.feed_forward(self.feed_forward_norm.before(states))
        return self.feed_forward_norm.after(states + self.dropout(fed)), weights, to_source


class Stack(nn.Module):
    """What encoder and decoder are alike in: embeddings times sqrt(d_model) (3.4) and positions (3.5), layers, and with "pre" a norm at the end."""

    def __init__(self, config: TransformerConfig, layers: list[nn.Module], most: int | None):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = SinusoidalPositions() if most is None else LearnedPositions(most, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(layers)
        self.final_norm = nn.LayerNorm(config.d_model) if config.norm_position == "pre" else None

    def embedded(self, ids: Tensor | None, words: Tensor | None, past: int = 0) -> Tensor:
        """Ids, [B, n], or their words already, [B, n, d_model], behind so many others, to [B, n, d_model]."""
        words = (self.embed_tokens(ids) if words is None else words) * math.sqrt(self.config.d_model)
        return self.dropout(words + self.embed_positions(words, past))

    def ended(self, states: Tensor) -> Tensor:
        """What comes behind the last layer."""
        return states if self.final_norm is None else self.final_norm(states)

    def writes_masks(self, output_attentions: bool) -> bool:
        """Whether attention takes the masks of this file; another way to attend has those of transformers, and does not tell its weights."""
        written = self.config._attn_implementation in WRITTEN_MASKS
        if output_attentions and not written:
            raise UserError(f"{self.config._attn_implementation} attention does not tell its weights: model.set_attn_implementation('eager') does")
        return written


class Encoder(Stack):
    """Reads a source, all of whose positions see one another."""

    def __init__(self, config: TransformerConfig):
        layers = [EncoderLayer(config, i) for i in range(config.encoder_layers)]
        super().__init__(config, layers, config.max_encoder_position_embeddings)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Ids, [B, n], with a mask of what is no padding, [B, n], to states, [B, n, d_model]."""
        states = self.embedded(input_ids, inputs_embeds)  # [B, n, d_model]
        mask = padding_mask(attention_mask) if self.writes_masks(output_attentions) else create_bidirectional_mask(self.config, states, attention_mask)
        hidden, weights = [states], []
        for layer in self.layers:
            states, seen = layer(states, mask, output_attentions=output_attentions, **kwargs)
            hidden.append(states)
            weights.append(seen)
        hidden[-1] = states = self.ended(states)
        return BaseModelOutput(
            last_hidden_state=states,
            hidden_states=tuple(hidden) if output_hidden_states else None,
            attentions=tuple(weights) if output_attentions else None,
        )


class Decoder(Stack):
    """Says an answer to a source: each position sees itself, those before it, and all of the source."""

    def __init__(self, config: TransformerConfig):
        layers = [DecoderLayer(config, i) for i in range(config.decoder_layers)]
        super().__init__(config, layers, config.max_decoder_position_embeddings)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """New ids, [B, n], behind a past over a source, [B, m, d_model], to states, [B, n, d_model]; the masks mark what is no padding, of past and new ids together."""
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        states = self.embedded(input_ids, inputs_embeds, past)  # [B, n, d_model]
        n = states.shape[1]
        if self.writes_masks(output_attentions):
            mask = causal_mask(n, past + n, attention_mask, states.device)
            source_mask = padding_mask(encoder_attention_mask)
        else:
            cache = None if past_key_values is None else past_key_values.self_attention_cache
            mask = create_causal_mask(self.config, states, attention_mask, cache)
            source_mask = create_bidirectional_mask(self.config, states, encoder_attention_mask, encoder_hidden_states)
        hidden, weights, to_source = [states], [], []
        for layer in self.layers:
            states, seen, seen_of_source = layer(
                states, mask, encoder_hidden_states, source_mask, past_key_values=past_key_values, output_attentions=output_attentions, **kwargs
            )
            hidden.append(states)
            weights.append(seen)
            to_source.append(seen_of_source)
        hidden[-1] = states = self.ended(states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=states,
            past_key_values=past_key_values,
            hidden_states=tuple(hidden) if output_hidden_states else None,
            attentions=tuple(weights) if output_attentions else None,
            cross_attentions=tuple(to_source) if output_attentions else None,
        )


class OfTransformer:
    """What transformers asks to know of both classes below."""

    config_class = TransformerConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the authors' code: words as large, once multiplied by sqrt(d_model), as sinusoids; matrices by Glorot and Bengio."""
        super()._init_weights(module)
        if isinstance(module, nn.Embedding) or module is self.get_output_embeddings():
            initialization.normal_(module.weight, std=self.config.d_model**-0.5)
        elif isinstance(module, nn.Linear):
            initialization.xavier_uniform_(module.weight)


class TransformerModel(OfTransformer, Seq2SeqModel):
    """Encoder and decoder."""

    def __init__(self, config: TransformerConfig):
        super().__init__(config, Encoder(config), Decoder(config))

    def first_past(self, encoder_outputs: BaseModelOutput, use_cache: bool) -> EncoderDecoderCache | None:
        """An empty cache, where one is wanted and no layer is computed a second time for its gradients."""
        if not use_cache or self.training and self.decoder.layers[0].gradient_checkpointing:
            return None
        return EncoderDecoderCache(DynamicCache(), DynamicCache())


class TransformerForConditionalGeneration(OfTransformer, Seq2SeqLanguageModel):
    """The Transformer with its head, which is, as both embeddings, one matrix (3.4)."""

    def __init__(self, config: TransformerConfig):
        super().__init__(config, TransformerModel(config))


AutoConfig.register(TransformerConfig.model_type, TransformerConfig)
AutoModel.register(TransformerConfig, TransformerModel)
AutoModelForSeq2SeqLM.register(TransformerConfig, TransformerForConditionalGeneration)
