"""Four bits that are chosen by how a text goes through the model: layer by layer, each with the inputs that the rounded layers before it give."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...data.errors import UserError
from ..kernels.compensated_rounding import compensated
from ..kernels.four_bits import Fitted, Grid, written_out
from ..runners.families.parts import ROTARY, LayerParts, parts_of
from .sensitivity import kept_in_8_bits, sensitivities, weight_of

try:
    import resource
except ImportError:  # Windows
    resource = None

logger = logging.getLogger(__name__)

CHANCE = 256  # ids drawn by chance, where there is no text
DAMPING = 0.01  # of the inputs' mean square, added to each one's

Call = tuple[tuple, dict[str, Any]]  # what a layer is given beside the states


@torch.no_grad()
def calibrated(
    model: PreTrainedModel, rows: Tensor, grid: Grid, bits: float | None = None, report: Callable[[str], object] = logger.info
) -> dict[nn.Module, Fitted | None]:
    """Return for each linear layer, the head aside, the levels, scales and zeros that suit the inputs which a text gives it, or None where it keeps 8 bits.

    `rows` are ids of the text, [rows, length]. The model must have float32 weights on the CPU; they become the rounded ones, on which the next layer's inputs
    hang, where 4 bits are kept. `bits` is what a weight of these layers may take on average, group scales included: above FOUR the matrices that lose most a byte
    keep EIGHT, None leaves all in 4. A line a layer is reported, with the time and the memory taken so far. Nothing is drawn by chance. It takes as long as some
    three readings of the text, and memory for the text's states beside the model.
    Raises UserError where the text gives a layer inputs that are no numbers.
    """
    began = time.monotonic()
    layers = parts_of(model).layers
    units = [unit for layer in layers for unit in units_of(layer)]
    eight: set[nn.Module] = set()
    if bits is not None:
        eight = kept_in_8_bits(units, sensitivities(model, rows, units, grid, importances(model)), bits)
        report(f"calibration: {len([unit for unit in units if unit[0] in eight])} of {len(units)} matrices keep 8 bits")
    states, calls = first_states(model, rows)
    plan: dict[nn.Module, Fitted | None] = {}
    for number, (layer, parts) in enumerate(zip(modules_of(model), layers), start=1):
        run = lambda state: layer(state[None], *calls[number - 1][0], **calls[number - 1][1])
        for unit in units_of(parts):
            if unit[0] in eight:
                plan |= dict.fromkeys(unit)
            else:
                plan |= _rounded(unit, second_moments(unit[0], run, states), grid, f"layer {number}")
        for i, state in enumerate(states):
            states[i] = run(state)[0]
        report(f"calibration: layer {number} of {len(layers)}, {time.monotonic() - began:.0f} s{_peak()}")
    return plan


@torch.no_grad()
def importances(model: PreTrainedModel) -> dict[nn.Module, Tensor | None]:
    """Return what an input of each linear layer counts without a text, [in], the head aside: its mean square over ids drawn by chance, always the same; None
    where that is no number.

    Which inputs are large hangs little on the text: a few are in every state. They come to most of what rounding does to the outputs, and are few among the weights.
    """
    units = [unit for layer in parts_of(model).layers for unit in units_of(layer)]
    length, ids = min(CHANCE, getattr(model.config, "max_position_embeddings", None) or CHANCE), model.get_input_embeddings().weight.shape[0]
    drawn = torch.randint(ids, (1, length), generator=torch.Generator().manual_seed(0))
    squares: dict[nn.Module, Tensor] = {}

    def see(linear: nn.Module, args: tuple) -> None:
        squares[linear] = args[0].reshape(-1, args[0].shape[-1]).float().square().mean(dim=0)

    hooks = [unit[0].register_forward_pre_hook(see) for unit in units]
    try:
        model.base_model(input_ids=drawn, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    counts: dict[nn.Module, Tensor | None] = {}
    for unit in units:
        damped = squares[unit[0]] + DAMPING * squares[unit[0]].mean()
        counts |= dict.fromkeys(unit, damped if damped.isfinite().all() and damped.min() > 0 else None)
    return counts


def _small(fitted: Fitted) -> Fitted:
    """The same with levels of a byte, for as long as they wait to be packed."""
    levels, scale, zero = fitted
    return levels.to(torch.uint8), scale, zero


def units_of(layer: LayerParts) -> list[list[nn.Module]]:
    """The linear layers of one layer in the order in which they are computed; those that read the same input stand together."""
    return [layer.qkv, [layer.out], layer.grow, [layer.shrink]]


def modules_of(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The model's own layers."""
    return model.model.layers if type(model).__name__ in ROTARY else model.transformer.h


def first_states(model: PreTrainedModel, rows: Tensor) -> tuple[Tensor, list[Call]]:
    """Return what the first layer is given of each row, [rows, length, hidden], and what each layer is given beside it, which is the same for all rows."""
    layers, states = modules_of(model), []
    calls: list[tuple] = []

    def note(state: Tensor, *args, **kwargs) -> Tensor:
        calls.append((state, args, kwargs))
        return state

    for layer in layers:
        layer.forward = note
    try:
        for row in rows:
            calls.clear()
            model.base_model(input_ids=row[None], use_cache=False)
            states.append(calls[0][0][0])
    finally:
        for layer in layers:
            del layer.forward
    return torch.stack(states), [call[1:] for call in calls]


class _Seen(Exception):
    """Ends a layer's pass where all is known that was to be known of it."""


def second_moments(linear: nn.Module, run: Callable[[Tensor], object], states: Tensor) -> Tensor:
    """Return the mean of x x^T over the inputs x that a linear layer has while `run` takes its layer through the states: [in, in]."""
    width = weight_of(linear).shape[1]
    total = torch.zeros(width, width)

    def see(module: nn.Module, args: tuple) -> None:
        x = args[0].reshape(-1, width)
        total.addmm_(x.T, x)
        raise _Seen

    hook = linear.register_forward_pre_hook(see)
    try:
        for state in states:
            try:
                run(state)
            except _Seen:
                pass
    finally:
        hook.remove()
    return total / states[..., 0].numel()


def _rounded(unit: Sequence[nn.Module], moments: Tensor, grid: Grid, where: str) -> dict[nn.Module, Fitted]:
    """Fit linear layers that read the same input, and write into each what it will be."""
    if not moments.isfinite().all():
        raise UserError(f"calibration: {where} has inputs that are no numbers on this text: use another checkpoint, or leave calibration out")
    fitted = compensated(torch.cat([weight_of(linear) for linear in unit]), moments, grid, DAMPING)
    parts = zip(*(each.split([len(weight_of(linear)) for linear in unit]) for each in fitted))
    plan = dict(zip(unit, map(_small, parts)))
    for linear, part in plan.items():
        weight_of(linear).copy_(written_out(part, grid))
    return plan


def _peak() -> str:
    if resource is None:
        return ""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f", {used / 2 ** (30 if sys.platform == 'darwin' else 20):.1f} GiB at most"
