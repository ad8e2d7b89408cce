"""Weights that no process holds whole: FSDP2 and ZeRO-3 as accelerate sets them up, and a whole copy for whoever speaks."""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ...data.errors import UserError
from ...infer.runners.architecture import transformers_model
from ..models.critic import CRITIC

ZERO3 = "ZeRO-3"
_WRAPPER = "_checkpoint_wrapped_module."  # what checkpointed activations put into a name


def fsdp_asked() -> bool:
    """Whether the launcher asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard_on_cpus_too() -> None:
    """Let accelerate, which has set up its processes, shard over CPUs as it does over accelerators: by itself it would not, without a word."""
    if fsdp_asked() and PartialState().distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def check_sharding(accelerator: Accelerator, args: TrainingArguments, model: nn.Module, low_precision: bool) -> None:
    """Raise UserError for FSDP's first version, for a model loaded in pieces, and for weights in 16 bits that neither FSDP nor DeepSpeed would keep in 32 beside them."""
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise UserError("the model was loaded in pieces, as transformers does under ZeRO-3: load it before the TrainingArguments are made, it is shared when training begins")
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version != 2:
        raise UserError(f"FSDP version {plugin.fsdp_version} is not run here: set fsdp_version: 2 in the launch file, as recipes/launch/fsdp2.yaml does")
    mixed = args.bf16 or args.fp16 or os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
    if low_precision and engine_of(accelerator) and not mixed:
        raise UserError(
            f"weights in 16 bits lose small steps, and under {engine_of(accelerator)} they have no float32 copies without mixed precision: "
            "set mixed_precision: bf16 in the launch file, or --bf16 true, or train in --dtype float32"
        )


def load_whole() -> None:
    """Have each process load whole models under ZeRO-3 too, which are taken apart when training begins: as they are under FSDP2.

    transformers would load a model in pieces, and no code but DeepSpeed's could read, copy or extend it before there is an engine.
    """
    unset_hf_deepspeed_config()


def gather_head_with_the_rest(model: nn.Module) -> None:
    """Have DeepSpeed gather the head's weights whenever the outermost model is called, by its engine or without: the losses read them at label positions.

    By themselves they are gathered where their own module's forward is called. The model has been prepared for ZeRO-3.
    """
    import deepspeed

    inner = transformers_model(model)
    trunk = getattr(inner, inner.base_model_prefix, None)
    head = [module for name, module in inner.named_children() if module is not trunk and name != CRITIC]  # the critic is called as a module
    for parameter in {id(p): p for module in (*head, inner.get_output_embeddings()) if module is not None for p in module.parameters()}.values():
        deepspeed.zero.register_external_parameter(model, parameter)


def refuse_context_parallel(sizes: Mapping[str, Any]) -> None:
    """Raise UserError where a row is to be cut among processes; `sizes` are those of accelerate's ParallelismConfig by name, as a launch file or the environment has them."""
    for name in ("cp_size", "sp_size"):
        told = next((str(value) for key, value in sizes.items() if key.lower() == f"parallelism_config_{name}"), "1")
        if told not in ("1", "None"):
            raise UserError(
                f"parallelism_config_{name} {told}: rows are not cut among processes here, for records lie end to end by an attention of our own, which torch's ring of "
                "fused GPU kernels does not know: leave it out, and share the weights by FSDP2 instead; long rows fit by --activation_checkpointing true and --loss_chunk"
            )


@contextmanager
def head_with_the_rest(model: nn.Module) -> Iterator[None]:
    """Have accelerate shard a model by its layers, and embeddings, last norm and head as one with the model itself, whose forward gathers them.

    accelerate would make units of them that gather when their own forward is called. A loss at label positions reads the head's weight and
    calls no forward of it, so that the next step would find the last norm, of the same unit, in pieces.
    """
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    layers = set(getattr(model, "_no_split_modules", None) or ()) - {type(m).__name__ for m in model.modules() if embedding in m.modules()}
    known = {type(m).__name__ for m in model.modules()}
    told = {"_no_split_modules": sorted(layers & known), "base_model_prefix": "", "get_input_embeddings": _none, "get_output_embeddings": _none}
    before = {name: vars(model)[name] for name in told if name in vars(model)}
    vars(model).update(told)
    try:
        yield
    finally:
        for name in told:
            del vars(model)[name]
        vars(model).update(before)


