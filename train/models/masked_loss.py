"""The loss of masked language modelling: the architecture's own head runs where labels are, and nowhere else.

An encoder's head is a transform and a linear layer onto the vocabulary. Where the two can be told apart the product with the vocabulary is that of
`completion_loss`, which keeps no logits; where they cannot, the whole head is.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...data.errors import UserError
from ...data.labels import IGNORE_INDEX
from ..maths.logprobs import CHUNK
from .completion_loss import AnswerLoss, Head, HeadCrossEntropy, LinearCrossEntropy, autocast_head, evaluated, own_head, plain_lengths
from .extended_forward import Forward, extend_forward

TRANSFORM_IS_KNOWN = "masked_head_has_transform"  # among a model's attributes, once it was tried


def patch_masked_loss(model: PreTrainedModel, chunk: int = CHUNK) -> None:
    """Make `model(..., labels=...)` compute its loss at label positions alone, returning an `AnswerLoss`.

    Label i is read at position i. Without labels the model answers as before. The loss equals the architecture's own: the mean cross entropy over
    `num_items_in_batch` where that is given, else over the labels present; in training of labels smoothed by `label_smoothing`. Raises UserError for a
    model that has no head of masked language modelling.
    """
    if model.get_output_embeddings() is None:
        raise UserError(f"{type(model).__name__} has no head of masked language modelling: load it by AutoModelForMaskedLM")

    def with_loss(before: Forward) -> Forward:
        def forward(self, *args, labels: Tensor | None = None, num_items_in_batch=None, label_smoothing: float = 0.0, **kwargs):
            if labels is None:
                return before(self, *args, **kwargs)
            hidden, targets = hidden_at_labels(self, *args, labels=labels, **kwargs)
            return _masked_loss(self, hidden, targets, num_items_in_batch, chunk, label_smoothing)

        return forward

    extend_forward(model, "masked loss", with_loss, speaks_as_before=True)


def hidden_at_labels(model: PreTrainedModel, *args, labels: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
    """The hidden states beneath the head where labels are, [n, hidden], and these labels, [n]."""
    trunk = getattr(model, model.base_model_prefix)
    hidden = trunk(*args, **plain_lengths(kwargs)).last_hidden_state
    targets = labels.flatten()
    places = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    return hidden.flatten(0, 1).index_select(0, places), targets[places]


def head_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The architecture's own logits at hidden states: [n, hidden] to [n, vocab]."""
    return own_head(model)(hidden)


def _masked_loss(model: PreTrainedModel, hidden: Tensor, labels: Tensor, num_items, chunk: int, smoothing: float) -> AnswerLoss:
    divisor = float(num_items if num_items is not None else max(len(labels), 1))
    losses = hits = None
    if not torch.is_grad_enabled():
        losses, hits = evaluated(own_head(model), hidden, labels, chunk)
        mean = losses.sum() / divisor
    elif (transform := transform_of(model, hidden)) is not None:
        layer = model.get_output_embeddings()
        with autocast_head(transform(hidden), layer) as (states, weight, bias):
            mean = LinearCrossEntropy.apply(states, weight, bias, labels, divisor, chunk, None, smoothing)
    else:
        mean = HeadCrossEntropy.apply(own_head(model), labels, divisor, chunk, None, smoothing, hidden, *_head_parameters(model))
    tokens = torch.tensor(len(labels), device=labels.device)
    return AnswerLoss(
        loss=mean, loss_sum=mean.detach() * divisor, tokens=tokens, losses=losses, hits=hits, correct=None if hits is None else hits.sum()
    )


def transform_of(model: PreTrainedModel, hidden: Tensor) -> Head | None:
    """What the head does before its linear layer, [n, hidden] to [n, inner]; None where there is more to it than a transform and that layer.

    It is the head's own forward with the linear layer taken out of a copy. Whether both together are the head is tried once on the real hidden
    states, then remembered.
    """
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear or not len(hidden):
        return None
    transform = own_head(model, without=layer)
    known = model.__dict__.get(TRANSFORM_IS_KNOWN)
    if known is None:
        known = model.__dict__[TRANSFORM_IS_KNOWN] = _same(own_head(model), transform, layer, hidden[:2].detach())
    return transform if known else None


@torch.no_grad()
def _same(head: Head, transform: Callable[[Tensor], Tensor], layer: nn.Linear, hidden: Tensor) -> bool:
    try:
        states = transform(hidden)
    except Exception:  # an architecture's own code, handed what it did not expect
        return False
    return states.shape[-1] == layer.in_features and torch.equal(layer(states), head(hidden))


def _head_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """What is trained of the head, the embedding that it shares with the trunk too."""
    trunk = {id(p) for p in getattr(model, model.base_model_prefix).parameters()}
    own = [p for p in model.parameters() if id(p) not in trunk]
    return [p for p in [*own, *(p for p in model.get_output_embeddings().parameters() if id(p) in trunk)] if p.requires_grad]
