"""A causal model that scores answers: log-probabilities at answer positions alone, entropies, and a critic's values where it has one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ...infer.runners.architecture import attention_is_replaceable, carries_state
from ..attention.packed_attention import PACKED
from ..attention.tree import collate_branches, collate_padded_branches
from ..maths.logprobs import CHUNK, LinearLogprobs, head_logprobs
from .completion_loss import autocast_head, head_is_linear, own_head
from .extended_forward import Forward, extend_forward


@dataclass
class BranchScores(ModelOutput):
    """One number an answer token, all branches of the batch end to end: [answer tokens] each."""

    logprobs: Tensor | None = None
    entropies: Tensor | None = None  # nats, of the distribution that the token was chosen from
    value: Tensor | None = None  # of the model's `critic`, where it has one; `values` is a method of every output


def patch_branch_logprobs(model: PreTrainedModel, chunk: int = CHUNK) -> None:
    """Make `model(**collate_branches(rows))` return a `BranchScores`; without `predictors` the model answers as before.

    The distribution is that of the architecture's own logits, its scaling and capping included, divided by `temperature`. Entropies cost a
    pass over it and are computed where `wants_entropies` asks for them. The distributions of `chunk` positions are made at a
    time, the model's `loss_chunk` from then on.
    """
    trunk_name = model.base_model_prefix
    vars(model).setdefault("loss_chunk", chunk)

    def with_scores(before: Forward) -> Forward:
        def forward(
            self,
            *args,
            predictors: Tensor | None = None,
            targets: Tensor | None = None,
            branch_lengths=None,
            ends=None,
            temperature: float = 1.0,
            wants_entropies: bool = False,
            wants_values: bool = True,
            **kwargs,
        ):
            if predictors is None:
                return before(self, *args, **kwargs)
            kwargs.pop("labels", None)  # an adapter's wrapper hands on a None
            hidden = getattr(self, trunk_name)(*args, use_cache=False, **kwargs).last_hidden_state.flatten(0, 1).index_select(0, predictors)
            logprobs, entropies = _logprobs_and_entropies(self, hidden, targets, temperature, wants_entropies, self.loss_chunk)
            critic = getattr(self, "critic", None) if wants_values else None
            value = None if critic is None else critic(hidden, *args, predictors=predictors, **kwargs)
            return BranchScores(logprobs=logprobs, entropies=entropies, value=value)

        return forward

    extend_forward(model, "branch logprobs", with_scores, speaks_as_before=True)


def _logprobs_and_entropies(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, temperature: float, wants_entropies: bool, chunk: int
) -> tuple[Tensor, Tensor]:
    layer = model.get_output_embeddings()
    head = own_head(model)
    with autocast_head(hidden, layer) as (low, weight, bias):
        if head_is_linear(model, layer, head, low):
            return LinearLogprobs.apply(low, weight, bias, targets, temperature, wants_entropies, chunk)
        return head_logprobs(head, low, targets, temperature, chunk)


def choose_branch_collator(model: PreTrainedModel, pad_token_id: int, keep_last: bool = False):
    """Choose how rows with branches become a batch, and set the model's attention to it: a tree, or padded copies where that cannot be."""
    if attention_is_replaceable(model) and not carries_state(model):  # a state would run on from branch to branch
        model.set_attn_implementation(PACKED)
        return lambda rows: collate_branches(rows, keep_last)
    return lambda rows: collate_padded_branches(rows, pad_token_id)


@torch.no_grad()
def score_branches(model, batch: dict[str, Any]) -> BranchScores:
    """The scores of a batch in evaluation mode, the model's mode put back after."""
    training = model.training
    model.eval()
    try:
        return model(**batch)
    finally:
        model.train(training)
