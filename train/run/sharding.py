"""Weights that no process holds whole: FSDP2 and ZeRO-3 as accelerate sets them up, and a whole copy for whoever speaks."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_WRAPPER = "_checkpoint_wrapped_module."  # what checkpointed activations put into a name


def fsdp_asked() -> bool:
    """Whether the launcher asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard_on_cpus_too() -> None:
    """Let accelerate, which has set up its processes, shard over CPUs as it does over accelerators: by itself it would not, without a word."""
    if fsdp_asked() and PartialState().distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def zero_stage(accelerator: Accelerator) -> int:
    """DeepSpeed's stage, 0 without it; from 3 on no process holds all weights."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None) if accelerator.distributed_type == DistributedType.DEEPSPEED else None
    return 0 if plugin is None else plugin.zero_stage


@contextmanager
def head_with_the_rest(model: nn.Module) -> Iterator[None]:
    """Have accelerate shard a model by its layers, and embeddings, last norm and head as one with the model itself, whose forward gathers them.

    accelerate would make units of them that gather when their own forward is called. A loss at label positions reads the head's weight and
    calls no forward of it, so that the next step would find the last norm, of the same unit, in pieces.
    """
    before = vars(model).copy()
    model.get_input_embeddings = model.get_output_embeddings = lambda: None
    model.base_model_prefix = ""
    try:
        yield
    finally:
        for name in ("get_input_embeddings", "get_output_embeddings", "base_model_prefix"):
            vars(model).pop(name, None)
            if name in before:
                setattr(model, name, before[name])


class WholeCopy:
    """A copy of a model, made before it is sharded, that has weights as long as somebody speaks with it: those of all the pieces."""

    def __init__(self, model: nn.Module):
        empty = {id(p): nn.Parameter(p.new_empty(0), requires_grad=False) for p in model.parameters()}
        self.model: Any = copy.deepcopy(model, empty).eval()

    @contextmanager
    def filled(self, sharded: nn.Module, device: torch.device) -> Iterator[Any]:
        """Yield the copy with the weights of the sharded model, on the device; all processes have to enter, what they do within is their own."""
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, parameter in sharded.named_parameters():
                own[name.replace(_WRAPPER, "")].data = _whole(parameter, device)
            for name, buffer in sharded.named_buffers():
                self.model.get_buffer(name.replace(_WRAPPER, "")).data = buffer.to(device)
        try:
            yield self.model
        finally:
            for parameter in own.values():
                parameter.data = parameter.new_empty(0)


def _whole(parameter: Tensor, device: torch.device) -> Tensor:
    """All of a parameter that lies in pieces with the processes."""
    if hasattr(parameter, "ds_id"):  # ZeRO-3's
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.data.to(device, copy=True)
    value = parameter.detach()
    return value.full_tensor().to(device) if isinstance(value, DTensor) else value.to(device, copy=True)
