"""What to change, and in which order, so that a run fits: what costs nothing but time first, what trains something else last."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from ...infer.checkpoint.without_weights import FourBitLinear
from ..models.reference import has_adapter
from .optimizers import OptimizerCost
from .peak import Measured, MemoryPlan, measured_again, memory_plan
from .sharding import FSDP, Layout

RANK = 16  # of the adapter that is proposed
MOST = 1024  # devices
STATE = 12  # bytes that AdamW and a float32 gradient take of a weight of an adapter


def advice(trainer: Any, plan: MemoryPlan, memory: int) -> list[tuple[str, float]]:
    """Changes, each with the peak, bytes, that a device then has; the search ends with the first that fits into so many bytes.

    Checkpointing and a smaller batch add up; more devices, an adapter and a base in four bits are each beside these two. The trainer's arguments are changed.
    """
    found: list[tuple[str, float]] = []
    measured = plan.measured
    for words, measured in changes_of_step(trainer, plan):  # noqa: B007  # the last is what the others stand beside
        found.append((words, memory_plan(measured, plan.layout).peak))
        if found[-1][1] <= memory:
            return found
    for words, now, layout in further(trainer, measured, plan.layout, memory):
        found.append((words, memory_plan(now, layout).peak))
        if found[-1][1] <= memory:
            break
    return found


def changes_of_step(trainer: Any, plan: MemoryPlan) -> Iterator[tuple[str, Measured]]:
    """Make a step smaller that learns the same: activations computed twice, then fewer rows at a time."""
    args, measured, devices = trainer.args, plan.measured, plan.layout.devices
    if not args.activation_checkpointing and not plan.layout.checkpoints:
        args.activation_checkpointing = True
        measured = measured_again(trainer, measured, devices)
        yield "--activation_checkpointing true", measured
    while args.per_device_train_batch_size > 1:
        args.per_device_train_batch_size //= 2
        args.gradient_accumulation_steps *= 2
        measured = measured_again(trainer, measured, devices)
        yield f"and --per_device_train_batch_size {args.per_device_train_batch_size} --gradient_accumulation_steps {args.gradient_accumulation_steps}", measured


def further(trainer: Any, measured: Measured, layout: Layout, memory: int) -> Iterator[tuple[str, Measured, Layout]]:
    """Spread the run over more devices, or train an adapter, on weights as they are or in four bits."""
    way = layout.way if layout.shares_parameters else FSDP
    wider = (replace(layout, devices=count, way=way) for count in (2**n for n in range(1, MOST.bit_length())) if count > layout.devices)
    first = next((each for each in wider if memory_plan(measured, each).peak <= memory), None)
    if first is not None:
        yield f"and {first.told()}", measured, first
    if has_adapter(trainer.model):
        return
    adapter = with_adapter(trainer, measured)
    yield f"or --lora_r {RANK}", adapter, layout
    yield f"or --lora_r {RANK} --qlora true", in_four_bits(trainer, adapter), layout


def with_adapter(trainer: Any, measured: Measured) -> Measured:
    """About what a step comes to where an adapter on all linear layers trains alone; its activations are taken to be the same."""
    weights = sum(RANK * (each.in_features + each.out_features) for each in linears(trainer.model))
    share = weights * 4 / max(measured.gradients, 1)
    scaled = lambda moments: [moment._replace(gradients=int(moment.gradients * share)) for moment in moments]
    return replace(
        measured, parameters=measured.parameters + 4 * weights, trained=weights, gradients=4 * weights, forward=scaled(measured.forward),
        backward=scaled(measured.backward), optimizer=OptimizerCost(2 * 4 * weights, 0, [], "AdamW"),
        beside=0 if getattr(trainer, "ref_model", None) is not None or getattr(trainer, "reference", None) is not None else measured.beside,
    )  # fmt: skip


def in_four_bits(trainer: Any, measured: Measured) -> Measured:
    """The same with the linear layers' weights in four bits."""
    low = sum(each.weight.numel() for each in linears(trainer.model))
    size = next(trainer.model.parameters()).element_size()
    return replace(measured, parameters=int(measured.parameters - low * (size - FourBitLinear.BYTES)))


def linears(model: nn.Module) -> list[nn.Linear]:
    """The linear layers that an adapter would sit on."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [each for each in model.modules() if isinstance(each, nn.Linear) and each is not head]
