"""Dream's published sampling loop, draw for draw, for results that have to be those of its authors' code.

What is odd in it is kept: passes that commit nothing, the mask token as an answer, a count of commits that is the mean over the rows, so that in rows
with unequally many masks tokens of the prompt become masks, or masks stay. `model.diffusion_generate` is this loop unless another is asked for
(compat.py); the engine's own diffusion does without all that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn.functional import pad

from ...data.errors import UserError
from .orders import OF_DREAM
from .published_loop import LoopOutput, Read, mask_id_of, reader

logger = logging.getLogger(__name__)

OF_A_CONFIG = {"temperature": 0.0, "top_p": None, "top_k": None}  # what a generation_config holds where it says nothing
LENGTH = 20  # a max_length that a generation_config holds unasked, and how many tokens are written where nobody says

Hook = Callable[[int | None, Tensor, Tensor | None], Tensor]  # step, canvas [batch, length], logits [batch, length, vocab]


@dataclass(frozen=True)
class DreamSettings:
    """What Dream's loop can be asked.

    Its defaults are those that Dream's users had: in the version of transformers that it was published for (4.46), the model's config filled in
    a temperature of 1 and a top_k of 50. Raises UserError for a value out of range.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None  # of prompt and answer
    steps: int = 512
    eps: float = 1e-3  # the time at which the last step ends
    alg: str = "origin"
    alg_temp: float | None = None
    temperature: float = 1.0
    top_p: float | None = 1.0
    top_k: int | None = 50
    num_return_sequences: int = 1
    mask_token_id: int | None = None  # the model's own
    pad_token_id: int | None = None
    bos_token_id: int | None = None  # changes nothing, as there
    eos_token_id: int | list[int] | None = None  # changes nothing, as there
    output_history: bool = False
    return_dict_in_generate: bool = False

    def __post_init__(self):
        for name in ("max_new_tokens", "max_length", "steps", "top_k", "num_return_sequences"):
            value = getattr(self, name)
            if not (type(value) is int and value > 0 or value is None and name not in ("steps", "num_return_sequences")):
                raise UserError(f"{name} must be a whole number above 0, got {value!r}")
        for name, fits, wanted in (
            ("temperature", lambda value: value >= 0, "0 or more"),
            ("alg_temp", lambda value: value >= 0, "0 or more"),
            ("top_p", lambda value: 0 < value <= 1, "in (0, 1]"),
            ("eps", lambda value: 0 < value < 1, "in (0, 1)"),
        ):
            value = getattr(self, name)
            if not (type(value) in (int, float) and fits(value) or value is None and name in ("alg_temp", "top_p")):
                raise UserError(f"{name} must be {wanted}, got {value!r}")
        if self.alg not in OF_DREAM:
            raise UserError(f"alg must be {' or '.join(OF_DREAM)}, got {self.alg!r}")


def dream_generate(
    model: nn.Module,
    inputs: Tensor,
    generation_config: Any = None,
    *,
    attention_mask: Tensor | None = None,
    generation_tokens_hook_func: Hook = lambda step, x, logits: x,
    generation_logits_hook_func: Hook = lambda step, x, logits: logits,
    **settings: Any,
) -> Tensor | LoopOutput:
    """Return `inputs` [batch, length] with an answer behind each prompt, as Dream's own `diffusion_generate` does with the same seed of torch.

    Every position that holds the mask token, in the prompt too, is to be filled. `attention_mask` [batch, length] is 0 where a prompt is padded (on
    the left). The settings are those of `DreamSettings`, beside or instead of a `generation_config`. The hooks are called in each step, that
    of the tokens with step None before the first as well; what they return is gone on with. A tensor is returned, or with
    `return_dict_in_generate` a `LoopOutput`. Raises UserError for impossible settings.
    """
    asked = _settings(generation_config, settings)
    mask_id = mask_id_of(model, "mask_token_id", asked.mask_token_id)
    if attention_mask is None and asked.pad_token_id is not None and (inputs == asked.pad_token_id).any():
        logger.warning("the prompts hold the padding token %d, and no attention_mask says that it is padding: it is read as text", asked.pad_token_id)
    if asked.num_return_sequences > 1:
        inputs = inputs.repeat_interleave(asked.num_return_sequences, dim=0)
        attention_mask = None if attention_mask is None else attention_mask.repeat_interleave(asked.num_return_sequences, dim=0)
    length = _length(model, inputs.shape[1], asked)
    canvas = pad(inputs.long(), (0, length - inputs.shape[1]), value=mask_id)
    read = reader(model, inputs.shape[1], length, attention_mask, counted=True)
    history: list[Tensor] = []
    canvas = generation_tokens_hook_func(None, canvas, None)
    times = torch.linspace(1, asked.eps, asked.steps + 1, device=canvas.device)
    for step in range(asked.steps):
        share = 1 - times[step + 1] / times[step] if step < asked.steps - 1 else 1
        canvas, logits = _fill(canvas, read, partial(generation_logits_hook_func, step), share, mask_id, asked)
        canvas = generation_tokens_hook_func(step, canvas, logits)
        if asked.output_history:
            history.append(canvas.clone())
    if not asked.return_dict_in_generate:
        return canvas
    return LoopOutput(sequences=canvas, history=history if asked.output_history else None)


