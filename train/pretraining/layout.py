"""How an encoder takes several pieces of text at once: end to end, each seeing itself alone and counting its positions anew, or padded."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ...data.errors import UserError
from ...data.packing import Row, collate, collate_padded, padding_id
from ...infer.runners.architecture import attention_is_replaceable, carries_state, first_position
from ..attention.packed_attention import PACKED
from ..models.completion_loss import plain_lengths

PROBED = (5, 3)  # tokens of two pieces that the layout is tried with
TOLERANCE = 1e-4  # of the largest hidden state, in float32


@dataclass(frozen=True)
class Layout:
    """Rows to a batch: pieces end to end without padding, the first position of each being `first_position`; or each padded on the right."""

    end_to_end: bool
    first_position: int
    pad_token_id: int

    def batch(self, rows: Sequence[Row]) -> dict[str, Any]:
        """`input_ids` and `labels`, [1, total] or [pieces, longest], with what the layout needs beside them."""
        if not self.end_to_end:
            return collate_padded(rows, self.pad_token_id)
        batch = collate(rows)
        none_is_causal = torch.zeros(len(batch["cu_seq_lens_q"]) - 1, dtype=torch.int64)
        return batch | {"position_ids": batch["position_ids"] + self.first_position, "causal_lengths": none_is_causal}


def set_layout(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Layout:
    """The layout that the encoder's own answers hold in, tried with two pieces; its attention is set to it.

    Each piece must come out as it does alone: with its attention kept to itself by `PACKED` and its positions counted from where the architecture
    begins (RoBERTa's behind its padding). Where it does not, as with attention of an architecture's own, pieces are padded.
    """
    own, pad = model.config._attn_implementation, padding_id(tokenizer)
    if "flash" in (own or ""):
        raise UserError(f"{own} is not tried for masked language modelling: load the model with attn_implementation='sdpa'")
    if attention_is_replaceable(model) and not carries_state(model):
        tried = copy.deepcopy(model).float() if next(model.parameters()).dtype.itemsize == 2 else model
        for first in dict.fromkeys((0, first_position(model))):
            layout = Layout(True, first, pad)
            if _holds(tried, layout, own):
                model.set_attn_implementation(PACKED)
                return layout
    return Layout(False, first_position(model), pad)


@torch.no_grad()
def _holds(model: PreTrainedModel, layout: Layout, own: str) -> bool:
    """Whether two pieces come out end to end as each does alone."""
    trunk, device = getattr(model, model.base_model_prefix), next(model.parameters()).device
    ids = [id for id in range(model.get_input_embeddings().weight.shape[0]) if id != layout.pad_token_id][-sum(PROBED) :]
    pieces = [ids[: PROBED[0]], ids[PROBED[0] :]]
    training = model.training
    model.eval()
    try:
        alone = [trunk(input_ids=torch.tensor([piece], device=device)).last_hidden_state[0] for piece in pieces]
        model.set_attn_implementation(PACKED)
        batch = layout.batch([{"input_ids": piece, "labels": piece} for piece in pieces])
        given = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items() if name != "labels"}
        together = trunk(**plain_lengths(given)).last_hidden_state[0]
    except (UserError, TypeError, IndexError, RuntimeError, NotImplementedError):  # an architecture that takes no such arguments
        return False
    finally:
        model.set_attn_implementation(own)
        model.train(training)
    expected = torch.cat(alone)
    if not expected.isfinite().all():
        raise UserError(f"{type(model).__name__} gives nan or infinity for a text: its weights are damaged, take another checkpoint")
    return bool((together - expected).abs().max() <= TOLERANCE * expected.abs().max())


def refuse_other_models(config: PreTrainedConfig, class_name: str | None = None) -> None:
    """Raise UserError for what does not fill in masks: a decoder, or an encoder with a decoder beside it; the class's name tells where it is known."""
    kind = config.model_type
    if config.is_encoder_decoder:
        raise UserError(f"{kind} has a decoder beside its encoder, which is taught otherwise, by `seodang pretrain` or `seodang seq2seq`: mlm takes encoders (BERT, RoBERTa, ModernBERT)")
    speaks = class_name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() and class_name not in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
    if speaks or getattr(config, "is_decoder", False) or kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UserError(f"this {kind} is a decoder, which reads from left to right and fills in no masks: teach it by `seodang pretrain` or `seodang sft`")
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES and class_name is None:
        raise UserError(f"transformers has no masked-language model of the kind {kind}: mlm takes encoders (BERT, RoBERTa, ModernBERT)")
