"""`model.diffusion_generate`: a published sampling loop, by the name of the model that it was published for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...data.errors import UserError
from ..runners.paradigm import BLOCK_CAUSAL, diffusion_of
from .dream import DreamSettings, dream_generate
from .llada import LladaSettings, llada_generate
from .published_loop import LoopOutput


class Loop(NamedTuple):
    """A loop, the dataclass of its settings, and what else it takes by name."""

    generate: Callable[..., Tensor | LoopOutput]
    settings: type
    beside: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [*self.beside, *(each.name for each in fields(self.settings))]


DREAM = "dream"
LOOPS = {
    DREAM: Loop(dream_generate, DreamSettings, ("attention_mask", "generation_tokens_hook_func", "generation_logits_hook_func")),
    "llada": Loop(llada_generate, LladaSettings, ("prompt", "attention_mask")),
}


def bind(model: nn.Module) -> None:
    """Give a language model whose config says diffusion its `diffusion_generate`; leave others as they are."""
    if diffusion_of(model.config) is not None and model.get_output_embeddings() is not None:
        model.diffusion_generate = partial(diffusion_generate, model)


@torch.no_grad()
def diffusion_generate(
    model: nn.Module, inputs: Tensor | None = None, generation_config: Any = None, *, compat: str = DREAM, **settings: Any
) -> Tensor | LoopOutput:
    """Return `inputs` [batch, length] with an answer behind each prompt, as a published loop does with the same seed of torch.

    `compat="dream"` is Dream's function of that name (`dream_generate`), "llada" LLaDA's `generate` (`llada_generate`); the settings are those of the
    loop, which is run on any checkpoint of masked diffusion, as its config says who sees whom and where a token is read. Raises UserError for what
    the loop does not take, by name, and for impossible values, before any pass.
    """
    if compat not in LOOPS:
        raise UserError(f"compat must be {' or '.join(LOOPS)}, got {compat!r}")
    diffusion = diffusion_of(model.config)
    if diffusion is None:
        raise UserError("diffusion_generate needs a diffusion checkpoint: this one speaks left to right, use seodang.infer.generate")
    if diffusion.attention == BLOCK_CAUSAL:
        raise UserError(f"diffusion_generate fills its whole canvas at once, which attention={BLOCK_CAUSAL!r} cannot: use seodang.infer.generate")
    _check_names(compat, settings)
    inputs = _prompts(inputs, settings)
    _check_inputs(inputs, settings.get("attention_mask"))
    if compat == DREAM:
        return dream_generate(model, inputs, generation_config, **settings)
    if generation_config is not None:
        raise UserError(f"compat={compat!r} takes no generation_config, which is Dream's: give its settings by name")
    return LOOPS[compat].generate(model, inputs, **settings)


def _check_names(compat: str, settings: Mapping[str, Any]) -> None:
    """Refuse what the loop does not take, and say whose it is."""
    known = LOOPS[compat].names
    if unknown := sorted(set(settings) - set(known)):
        other = next((f", which is of compat={name!r}" for name, loop in LOOPS.items() if unknown[0] in loop.names), "")
        raise UserError(f"diffusion_generate with compat={compat!r} knows no {unknown[0]!r}{other}: it takes {', '.join(known)}")


def _prompts(inputs: Tensor | None, settings: dict[str, Any]) -> Tensor | None:
    """Take the prompts out of the settings, where they were given by LLaDA's name of them."""
    if "prompt" not in settings:
        return inputs
    if inputs is not None:
        raise UserError("prompt and inputs are both given, and are the same thing: give one")
    return settings.pop("prompt")


def _check_inputs(inputs: Any, attention_mask: Any) -> None:
    if not isinstance(inputs, Tensor) or inputs.dim() != 2 or inputs.is_floating_point() or inputs.numel() == 0:
        shape = list(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UserError(f"inputs must be ids of tokens, a tensor [batch, length] of whole numbers, got {shape}")
    if attention_mask is not None and (not isinstance(attention_mask, Tensor) or attention_mask.shape != inputs.shape):
        given = list(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise UserError(f"attention_mask must be a tensor of the shape of the inputs, {list(inputs.shape)}, got {given}")
