"""Tiny diffusion models, and what they say by a slow and plain way of reckoning."""

import math

import pytest
import torch

from seodang.infer.runners.paradigm import BIDIRECTIONAL, Diffusion, declare

MASK = 127


@pytest.fixture
def denoiser(fresh_tiny):
    """`denoiser(attention="bidirectional", shift=0, block_length=None, kind="llama")`: a random diffusion model in float64, whose mask is id 127."""

    def build(attention: str = BIDIRECTIONAL, shift: int = 0, block_length: int | None = None, kind: str = "llama", **config):
        model = fresh_tiny(kind, **config).double()
        declare(model.config, Diffusion(MASK, shift, attention, block_length))
        return model

    return build


@torch.no_grad()
def canvas_logits(model, prompt: list[int], canvas: list[int], end: int) -> torch.Tensor:
    """The logits of a canvas up to `end`, [end, vocab], by one pass of the model itself over all of it under the mask that its config tells."""
    told = model.config.diffusion
    row = prompt + canvas[:end]
    block = told.get("block_length") or len(canvas)
    groups = [at if at < len(prompt) else len(row) + (at - len(prompt)) // block for at in range(len(row))]  # the prompt's see what stands before
    if told["attention"] == "bidirectional":
        groups = [0] * len(row)
    seen = torch.tensor([[there <= here for there in groups] for here in groups])
    mask = torch.zeros(seen.shape, dtype=torch.double).masked_fill(~seen, -torch.inf)
    logits = model(input_ids=torch.tensor([row]), attention_mask=mask[None, None], use_cache=False).logits[0]
    return logits[len(prompt) - told["shift"] : len(row) - told["shift"]]


def greedy(model, prompt: list[int], length: int, order: str = "entropy", steps: int | None = None) -> list[list[int | None]]:
    """Every step's canvas, None where it is open: the likeliest tokens, the surest first, so many a step as the schedule says."""
    block = model.config.diffusion.get("block_length") or length
    blocks = [range(begin, min(begin + block, length)) for begin in range(0, length, block)]
    canvas: list[int | None] = [None] * length
    history = []
    for number, own in enumerate(blocks):
        passes = len(own) if steps is None else max(1, steps // len(blocks) + (number < steps % len(blocks)))
        passes = min(passes, len(own))
        for turn in range(passes):
            due = len(own) // passes + (turn < len(own) % passes)
            logits = canvas_logits(model, prompt, [MASK if id is None else id for id in canvas], own.stop)
            logits[:, MASK] = -torch.inf
            found = []
            for at in own:
                if canvas[at] is None:
                    probs = sorted(logits[at].softmax(dim=-1).tolist(), reverse=True)
                    sure = {"maskgit_plus": probs[0], "topk_margin": probs[0] - probs[1], "entropy": sum(p * math.log(p) for p in probs if p)}
                    found.append((sure[order], at, logits[at].argmax().item()))
            for _, at, id in sorted(found, key=lambda each: -each[0])[:due]:
                canvas[at] = id
            history.append(list(canvas))
    return history
