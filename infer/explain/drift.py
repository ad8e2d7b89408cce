"""By how much an approximate cache changes what a bidirectional model says: each pass beside a full one over the same canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ..diffusion.canvas import aligned
from ..engine.generate import generate
from ..engine.params import SamplingParams
from ..requests.events import Observed, Result
from ..requests.trace import DiffusionStep
from ..runners.contract import Runner
from ..runners.open import open_runner
from ..runners.paradigm import diffusion_of, is_bidirectional


@dataclass(frozen=True)
class Drift:
    """What became certain in the passes of some answers, beside what full passes over the same canvases say.

    `tokens`: how many; `divergence`: of the pass from the full one, KL(full || pass) in nats, the mean of all tokens; `changed`: the share where another
    token is the likeliest; `forwards` and `cached`: how many passes there were, and how many of them were not full.
    """

    tokens: int
    divergence: float
    changed: float
    forwards: int
    cached: int


def drift(model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], params: SamplingParams) -> tuple[list[Result], Drift]:
    """Answer prompts of ids, and tell how far each pass was from a full one; with `cache_refresh=1`, or without it, there is no difference.

    Raises UserError for a model that is not bidirectional, and for settings that change the logits or give several answers.
    """
    if not is_bidirectional(model.config):
        raise UserError(f"drift is that of a bidirectional diffusion model, and this {model.config.model_type} is none: its caches are exact")
    for name in ("cfg_scale", "generation_logits_hook_func", "hide", "attention_mask"):
        if getattr(params, name):
            raise UserError(f"{name} changes what a pass says beside its cache: measure the drift without it")
    if params.num_return_sequences > 1:
        raise UserError(f"drift is measured of one answer a prompt, got num_return_sequences={params.num_return_sequences}")
    asked = [Asked() for _ in prompts]
    each = [replace(params, generation_logits_hook_func=own.note) for own in asked]
    results = generate(model, tokenizer, list(prompts), each, trace=True, on_error="raise")
    runner, found, steps = open_runner(model), [], []
    for prompt, own, result in zip(prompts, asked, results, strict=True):
        made = [event.what for event in result.trace if isinstance(event, Observed) and isinstance(event.what, DiffusionStep)]
        steps += made
        chosen = [[position for position, *_ in step.committed if position in own.asked(step.step)] for step in made]
        full = full_passes(runner, prompt, [own.canvases[step.step] for step in made])
        found += [(full[at][rows], own.logits[step.step][rows]) for at, (step, rows) in enumerate(zip(made, chosen)) if rows]
    exact, cached = (without_mask(torch.cat([pair[side] for pair in found]).double(), diffusion_of(model.config).mask_token_id) for side in (0, 1))
    divergence = torch.nn.functional.kl_div(cached, exact, log_target=True, reduction="none").nan_to_num(0.0).sum(dim=-1).mean()
    changed = (exact.argmax(dim=-1) != cached.argmax(dim=-1)).double().mean()
    return results, Drift(len(exact), float(divergence), float(changed), sum(each.forwards for each in results), sum(step.cached for step in steps))


class Asked:
    """What an answer's passes said, by its steps: the canvas that each had, and its logits, [length, vocab], of the positions asked for."""

    def __init__(self):
        self.canvases: dict[int, list[int]] = {}
        self.logits: dict[int, Tensor] = {}

    def note(self, step: int, canvas: Tensor, logits: Tensor) -> Tensor:
        """Keep them: a hook that changes nothing."""
        self.canvases[step], self.logits[step] = canvas[0].tolist(), logits[0].clone()
        return logits

    def asked(self, step: int) -> set[int]:
        """The positions of a step that the pass was asked for: the others have zeros."""
        return set(self.logits[step].any(dim=-1).nonzero()[:, 0].tolist())


def full_passes(runner: Runner, prompt: list[int], canvases: Sequence[list[int]]) -> list[Tensor]:
    """The logits of canvases behind a prompt, [length, vocab] each, where all positions see all."""
    shift, slots = diffusion_of(runner.model.config).shift, []
    try:
        for canvas in canvases:
            slots.append(runner.allocate())
            runner.attend_both_ways(slots[-1], True)
        keep = [len(canvas) + shift for canvas in canvases]
        parts = runner.forward(slots, [prompt + canvas for canvas in canvases], keep).split(keep)
        return [aligned(part, len(canvas), shift) for part, canvas in zip(parts, canvases)]
    finally:
        runner.release(slots)


def without_mask(logits: Tensor, mask: int) -> Tensor:
    """Log-probabilities of what can be said, [n, vocab]: never the mask."""
    return logits.index_fill(1, torch.tensor([mask], device=logits.device), -torch.inf).log_softmax(dim=-1)
