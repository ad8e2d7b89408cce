"""Passes over what a bidirectional model had read before, with transformers' own cache."""

from typing import NamedTuple

import torch
from transformers import DynamicCache

from .conftest import MASK

NEW = 8  # positions of a canvas


class ByHand:
    """A model's logits of a canvas, [length, vocab], in full passes or over keys and values of the last full one."""

    def __init__(self, model, prompt: list[int]):
        self.model, self.prompt, self.shift = model, prompt, model.config.diffusion["shift"]

    @torch.no_grad()
    def full(self, canvas: list[int]) -> torch.Tensor:
        row = self.prompt + canvas
        out = self.model(input_ids=torch.tensor([row]), attention_mask=torch.zeros(1, 1, len(row), len(row), dtype=torch.double), use_cache=True)
        self.layers = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        return self.at_their_places(out.logits[0], 0)

    @torch.no_grad()
    def cached(self, canvas: list[int], block: range, dual: bool) -> torch.Tensor:
        row, begin = self.prompt + canvas, len(self.prompt) + block.start - self.shift
        end = len(self.prompt) + block.stop if dual else len(row)
        past = DynamicCache()
        for number, layer in enumerate(self.layers):
            past.update(*(torch.cat([part[:, :, :begin], part[:, :, end:]], dim=2) for part in layer), number)
        seen = torch.zeros(1, 1, end - begin, len(row), dtype=torch.double)
        out = self.model(input_ids=torch.tensor([row[begin:end]]), position_ids=torch.arange(begin, end)[None], attention_mask=seen, past_key_values=past)
        return self.at_their_places(out.logits[0], begin)

    def at_their_places(self, logits: torch.Tensor, begin: int) -> torch.Tensor:
        """Those of position i of the canvas at i; nan where they were not read."""
        found = logits.new_full((len(self.prompt) + NEW + 1, logits.shape[1]), torch.nan)
        found[begin + self.shift : begin + self.shift + len(logits)] = logits
        return found[len(self.prompt) : len(self.prompt) + NEW]


class Pass(NamedTuple):
    """A pass of the loop below: the canvas after it, whether it was over what was kept, what it made certain, and by which logits, [n, vocab]."""

    canvas: list[int | None]
    cached: bool
    positions: list[int]
    logits: torch.Tensor


def passes_by_hand(model, prompt, refresh, block_length=None, dual=False, a_pass=1, cfg_scale=0.0) -> list[Pass]:
    """Fill in a canvas, so many positions a pass, of least entropy first."""
    canvas: list[int | None] = [None] * NEW
    readings = [ByHand(model, prompt), *([ByHand(model, [MASK] * len(prompt))] if cfg_scale else [])]
    found = []
    for begin in range(0, NEW, block_length or NEW):
        block, passes = range(begin, min(begin + (block_length or NEW), NEW)), 0
        while None in (canvas[at] for at in block):
            ids, cached = [MASK if id is None else id for id in canvas], passes % refresh > 0
            logits, *others = (each.cached(ids, block, dual) if cached else each.full(ids) for each in readings)
            for unconditional in others:
                logits = unconditional + (cfg_scale + 1) * (logits - unconditional)
            logits[:, MASK] = -torch.inf
            logprobs = logits.log_softmax(dim=-1)
            entropy = lambda at: -float(torch.special.xlogy(logprobs[at].exp(), logprobs[at].exp()).sum())
            due = sorted(sorted((at for at in block if canvas[at] is None), key=entropy)[:a_pass])
            for at in due:
                canvas[at] = int(logprobs[at].argmax())
            found.append(Pass(list(canvas), cached, due, logits[due]))
            passes += 1
    return found
