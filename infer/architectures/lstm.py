"""The LSTM encoder-decoder (Sutskever et al. 2014), with the context vector alone or with dot-product attention (Luong et al. 2015): what the Transformer replaced.

At the margin are shapes: B rows, n positions of the target, m of the source, L layers, d = d_model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, initialization
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions

from ...data.errors import UserError
from .seq2seq_model import Seq2SeqConfig, Seq2SeqLanguageModel, Seq2SeqModel, at_least_one, one_of

State = tuple[Tensor, Tensor]  # what every layer remembers and its cell, [B, L, d] each


class LSTMConfig(Seq2SeqConfig):
    """What an LSTM encoder-decoder is. Raises UserError for sizes that do not go together.

    `attention` is "none", where all that the decoder knows of the source is the state that it begins with, or "dot", where each step looks at the
    source's states. Encoder and decoder have `num_layers` each; with `bidirectional` the encoder's are two halves, one from each side.
    """

    model_type = "seodang_lstm"
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "num_layers"}

    num_layers: int = 2
    attention: str = "none"
    bidirectional: bool = False
    tie_word_embeddings: bool = False  # source, target and head have words of their own, as in both papers

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        at_least_one("num_layers", self.num_layers)
        one_of("attention", self.attention, ("none", "dot"))
        if self.bidirectional and self.d_model % 2:
            raise UserError(f"a bidirectional encoder has half of d_model from each side, and {self.d_model} is odd: make it even")


@dataclass
class Reading(BaseModelOutput):
    """What the encoder made of the source: its states, [B, m, d], and what each layer remembers at the end, [B, L, d], and its cell."""

    final_hidden: Tensor | None = None
    final_cell: Tensor | None = None


class DotAttention(nn.Module):
    """Global attention with the dot product as score, and what the head reads in place of the decoder's state (Luong et al. 2015, sections 3 and 3.1)."""

    def __init__(self, d_model: int):
        super().__init__()
        self.combine = nn.Linear(2 * d_model, d_model, bias=False)  # W_c

    def forward(self, states: Tensor, source: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """tanh(W_c [c; h]) of the decoder's states h, [B, n, d], and the weights of the source, [B, n, m]; its mask is [B, m], true where it is no padding."""
        scores = states @ source.transpose(1, 2)  # [B, n, m]
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
        weights = scores.softmax(dim=-1)  # [B, n, m]
        context = weights @ source  # [B, n, d]
        return torch.tanh(self.combine(torch.cat([context, states], dim=-1))), weights


class Encoder(nn.Module):
    """Reads a source from left to right, with `bidirectional` from right to left too."""

    def __init__(self, config: LSTMConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        size = config.d_model // (2 if config.bidirectional else 1)
        self.layers = nn.ModuleList(
            nn.LSTM(config.d_model, size, batch_first=True, bidirectional=config.bidirectional) for _ in range(config.num_layers)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> Reading:
        """Ids, [B, m], with a mask, [B, m], to states; what is behind a row's last token is zeros, and changes nothing.

        An encoder has no attention to tell of, and always returns a `Reading`.
        """
        lengths = None if attention_mask is None else lengths_of(attention_mask, "the source")
        states = self.dropout(self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds)  # [B, m, d]
        m = states.shape[1]
        packed = lengths is not None and int(lengths.min()) < m
        run = pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False) if packed else states
        hidden, finals = [states], []
        for layer in self.layers:
            run, final = layer(run)
            hidden.append(pad_packed_sequence(run, batch_first=True, total_length=m)[0] if packed else run)
            finals.append(tuple(both.transpose(0, 1).flatten(1) for both in final))  # [directions, B, size] to [B, d]
            run = dropped(run, self.dropout)
        final_hidden, final_cell = (torch.stack(parts, dim=1) for parts in zip(*finals))  # [B, L, d]
        hidden_states = tuple(hidden) if output_hidden_states else None
        return Reading(last_hidden_state=hidden[-1], hidden_states=hidden_states, final_hidden=final_hidden, final_cell=final_cell)


def dropped(run: Tensor | PackedSequence, dropout: nn.Dropout) -> Tensor | PackedSequence:
    """Dropout between layers (Zaremba et al. 2014), of rows that may be packed."""
    return run._replace(data=dropout(run.data)) if isinstance(run, PackedSequence) else dropout(run)


def lengths_of(mask: Tensor, what: str) -> Tensor:
    """How many tokens each row of a mask, [B, m], has, on the CPU; raises UserError for padding that is not behind them, and for a row of padding alone."""
    marks = mask.bool().cpu()
    lengths = marks.sum(dim=1)
    if not torch.equal(marks, torch.arange(mask.shape[1]) < lengths[:, None]):
        raise UserError(f"{what} has padding before a token, which an LSTM would read: pad on the right")
    if not lengths.all():
        raise UserError(f"{what} of row {int(lengths.argmin()) + 1} is empty: give at least one token")
    return lengths


class Decoder(nn.Module):
    """Says an answer from left to right, beginning with what the encoder remembers at the end."""

    def __init__(self, config: LSTMConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(nn.LSTM(config.d_model, config.d_model, batch_first=True) for _ in range(config.num_layers))
        self.attention = DotAttention(config.d_model) if config.attention == "dot" else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: State | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """New ids, [B, n], to states, [B, n, d], and the state behind them; attention's weights, [B, 1, n, m], are told as those of one layer and head."""
        if output_attentions and self.attention is None:
            raise UserError('this LSTM has no attention that could be told: leave output_attentions out, or make it with attention="dot"')
        if past_key_values is None:
            raise UserError("an LSTM begins with what its encoder remembers at the end: give encoder_outputs as get_encoder() returns them")
        if attention_mask is not None:
            lengths_of(attention_mask, "the target")
        states = self.dropout(self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds)  # [B, n, d]
        hidden, finals = [states], []
        for i, layer in enumerate(self.layers):
            before = tuple(part[:, i][None].contiguous() for part in past_key_values)  # [1, B, d]
            states, final = layer(states, before)
            finals.append(tuple(part[0] for part in final))  # [B, d]
            hidden.append(states)
            states = self.dropout(states)
        weights = None
        if self.attention is not None:
            mask = None if encoder_attention_mask is None else encoder_attention_mask.bool()
            states, weights = self.attention(states, encoder_hidden_states, mask)
        hidden[-1] = states
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=states,
            past_key_values=tuple(torch.stack(parts, dim=1) for parts in zip(*finals)),
            hidden_states=tuple(hidden) if output_hidden_states else None,
            cross_attentions=(weights[:, None],) if output_attentions else None,
        )


class OfLSTM:
    """What transformers asks to know of both classes below. Their past says nothing of single positions: it can go on, and be copied, but not be cut back."""

    config_class = LSTMConfig
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As torch has them: evenly within 1 / sqrt(d_model), but for words, which are normal, unless the head has the same.

        The papers, of 1,000 units, have all within 0.08 and 0.1; words as small as that reach few units but weakly, and what aligns them is learned late.
        """
        if isinstance(module, nn.Embedding) and not self.config.tie_word_embeddings:
            initialization.normal_(module.weight)
        elif isinstance(module, (nn.LSTM, nn.Linear, nn.Embedding)):
            for parameter in module.parameters(recurse=False):
                initialization.uniform_(parameter, -(self.config.d_model**-0.5), self.config.d_model**-0.5)


class LSTMModel(OfLSTM, Seq2SeqModel):
    """Encoder and decoder; `past_key_values` is a `State`."""

    def __init__(self, config: LSTMConfig):
        super().__init__(config, Encoder(config), Decoder(config))

    def first_past(self, encoder_outputs: BaseModelOutput, use_cache: bool = True) -> State | None:
        """What the encoder remembers at the end, where that is told."""
        return (encoder_outputs.final_hidden, encoder_outputs.final_cell) if isinstance(encoder_outputs, Reading) else None


class LSTMForConditionalGeneration(OfLSTM, Seq2SeqLanguageModel):
    """The LSTM encoder-decoder with its head."""

    def __init__(self, config: LSTMConfig):
        super().__init__(config, LSTMModel(config))

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Keep `generate` from making a cache of keys and values."""
        return False

    @staticmethod
    def _reorder_cache(past: State, beam_idx: Tensor) -> State:
        """Beams, by their place before the step."""
        return tuple(part.index_select(0, beam_idx.to(part.device)) for part in past)


AutoConfig.register(LSTMConfig.model_type, LSTMConfig)
AutoModel.register(LSTMConfig, LSTMModel)
AutoModelForSeq2SeqLM.register(LSTMConfig, LSTMForConditionalGeneration)
