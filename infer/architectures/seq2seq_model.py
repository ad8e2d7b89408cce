"""What encoder-decoders of our own have in common: the calls of transformers, the shifted labels, the head, the loss."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.utils import can_return_tuple

from ...data.errors import UserError
from ...data.labels import IGNORE_INDEX


class Seq2SeqConfig(PreTrainedConfig):
    """What the configurations of all of them say; a family adds its sizes."""

    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 32_000
    d_model: int = 512
    dropout: float = 0.1
    is_encoder_decoder: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = 1
    decoder_start_token_id: int | None = None

    def __post_init__(self, **kwargs: Any):
        if self.decoder_start_token_id is None:  # as in T5 and Marian
            self.decoder_start_token_id = self.pad_token_id
        super().__post_init__(**kwargs)
        for name in ("vocab_size", "d_model"):
            at_least_one(name, getattr(self, name))
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), got {self.dropout}")


def at_least_one(name: str, value: int) -> None:
    """Raise UserError for a size, by its name, that is none."""
    if type(value) is not int or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError for a setting, by its name, that is none of its choices."""
    if value not in choices:
        raise UserError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def shifted_right(labels: Tensor, start: int, padding: int | None) -> Tensor:
    """What the decoder is shown to say the labels, [rows, n]: its start, then all but the last of them, padding where nothing is to be said.

    >>> shifted_right(torch.tensor([[7, 8, 1], [9, 1, -100]]), start=0, padding=0).tolist()
    [[0, 7, 8], [0, 9, 1]]
    """
    shown = labels.new_full(labels.shape, start)
    shown[:, 1:] = labels[:, :-1]
    return shown.masked_fill(shown == IGNORE_INDEX, start if padding is None else padding)


class Seq2SeqModel(PreTrainedModel):
    """An encoder, and a decoder that speaks to what the encoder read.

    A family gives `encoder(input_ids, attention_mask, inputs_embeds, ...)`, `decoder(input_ids, attention_mask, encoder_hidden_states,
    encoder_attention_mask, past_key_values, inputs_embeds, ...)`, each with `embed_tokens`, and `first_past`. With tie_word_embeddings the words of both, and
    the head's, are one matrix.
    """

    base_model_prefix = "model"
    _tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}

    def __init__(self, config: Seq2SeqConfig, encoder: nn.Module, decoder: nn.Module):
        super().__init__(config)
        self.encoder, self.decoder = encoder, decoder
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of the source."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Take others, for the decoder too."""
        self.encoder.embed_tokens = self.decoder.embed_tokens = value

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As in transformers; raises UserError where source and target have a matrix each, of which it would change one."""
        refuse_resizing(self.config)
        return super().resize_token_embeddings(*args, **kwargs)

    def first_past(self, encoder_outputs: BaseModelOutput, use_cache: bool) -> Any:
        """What the decoder goes on from before any token, made of what the encoder read."""
        raise NotImplementedError

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqModelOutput:
        """The decoder's states, [rows, n, d_model], at each of its ids, [rows, n].

        The source is `input_ids`, [rows, m], of which the mask marks what is no padding, or `encoder_outputs`, which read it; in place of ids there may be what
        `embed_tokens` makes of them. Further arguments go to the layers. Raises UserError where there is no source, or nothing for the decoder.
        """
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise UserError("the decoder has nothing to read: give decoder_input_ids, or labels to be shifted")
        tell = {
            "output_attentions": self.config.output_attentions if output_attentions is None else output_attentions,
            "output_hidden_states": self.config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        }
        if encoder_outputs is None:
            if input_ids is None and inputs_embeds is None:
                raise UserError("there is no source: give input_ids, or the encoder_outputs that were read of it")
            encoder_outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **tell, **kwargs)
        elif isinstance(encoder_outputs, tuple):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        if past_key_values is None:
            past_key_values = self.first_past(encoder_outputs, self.config.use_cache if use_cache is None else use_cache)
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            **tell,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


class Seq2SeqLanguageModel(PreTrainedModel, GenerationMixin):
    """A `Seq2SeqModel` with a head of words."""

    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight"}

    def __init__(self, config: Seq2SeqConfig, model: Seq2SeqModel):
        super().__init__(config)
        self.model = model
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As `Seq2SeqModel`, with the head."""
        refuse_resizing(self.config)
        return super().resize_token_embeddings(*args, **kwargs)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """What the decoder is shown for labels, [rows, n], as `shifted_right`: collators of transformers ask for it."""
        return shifted_right(labels, self.config.decoder_start_token_id, self.config.pad_token_id)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Logits, [rows, n, vocab], of what follows each of the decoder's ids, [rows, n]; with labels, [rows, n], their loss as well.

        As `Seq2SeqModel`; without ids of its own the decoder is shown the labels shifted. The loss is the mean over labels that are not -100, or their sum over
        `num_items_in_batch`.
        """
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        out = self.model(
            input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(out.last_hidden_state)
        loss = None if labels is None else loss_of(logits, labels, num_items_in_batch)
        told = {name: value for name, value in out.items() if name != "last_hidden_state"}
        return Seq2SeqLMOutput(loss=loss, logits=logits, **told)


def refuse_resizing(config: Seq2SeqConfig) -> None:
    """Raise UserError where the words of source, target and head are matrices of their own."""
    if not config.tie_word_embeddings:
        raise UserError(f"{config.model_type} has three matrices of words, which are not resized: make it for the tokenizer, or with tie_word_embeddings")


def loss_of(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """The cross-entropy of labels, [rows, n], where they are not -100: their mean, or their sum over a number of items."""
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction=reduction)
    return loss if num_items_in_batch is None else loss / num_items_in_batch
