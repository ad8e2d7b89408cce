"""Which matrices lose most by 4 bits: what their rounding does to the likelihood of a text, by its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..kernels.four_bits import Grid, four_bits, written_out

FOUR, EIGHT = 5.0, 8.5  # bits a weight with its share of a group's scale, and in 4 bits of its zero
ROWS = 4  # of the text, which suffice to order matrices


@torch.enable_grad()
def sensitivities(
    model: PreTrainedModel, rows: Tensor, units: Sequence[Sequence[nn.Module]], grid: Grid, counts: Mapping[nn.Module, Tensor | None]
) -> list[float]:
    """Return for each group of linear layers by how much rounding it alone to 4 bits, its inputs counting so much, makes the text less likely, in nats a token,
    to second order.

    With g the gradient of the text's log-likelihood by an output y = W x and d the error of W, the loss rises by half the mean of (g . d x)^2: the second
    derivatives are those of the Fisher information, with the text's own tokens. Weights are not moved, their gradients not computed.
    """
    errors, losses, moved = {}, [0.0] * len(units), [0.0] * len(units)
    for linear in (linear for unit in units for linear in unit):
        weight = weight_of(linear)
        errors[linear] = (written_out(four_bits(weight.float().contiguous(), *grid, counts[linear]), grid) - weight).bfloat16()

    def seen_by(number: int) -> Callable:
        def see(linear: nn.Module, args: tuple, output: Tensor) -> None:
            x = args[0].detach().flatten(0, -2)

            def add(gradient: Tensor) -> None:
                moved[number] = moved[number] + (gradient.flatten(0, -2) * (x @ errors[linear].to(x.dtype).T)).sum(dim=-1)

            output.register_hook(add)

        return see

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [linear.register_forward_hook(seen_by(number)) for number, unit in enumerate(units) for linear in unit]
    hooks.append(model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_()))
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        for row in rows[:ROWS]:
            logits = model(input_ids=row[None], use_cache=False).logits[0]
            nn.functional.cross_entropy(logits[:-1], row[1:], reduction="sum").backward()
            for number, each in enumerate(moved):
                losses[number] += each.square().sum().item()
                moved[number] = 0.0
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for hook in hooks:
            hook.remove()
    return [loss / 2 / rows[:ROWS, 1:].numel() for loss in losses]


def weight_of(linear: nn.Module) -> Tensor:
    """The weight of a linear layer, [out, in], as a view of its own memory."""
    return linear.weight.detach().t() if isinstance(linear, Conv1D) else linear.weight.detach()


def kept_in_8_bits(units: Sequence[Sequence[nn.Module]], losses: Sequence[float], bits: float) -> set[nn.Module]:
    """Return the linear layers to keep in 8 bits: those groups that lose most a weight, as long as all take no more than `bits` a weight on average."""
    sizes = [sum(linear.weight.numel() for linear in unit) for unit in units]
    left, kept = round((bits - FOUR) * sum(sizes)), set()
    for i in sorted(range(len(units)), key=lambda i: losses[i] / sizes[i], reverse=True):
        if (EIGHT - FOUR) * sizes[i] <= left:
            left -= (EIGHT - FOUR) * sizes[i]
            kept.update(units[i])
    return kept
