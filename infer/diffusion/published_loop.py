"""What the published sampling loops have in common: what they give back, the id of the mask, and how a whole canvas is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.utils import ModelOutput

from ...data.errors import UserError
from ..runners.architecture import decoding_limit
from ..runners.paradigm import PROMPT_CAUSAL, diffusion_of

Read = Callable[[Tensor], Tensor]  # a canvas [batch, length] -> its logits [batch, length, vocab], those of a token where the token stands


@dataclass
class LoopOutput(ModelOutput):
    """The sequences, prompt and answer, [batch, length], and after each step the whole canvas, where it was asked for."""

    sequences: Tensor | None = None
    history: list[Tensor] | None = None


def token_id(model: nn.Module, name: str, given: int) -> int:
    """Return the id of a special token; raise UserError, with the setting's name, for what is no id of the model's."""
    if type(given) is not int or not 0 <= given < model.config.vocab_size:
        raise UserError(f"{name} must be one of the model's {model.config.vocab_size} ids, got {given!r}")
    return given


def mask_id_of(model: nn.Module, name: str, given: int | None) -> int:
    """Return the mask's id that was given under that name, or the model's own."""
    return token_id(model, name, diffusion_of(model.config).mask_token_id if given is None else given)


def reader(model: nn.Module, prompt: int, length: int, attention_mask: Tensor | None, counted: bool) -> Read:
    """Return what reads canvases [batch, length] whose first `prompt` positions are seen where `attention_mask` [batch, prompt] is not 0.

    `counted`: a row's positions are counted from the first that is seen, else from its beginning. Raises UserError for more positions than the model has.
    """
    if (limit := decoding_limit(model)) is not None and length > limit:
        raise UserError(f"the prompt's {prompt} tokens and an answer of {length - prompt} are more than the model's {limit} positions: shorten one of them")
    diffusion = diffusion_of(model.config)
    told: dict[str, Tensor] = {}
    seen = None
    if attention_mask is not None and (attention_mask == 0).any():
        seen = pad(attention_mask, (0, length - prompt), value=1)
        told["attention_mask"] = seen
        if counted:
            told["position_ids"] = (seen.long().cumsum(dim=-1) - 1).masked_fill(seen == 0, 1)
    if diffusion.attention == PROMPT_CAUSAL:
        told["attention_mask"] = _prompt_causal(model, prompt, length, seen)

    def read(canvas: Tensor) -> Tensor:
        logits = model(input_ids=canvas, use_cache=False, **told).logits
        return torch.cat([logits[:, :1], logits[:, :-1]], dim=1) if diffusion.shift else logits

    return read


def _prompt_causal(model: nn.Module, prompt: int, length: int, seen: Tensor | None) -> Tensor:
    """Return what is added to attention scores, [batch or 1, 1, length, length], where prompts are causal and what follows them sees all."""
    places = torch.arange(length, device=model.device)
    allowed = (places <= places[:, None]) | (places[:, None] >= prompt)
    if seen is not None:
        allowed = allowed & (seen[:, None, None] != 0)
    else:
        allowed = allowed[None, None]
    return torch.zeros(allowed.shape, dtype=model.dtype, device=model.device).masked_fill(~allowed, torch.finfo(model.dtype).min)