def _fill(
    canvas: Tensor, read: Read, hook: Callable[[Tensor, Tensor], Tensor], share: Tensor | int, mask_id: int, asked: DreamSettings
) -> tuple[Tensor, Tensor]:
    """Return the canvas after one step, in which a `share` of the masks is to become tokens, and the step's logits."""
    masked = canvas == mask_id
    logits = hook(canvas, read(canvas))
    candidates = logits[masked]  # [masks, vocab]
    if asked.alg == "origin":
        tokens = torch.full((len(candidates),), mask_id, device=canvas.device)
        now = torch.rand(len(tokens), device=canvas.device) < share
        tokens[now] = _drawn(candidates[now], asked)[1]
        return canvas.masked_scatter(masked, tokens), logits
    confidences, tokens = _drawn(candidates, asked)  # drawn even where none is to be committed
    count = int(masked.sum() / len(masked) * share)
    if count:
        ranks = torch.full_like(canvas, -torch.inf, dtype=logits.dtype)
        ranks[masked] = confidences
        if asked.alg_temp:
            places = torch.multinomial((ranks / asked.alg_temp).softmax(dim=-1), count)  # [batch, count]
        else:
            places = ranks.topk(count).indices
        proposed = torch.full_like(canvas, mask_id)
        proposed[masked] = tokens
        canvas = canvas.scatter(1, places, proposed.gather(1, places))
    return canvas, logits


def _drawn(logits: Tensor, asked: DreamSettings) -> tuple[Tensor, Tensor]:
    """Return how certain each row [rows, vocab] is in the order that was asked for, and a token for each."""
    if asked.temperature > 0:
        logits = logits / asked.temperature
    if asked.top_p is not None and asked.top_p < 1:
        ranked, ids = logits.sort(descending=True)
        beyond = pad(ranked.softmax(dim=-1).cumsum(dim=-1)[..., :-1] > asked.top_p, (1, 0))  # the token that passes top_p stays
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, ids, beyond), torch.finfo(logits.dtype).min)
    if asked.top_k is not None:
        lowest = logits.topk(min(asked.top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < lowest, torch.finfo(logits.dtype).min)
    probs = logits.softmax(dim=-1)
    confidences, tokens = probs.max(dim=-1)
    if asked.temperature > 0:
        try:
            tokens = Categorical(probs=probs).sample()
        except (ValueError, RuntimeError):  # no row, or rows that do not sum to 1 closely enough (bfloat16): the likeliest are taken, as there
            pass
        else:
            confidences = probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    if asked.alg == "topk_margin":
        first, second = probs.topk(2).values.unbind(dim=-1)
        confidences = first - second
    elif asked.alg == "entropy":
        confidences = (probs * (probs + 1e-10).log()).sum(dim=-1)
    return confidences, tokens


def _settings(generation_config: Any, settings: Mapping[str, Any]) -> DreamSettings:
    """Return what is asked: by name, else by a generation_config (an object or a mapping), else by default."""
    base: dict[str, Any] = {}
    if generation_config is not None:
        told = generation_config if isinstance(generation_config, Mapping) else vars(generation_config)
        base = OF_A_CONFIG | {each.name: told[each.name] for each in fields(DreamSettings) if told.get(each.name) is not None}
        if base.get("max_length") == LENGTH:
            del base["max_length"]
    return DreamSettings(**base | settings)


def _length(model: nn.Module, prompt: int, asked: DreamSettings) -> int:
    """Return how long prompt and answer are together."""
    if asked.max_new_tokens is not None:
        return prompt + asked.max_new_tokens
    if asked.max_length is None:
        length = min(prompt + LENGTH, getattr(model.config, "max_position_embeddings", None) or prompt + LENGTH)
    else:
        length = asked.max_length
    if prompt >= length:
        raise UserError(f"the prompt's {prompt} tokens leave no room in max_length={length}: raise it, or give max_new_tokens")
    return length
