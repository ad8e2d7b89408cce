"""Tiny diffusion models, and what they say by a slow and plain way of reckoning."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from seodang.infer.engine.core import Engine
from seodang.infer.engine.generate import run
from seodang.infer.requests.generation import Generation
from seodang.infer.requests.request import Request
from seodang.infer.requests.stop import AnswerText
from seodang.infer.runners.architecture import Capabilities
from seodang.infer.runners.paradigm import BIDIRECTIONAL, Diffusion, declare
from seodang.infer.strategies.registry import choose
from seodang.infer.text.detokenise import detokeniser

MASK = 127


@pytest.fixture
def denoiser(fresh_tiny):
    """`denoiser(attention="bidirectional", shift=0, block_length=None, kind="llama")`: a random diffusion model in float64, whose mask is id 127."""

    def build(attention: str = BIDIRECTIONAL, shift: int = 0, block_length: int | None = None, kind: str = "llama", **config):
        model = fresh_tiny(kind, **config).double()
        declare(model.config, Diffusion(MASK, shift, attention, block_length))
        return model

    return build


class Speaker:
    """A runner without a network: `conditionals` gives the logits of a canvas' positions, [length, vocab], by the state of the canvas alone."""

    capabilities, limit = Capabilities(both_ways=True), None

    def __init__(self, vocab_size: int, mask: int, length: int):
        self.vocab_size, self.mask, self.length_of_canvas, self.passes, self.slots = vocab_size, mask, length, 0, {}
        self.config = LlamaConfig(vocab_size=vocab_size)
        declare(self.config, Diffusion(mask))
        self.model = SimpleNamespace(config=self.config, get_input_embeddings=lambda: torch.nn.Embedding(1, 1), modules=lambda: iter(()))

    def conditionals(self, state: tuple[int, ...]) -> torch.Tensor:
        raise NotImplementedError

    def asked(self, prompt: list[int], params, tokenizer, ends=frozenset(), **more) -> Generation:
        """What becomes of a prompt when nothing is left to be done."""
        request = Request(0, prompt, params, 11, ends, lambda: AnswerText(detokeniser(tokenizer)), choose(params), **more)
        generation = Generation(request)
        generation.events = list(run(Engine(self, max_rows=request.width), [generation]))
        return generation

    @property
    def live(self) -> int:
        return len(self.slots)

    def allocate(self, source_ids=()) -> int:
        slot = max(self.slots, default=0) + 1
        self.slots[slot] = 0
        return slot

    def fork(self, slots) -> list[int]:
        return [self.allocate() for _ in slots]

    def length(self, slot) -> int:
        return self.slots[slot]

    def truncate(self, slot, length) -> None:
        self.slots[slot] = length

    def attend_both_ways(self, slot, on, after=0) -> None:
        pass

    def release(self, slots) -> None:
        for slot in slots:
            del self.slots[slot]

    def forward(self, slots, ids, keep) -> torch.Tensor:
        self.passes += 1
        for slot, new in zip(slots, ids):
            self.slots[slot] += len(new)
        length = self.length_of_canvas
        return torch.cat([self.conditionals(tuple(new[-length:]))[length - kept :] for new, kept in zip(ids, keep)])


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


def greedy(
    model, prompt: list[int], length: int, alg: str = "entropy", steps: int | None = None, block_length: int | None = None,
    confidence_threshold: float | None = None, entropy_bound: float | None = None, cfg_scale: float = 0.0, eos_penalty: float = 0.0, ends=(),
) -> list[list[int | None]]:  # fmt: skip
    """Every step's canvas, None where it is open: the likeliest tokens, the surest first, so many a step as a schedule or a rule says."""
    own = model.config.diffusion.get("block_length")
    blocks = [range(begin, min(begin + (own or block_length or length), length)) for begin in range(0, length, own or block_length or length)]
    canvas: list[int | None] = [None] * length
    history = []
    for number, block in enumerate(blocks):
        passes = min(len(block), len(block) if steps is None else max(1, steps // len(blocks) + (number < steps % len(blocks))))
        for turn in range(len(block)):
            end = min((at for at in range(length) if canvas[at] in ends), default=length)
            found = []
            ids = [MASK if id is None else id for id in canvas]
            logits = canvas_logits(model, prompt, ids, block.stop if own else length)
            if cfg_scale:
                unconditional = canvas_logits(model, [MASK] * len(prompt), ids, block.stop if own else length)
                logits = unconditional + (cfg_scale + 1) * (logits - unconditional)
            logits[:, MASK] = -torch.inf
            for at in block:
                if canvas[at] is None and at < end:
                    probs = sorted(logits[at].softmax(dim=-1).tolist(), reverse=True)
                    entropy = -sum(p * math.log(p) for p in probs if p)
                    sure = {"topk_margin": probs[0] - probs[1], "entropy": -entropy}.get(alg, probs[0])
                    id = logits[at].argmax().item()
                    found.append((sure, at, id, probs[0], entropy))
            if not found:
                break
            if any(id not in ends for _, _, id, *_ in found):
                found = [(sure - eos_penalty * (id in ends), at, id, p - eos_penalty * (id in ends), entropy) for sure, at, id, p, entropy in found]
            found.sort(key=lambda each: -each[0])
            due = found[: len(block) // passes + (turn < len(block) % passes)]
            if confidence_threshold is not None:
                due = [each for each in found if each[3] >= confidence_threshold] or found[:1]
            if entropy_bound is not None:
                sizes = [n for n in range(1, len(found) + 1) if sum(e[4] for e in found[:n]) - max(e[4] for e in found[:n]) <= entropy_bound]
                due = found[: max(sizes)]
            for _, at, id, *_ in due:
                canvas[at] = id
            history.append(list(canvas))
    return history
