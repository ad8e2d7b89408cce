"""The frozen reference that a policy is compared with: another model, the base beneath an adapter, or a copy made before training."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...data.errors import UserError
from ..attention.packed_attention import PACKED
from .branch_logprobs import patch_branch_logprobs, score_branches


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model as it is now, in evaluation mode, that nothing trains."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def check_reference(model: PreTrainedModel, reference: PreTrainedModel) -> None:
    """Refuse a reference that reads or writes other tokens than the model."""
    ours, theirs = (m.get_input_embeddings().weight.shape[0] for m in (model, reference))
    if ours != theirs:
        raise UserError(f"the reference has a vocabulary of {theirs}, the model of {ours}: use a reference with the model's own tokenizer")


def has_adapter(model: nn.Module) -> bool:
    """Whether peft has put an adapter on the model."""
    return hasattr(model, "peft_config")


class Reference:
    """Scores batches by the reference of `model`: `given`, or with an adapter the weights beneath it, or else a copy made now.

    Make it before the model is changed. `given` must score branches alike, so it gets the model's attention.
    """

    def __init__(self, model: nn.Module, given: PreTrainedModel | None = None):
        if given is not None:
            check_reference(model, given)
            given = given.requires_grad_(False).eval()
        elif not has_adapter(model):
            given = frozen_copy(model)
        if given is not None:
            patch_branch_logprobs(given)
            given.set_attn_implementation(PACKED if model.config._attn_implementation == PACKED else given.config._attn_implementation)
        self.given = given

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[nn.Module]:
        """The reference as a model to be called; the policy's adapter is off meanwhile where it is the base."""
        if self.given is not None:
            yield self.given.to(next(model.parameters()).device)
            return
        with model.disable_adapter():
            yield model

    def logprobs(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The reference's log-probability of every answer token of a batch, [answer tokens]; `model` is the unwrapped policy."""
        with self.of(model) as reference:
            return score_branches(reference, {**batch, "wants_values": False, "wants_entropies": False}).logprobs


def compute_distributed(compute: Callable[[Any], Tensor], rows: Sequence[Any], size: int, rank: int, world: int) -> list[list[float]]:
    """Apply `compute`, rows to numbers of each, to all rows, `size` at a time, each process its part; every process gets the whole.

    `compute` takes a list of rows and returns a list of tensors, one a row.
    """
    order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i]["branches"])) + len(rows[i]["prompt_ids"]))  # alike together
    mine = order[rank::world]
    found: list[tuple[int, list[float]]] = []
    for start in range(0, len(mine), size):
        some = mine[start : start + size]
        found += zip(some, (part.tolist() for part in compute([rows[i] for i in some])), strict=True)
    everyone = gather_object(found) if world > 1 else found
    by_row = dict(everyone)
    return [by_row[i] for i in range(len(rows))]