def _none() -> None:
    """No module that is a unit of its own."""


class WholeCopy:
    """A copy of a model, made before it is sharded, that has weights as long as somebody speaks with it: those of all the pieces."""

    def __init__(self, model: nn.Module):
        empty = {id(p): nn.Parameter(p.new_empty(0), requires_grad=False) for p in model.parameters()}
        self.model: Any = copy.deepcopy(model, empty).eval()
        for module in self.model.modules():
            forward = vars(module).get("forward")
            while getattr(forward, "extension", None) is not None:
                forward = forward.before
            if forward is not None:  # trl's, which calls the model that was copied
                del module.forward

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
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().to(device, copy=True)
    value = parameter.detach()
    return value.full_tensor().to(device) if isinstance(value, DTensor) else value.to(device, copy=True)


# Checkpoints


def engine_of(accelerator: Accelerator) -> str:
    """What writes the weights and the optimizer's state of a checkpoint: FSDP, DeepSpeed, ZeRO-3 that is DeepSpeed's too, or in one process "" that is none."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return ZERO3 if accelerator.deepspeed_plugin.zero_stage == 3 else "DeepSpeed"
    return "FSDP" if accelerator.distributed_type == DistributedType.FSDP else ""


def refuse_other_engine(checkpoint: str, engine: str, processes: int = 1) -> None:
    """Raise UserError for a checkpoint whose optimizer another engine has written, or of DeepSpeed's another number of processes, which this one cannot read."""
    found = [path.name for path in Path(checkpoint).iterdir()]
    wrote = "FSDP" if any("pytorch_model_fsdp" in name for name in found) else "DeepSpeed" if "latest" in found else ""
    if wrote == "DeepSpeed" and next(Path(checkpoint).glob("global_step*/zero_pp_rank_*_model_states.pt"), None) is not None:
        wrote = ZERO3
    if wrote != engine:
        raise UserError(
            f"{checkpoint} was saved {f'under {wrote}' if wrote else 'by plain processes'}, which {engine or 'a run of plain processes'} cannot go on from: launch it as "
            "it was, with any number of processes (--allow_changes processes), or begin another run from its final model"
        )
    shares = len([*Path(checkpoint).glob("global_step*/*zero_pp_rank_*_optim_states.pt")])
    if shares and shares != processes:
        raise UserError(f"{checkpoint} was saved by {shares} processes, now {processes}: under DeepSpeed launch as many, or begin another run from its final model")


@contextmanager
def gathered_when_saved(accelerator: Accelerator) -> Iterator[None]:
    """Have FSDP and ZeRO-3 save a model whole, however its checkpoints are written."""
    if engine_of(accelerator) == ZERO3:
        config = accelerator.deepspeed_engine_wrapped.engine._config.zero_config
        before, config.gather_16bit_weights_on_model_save = config.gather_16bit_weights_on_model_save, True
        try:
            yield
        finally:
            config.gather_16bit_weights_on_model_save = before
        return
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        yield
        return
    before = plugin.state_dict_type
    plugin.set_state_dict_type("FULL_STATE_DICT")
    try:
        yield
    finally:
        plugin.set_state_dict_type(before)


def without_ties(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """A gathered state, or what is named as one, without what is another of its tensors, which a gathered one does not show."""
    prefix = "base_model.model." if hasattr(model, "peft_config") else ""
    tied = {prefix + name for name in getattr(model, "all_tied_weights_keys", None) or ()}
    return {name: value for name, value in state.items() if name not in tied}
