"""LLaDA's published sampling loop, draw for draw, for results that have to be those of its authors' code (generate.py of ML-GSAI/LLaDA, b7e6c35).

What is odd in it is kept: with more steps than positions, passes that commit nothing; the mask token as an answer; masks within the prompt that are
filled in as well, while the count of commits is that of the block's alone, so that masks may stay; an answer that is not ended by its end-of-text.
`confidence_eos_eot_inf` says that the end of the text and of the turn are never sure: it takes the end of the turn out of the probabilities that
say how sure the others are, that of the text at temperature 0 only, and does nothing where positions are drawn at random.

In one place there is nothing to keep: cfg_scale above 0 without an attention_mask ends in a NameError there. Here all of the prompt is then seen, as in
earlier versions of it and as with a mask of ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ...data.errors import UserError
from .published_loop import LoopOutput, Read, mask_id_of, reader, token_id
from .schedule import even

MASK, END_OF_TEXT, END_OF_TURN = 126336, 126081, 126348  # the ids of LLaDA's own vocabulary, which the published loop has in its code
LOW_CONFIDENCE, RANDOM = REMASKING = ("low_confidence", "random")


@dataclass(frozen=True)
class LladaSettings:
    """What LLaDA's loop can be asked, with its defaults. Raises UserError for a value out of range, and for a length or steps that do not divide."""

    steps: int = 128  # of all blocks together
    gen_length: int = 128
    block_length: int = 128
    temperature: float = 0.0
    cfg_scale: float = 0.0  # 0 reads nothing but the prompt
    remasking: str = LOW_CONFIDENCE
    mask_id: int | None = None  # the model's own
    logits_eos_inf: bool = False  # the end of the text is never written
    confidence_eos_eot_inf: bool = False
    eos_id: int | None = None  # of the end of the text and of the turn, for these two: with LLaDA's mask LLaDA's
    eot_id: int | None = None
    output_history: bool = False
    return_dict_in_generate: bool = False

    def __post_init__(self):
        for name in ("steps", "gen_length", "block_length"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UserError(f"{name} must be a whole number above 0, got {value!r}")
        for name in ("temperature", "cfg_scale"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < float("inf"):
                raise UserError(f"{name} must be 0 or more, got {value!r}")
        if self.remasking not in REMASKING:
            raise UserError(f"remasking must be {' or '.join(REMASKING)}, got {self.remasking!r}")
        whole = "as the published loop demands: seodang.infer.generate, the engine's own diffusion, takes any"
        if self.gen_length % self.block_length:
            raise UserError(f"gen_length={self.gen_length} must be a multiple of block_length={self.block_length}, {whole}")
        if self.steps % self.blocks:
            raise UserError(f"steps={self.steps} must be a multiple of the {self.blocks} blocks (gen_length / block_length), {whole}")

    @property
    def blocks(self) -> int:
        return self.gen_length // self.block_length


def llada_generate(model: nn.Module, inputs: Tensor, *, attention_mask: Tensor | None = None, **settings: Any) -> Tensor | LoopOutput:
    """Return `inputs` [batch, length] with an answer behind each prompt, as LLaDA's `generate` does with the same seed of torch.

    `attention_mask` [batch, length] is 0 where a prompt is padded (on the left). The settings are those of `LladaSettings`, by name. A tensor is
    returned, or with `return_dict_in_generate` a `LoopOutput`. Raises UserError for impossible settings, and for padding by the mask token.
    """
    asked = LladaSettings(**settings)
    mask_id = mask_id_of(model, "mask_id", asked.mask_id)
    eos, eot = _ends(model, mask_id, asked)
    if attention_mask is not None and ((inputs == mask_id) & (attention_mask == 0)).any():
        raise UserError(f"the prompts are padded by the mask token {mask_id}, which would be filled in: pad them by another")
    canvas = pad(inputs.long().to(model.device), (0, asked.gen_length), value=mask_id)
    read = _reader(model, canvas, inputs.shape[1], attention_mask, mask_id, asked.cfg_scale)
    steps = asked.steps // asked.blocks  # of a block
    history: list[Tensor] = []
    for end in range(inputs.shape[1] + asked.block_length, canvas.shape[1] + 1, asked.block_length):
        masks = (canvas[:, end - asked.block_length : end] == mask_id).sum(dim=1)
        for counts in zip(*(even(count, steps) for count in masks.tolist())):
            canvas = _fill(canvas, read(canvas), counts, end, mask_id, eos, eot, asked)
            history += [canvas] if asked.output_history else []
    if not asked.return_dict_in_generate:
        return canvas
    return LoopOutput(sequences=canvas, history=history if asked.output_history else None)


def _fill(
    canvas: Tensor, logits: Tensor, counts: tuple[int, ...], end: int, mask_id: int, eos: int | None, eot: int | None, asked: LladaSettings
) -> Tensor:
    """Return the canvas after one step, in which each row's `counts` surest masks before `end` become tokens; logits are [batch, length, vocab]."""
    if asked.logits_eos_inf:
        logits = _without(logits, eos)
    tokens = _drawn(logits, asked.temperature)
    if asked.remasking == LOW_CONFIDENCE:
        if asked.confidence_eos_eot_inf:
            logits = _without(logits, eot) if asked.temperature else _without(logits, eos, eot)
        sure = logits.softmax(dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)  # [batch, length]
    else:
        sure = torch.rand(tokens.shape, device=tokens.device)
    masked = canvas == mask_id
    sure = sure.masked_fill(~masked, -torch.inf)
    sure[:, end:] = -torch.inf
    chosen = torch.zeros_like(masked)
    for row, count in enumerate(counts):
        chosen[row, sure[row].topk(count).indices] = True
    return torch.where(chosen & masked, tokens, canvas)


def _drawn(logits: Tensor, temperature: float) -> Tensor:
    """Return the likeliest tokens, [batch, length], or, with a temperature, tokens drawn by Gumbel noise in float64."""
    if not temperature:
        return logits.argmax(dim=-1)
    logits = logits.double()
    noise = torch.rand_like(logits)  # of all positions, also those that are no masks
    return (logits.exp() / (-noise.log()) ** temperature).argmax(dim=-1)


def _without(logits: Tensor, *ids: int) -> Tensor:
    return logits.index_fill(-1, torch.tensor(ids, device=logits.device), -torch.inf)


def _reader(model: nn.Module, canvas: Tensor, prompt: int, attention_mask: Tensor | None, mask_id: int, cfg_scale: float) -> Read:
    """Return what reads a canvas: the model, or, with a scale, away from what it says where all that was given is masked."""
    if not cfg_scale:
        return reader(model, prompt, canvas.shape[1], attention_mask, counted=False)
    seen = None if attention_mask is None else torch.cat([attention_mask, attention_mask])
    read = reader(model, prompt, canvas.shape[1], seen, counted=False)
    given = canvas != mask_id

    def guided(canvas: Tensor) -> Tensor:
        conditional, unconditional = read(torch.cat([canvas, canvas.masked_fill(given, mask_id)])).chunk(2)
        return unconditional + (cfg_scale + 1) * (conditional - unconditional)

    return guided


def _ends(model: nn.Module, mask_id: int, asked: LladaSettings) -> tuple[int | None, int | None]:
    """Return the ids of the end of the text and of the turn, as far as something is asked of them."""
    needed = {"eos_id": asked.logits_eos_inf or asked.confidence_eos_eot_inf, "eot_id": asked.confidence_eos_eot_inf}
    found: list[int | None] = []
    for (name, needs), of_llada in zip(needed.items(), (END_OF_TEXT, END_OF_TURN)):
        given = getattr(asked, name)
        if given is None and needs and mask_id != MASK:
            raise UserError(f"{name} must be given: the mask is {mask_id}, not LLaDA's {MASK}, and what {of_llada} means here is not known")
        found.append(token_id(model, name, of_llada if given is None else given) if needs else None)
    return found[0], found[1]
