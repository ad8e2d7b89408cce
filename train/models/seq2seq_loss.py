"""The loss of an encoder-decoder's target: the head runs where the decoder has something to say, and nowhere else.

Label i is what the decoder says at position i, where it was shown `decoder_input_ids` up to there. What T5 multiplies hidden states with, and what
BART and Marian add to the logits, is found by a trial; the rest is as in `completion_loss`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ...data.errors import UserError
from ...data.labels import IGNORE_INDEX
from ...infer.kernels.products import onednn_products
from ...infer.runners.end_to_end import Pairs
from ..maths.logprobs import CHUNK
from .completion_loss import Head, SkippedTrunk, answer_loss, refuse_router_loss, with_module
from .extended_forward import Forward, extend_forward

FORM_IS_KNOWN = "seq2seq_head_scale"  # among a model's attributes, once it was tried: what hidden states are multiplied with, None where there is more to the head


def patch_seq2seq_loss(model: PreTrainedModel, chunk: int = CHUNK) -> None:
    """Make `model(..., labels=...)` compute its loss at label positions alone, returning an `AnswerLoss`.

    It takes `decoder_input_ids` beside the labels, padded rows with their `attention_mask`, or with `source_lengths` and `target_lengths` [pairs] all pairs
    end to end, which the model must run (`can_run_end_to_end`). Without labels it answers as before. The loss equals the architecture's own, the mean over
    `num_items_in_batch` where that is given, else over the labels present; with `label_smoothing` it is that of transformers' `LabelSmoother`, but
    in evaluation, where it is the plain one. Raises UserError for a mixture of experts that adds a router loss, which this loss does not know.
    """
    refuse_router_loss(model)

    def with_loss(before: Forward) -> Forward:
        def forward(self, *args, labels: Tensor | None = None, num_items_in_batch=None, label_smoothing: float = 0.0, **kwargs):
            if labels is None:
                return before(self, *args, **kwargs)
            if kwargs.get("decoder_input_ids") is None and kwargs.get("decoder_inputs_embeds") is None:  # the trunk might take the source for it
                raise UserError("labels without decoder_input_ids: give what the decoder is shown before each of them")
            with fast_products(self):
                hidden = decoder_trunk(self)(*args, **{**with_pairs(kwargs), "use_cache": False}).last_hidden_state
            targets = labels.flatten()
            places = (targets != IGNORE_INDEX).nonzero().squeeze(1)
            hidden = hidden.flatten(0, 1).index_select(0, places)
            layer, head = self.get_output_embeddings(), own_seq2seq_head(self)
            linear = partial(linear_form, self, layer, head)
            return answer_loss(layer, head, linear, hidden, targets[places], num_items_in_batch, chunk, smoothing=label_smoothing)

        return forward

    extend_forward(model, "seq2seq loss", with_loss, speaks_as_before=True)


def fast_products(model: nn.Module) -> AbstractContextManager[Any]:
    """oneDNN's products, but where activations are computed again, for the context is not there then, and where what is computed is being compiled."""
    again = torch.is_grad_enabled() and any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    return nullcontext() if again or torch.compiler.is_compiling() else onednn_products()


def with_pairs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a model is called with, the lengths of its pairs as plain numbers, read from the device once and not in every layer."""
    lengths = [kwargs.pop(name, None) for name in ("source_lengths", "target_lengths")]
    return kwargs if lengths[0] is None else {**kwargs, "pairs": Pairs(*(tuple(each.tolist()) for each in lengths))}


def decoder_trunk(model: PreTrainedModel) -> Callable[..., Any]:
    """What makes an encoder-decoder's last hidden states; T5 and its kin have their stacks in the model with the head, where the forward of the model without one finds them too."""
    trunk = model.base_model
    return trunk if trunk is not model else partial(MODEL_MAPPING[type(model.config)].forward, model)


def own_seq2seq_head(model: PreTrainedModel) -> Head:
    """Return the architecture's own head: its class's forward on a copy of the model that has the decoder taken out, and is told what the encoder has read."""
    decoder = model.get_decoder()
    outermost = with_module(model, next(name for name, module in model.named_modules() if module is decoder), SkippedTrunk())

    def head(hidden: Tensor) -> Tensor:
        states = hidden[None]
        read = BaseModelOutput(last_hidden_state=states)
        return type(model).forward(outermost, encoder_outputs=read, decoder_inputs_embeds=states, use_cache=False).logits[0]

    return head


def linear_form(model: PreTrainedModel, layer: nn.Module, head: Head, hidden: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """What the head's linear layer reads of hidden states, [n, hidden], and what is added to what it gives, [vocab] or None; None where there is more to the head.

    Tried once on the real hidden states, then remembered.
    """
    if not len(hidden) or type(layer) is not nn.Linear or layer.weight.dim() != 2:
        return None
    added = getattr(model, "final_logits_bias", None)
    added = None if added is None else added.flatten().to(hidden.dtype)
    if FORM_IS_KNOWN not in vars(model):
        vars(model)[FORM_IS_KNOWN] = _scale_of(model, layer, head, hidden[:2].detach(), added)
    scale = vars(model)[FORM_IS_KNOWN]
    return None if scale is None else (hidden if scale == 1 else hidden * scale, added)


@torch.no_grad()
def _scale_of(model: PreTrainedModel, layer: nn.Linear, head: Head, hidden: Tensor, added: Tensor | None) -> float | None:
    want = head(hidden)
    for scale in (1.0, hidden.shape[1] ** -0.5):
        logits = F.linear(hidden * scale, layer.weight.to(hidden.dtype), layer.bias)
        if torch.equal(logits if added is None else logits + added, want):
            return scale
    return None
