"""What an optimizer keeps and takes: the real one steps on shapes, those of bitsandbytes, which compute nowhere else than on a GPU, by what they write of themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from ..run.optimizer import MasterAdamW
from .allocations import Allocations, Moment

SMALL = 4096  # elements of a parameter below which bitsandbytes keeps float32
BLOCK = 256  # elements that share a scale of 4 bytes, a state
MOMENTS = {"adamw": 2, "adam": 2, "ademamix": 3, "lion": 1, "rmsprop": 1, "momentum": 1}  # states of bitsandbytes' optimizers


@dataclass(frozen=True)
class OptimizerCost:
    """Bytes: the state, the float32 masters of low weights, and the moments of a step beside these."""

    state: int
    masters: int
    moments: list[Moment]
    told: str


def optimizer_cost(trainer: Any, parameters: Sequence[nn.Parameter], standing: Sequence[Tensor]) -> OptimizerCost:
    """Let the trainer's optimizer take two steps, the first of which makes its state; the parameters are fake tensors."""
    name = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if "8bit" in name or "bnb" in name or name.startswith("paged"):
        return bitsandbytes_cost(name, trainer.model, parameters)
    optimizer = trainer.create_optimizer()
    _give_gradients(parameters)
    optimizer.step()
    masters = [m for p, m in optimizer.pairs if m is not p] if isinstance(optimizer, MasterAdamW) else []
    held = [each for each in tree_iter(list(optimizer.state.values())) if isinstance(each, Tensor)]
    allocations = Allocations()
    allocations.knows([*standing, *masters, *held])
    with allocations:  # gradients that are there are counted before, and given up as they are let go of
        _give_gradients(parameters)
        for parameter in parameters:
            allocations.is_gradient(parameter.grad)
        allocations.moments.clear()
        optimizer.step()
    kind = f"{type(optimizer).__name__}, " if not isinstance(optimizer, MasterAdamW) else "AdamW on float32 masters, "
    return OptimizerCost(_bytes(held), _bytes(masters), allocations.moments, kind + name)


def bitsandbytes_cost(name: str, model: nn.Module, parameters: Sequence[nn.Parameter]) -> OptimizerCost:
    """The states of an optimizer of bitsandbytes: a byte a weight and a scale a block; embeddings and small parameters in float32 (Dettmers et al. 2022)."""
    count = next((count for kind, count in MOMENTS.items() if kind in name), 2)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}  # transformers asks that of it
    eight = "8bit" in name
    state = 0
    for parameter in parameters:
        small = not eight or parameter.numel() < SMALL or id(parameter) in embeddings
        state += count * (4 * parameter.numel() if small else parameter.numel() + 4 * -(-parameter.numel() // BLOCK))
    return OptimizerCost(state, 0, [Moment(sum(p.numel() * p.element_size() for p in parameters), 0)], f"{name}, {'8-bit' if eight else 'float32'} states")


def _give_gradients(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)
