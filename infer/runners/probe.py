"""Whether a runner computes what its model computes: a few tokens through both."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...data.errors import UserError
from .architecture import evaluating
from .contract import Runner
from .paradigm import is_bidirectional

LENGTH = 5
# How far logits may lie from the model's own, as a share of their spread: far above rounding (1e-5 in float32, after 30 layers), below what a
# token too many or too few does, in an untrained model too.
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-3}
REDUCED = 0.03  # in float32 whose products torch may take in fewer bits (TF32)
COARSE = 0.25  # in fewer bits, where an expert may be chosen otherwise
ROUNDINGS = 16  # of the largest logit, within which nothing can be told: where all are nearly alike, as in a vocabulary of one


def probe_ids(vocab_size: int) -> list[list[int]]:
    """Return two sequences of ids away from the vocabulary's beginning, where the special ones are."""
    return [[(vocab_size // 4 + 5 * (row * LENGTH + i)) % vocab_size for i in range(LENGTH)] for row in range(2)]


@torch.no_grad()
def own_logits(model: PreTrainedModel, ids: list[list[int]]) -> Tensor:
    """Return the logits of the model's own forward pass without a cache, [rows, n, vocab]."""
    inputs = {"input_ids": torch.tensor(ids, device=model.get_input_embeddings().weight.device)}
    if "use_cache" in inspect.signature(type(model).forward).parameters:
        inputs["use_cache"] = False
    with evaluating(model):
        return model(**inputs).logits


def probe(runner: Runner, ids: list[list[int]], want: Tensor) -> None:
    """Take both sequences through a runner: read at once, step by step, forked and cut, where the runner cuts; as wholes, where the model does.

    want is [2, n, vocab], the model's own logits. Raises UserError where the runner's are others, and what the architecture raises.
    """
    if is_bidirectional(runner.model.config):
        return probe_wholes(runner, ids, want)
    a, b = ids
    slots = [runner.allocate(), runner.allocate()]
    logits = runner.forward(slots, [a[:3], b[:2]], [1, 2])
    slots += runner.fork(slots[:1])
    seen = 3
    if runner.capabilities.truncate:
        runner.truncate(slots[0], 2)
        seen = 2
    more = runner.forward([slots[1], slots[2], slots[0]], [b[2:3], a[3:4], a[seen:]], [1, 1, LENGTH - seen])
    runner.release(slots)
    expected = torch.cat([want[0, 2:3], want[1, :2], want[1, 2:3], want[0, 3:4], want[0, seen:]])
    if not agree(torch.cat([logits, more]), expected, tolerance(runner.model, want)):
        raise UserError("its logits are not the model's own")


def probe_wholes(runner: Runner, ids: list[list[int]], want: Tensor) -> None:
    """Take both sequences through a runner both ways, emptied and filled again; raises as `probe` does."""
    slots = [runner.allocate(), runner.allocate()]
    for slot in slots:
        runner.attend_both_ways(slot, True)
    slots += runner.fork(slots[:1])
    runner.forward(slots[1:2], ids[:1], [1])
    runner.truncate(slots[1], 0)
    logits = runner.forward(slots[1:], ids[::-1], [LENGTH, LENGTH])
    runner.release(slots)
    if not agree(logits, want.flip(0).flatten(0, 1), tolerance(runner.model, want)):
        raise UserError("its logits are not the model's own")


def probe_with_sources(runner: Runner) -> None:
    """Take two answers through an encoder-decoder's runner, each over a source of its own length: read at once, step by step, forked and cut.

    Raises UserError where its logits are not the model's own, and what the architecture raises.
    """
    a, b = probe_ids(min(runner.source_vocab, runner.vocab_size))
    sources = [b, a[:3]]
    want = [own_answer(runner.model, source, answer) for source, answer in zip(sources, (a, b))]
    slots = list(map(runner.allocate, sources))
    logits = runner.forward(slots, [a[:3], b[:1]], [3, 1])
    slots += runner.fork(slots[:1])
    runner.truncate(slots[0], 2)
    more = runner.forward([slots[1], slots[2], slots[0]], [b[1:2], a[3:4], a[2:]], [1, 1, LENGTH - 2])
    runner.release(slots)
    expected = torch.cat([want[0][:3], want[1][:2], want[0][3:4], want[0][2:]])
    if not agree(torch.cat([logits, more]), expected, tolerance(runner.model, expected)):
        raise UserError("its logits are not the model's own")


@torch.no_grad()
def own_answer(model: PreTrainedModel, source: list[int], answer: list[int]) -> Tensor:
    """Return the logits of an encoder-decoder's own forward pass without a cache, [n, vocab]."""
    device = model.get_input_embeddings().weight.device
    with evaluating(model):
        return model(input_ids=torch.tensor([source], device=device), decoder_input_ids=torch.tensor([answer], device=device), use_cache=False).logits[0]


def agree(got: Tensor, want: Tensor, tolerance: float) -> bool:
    """Whether logits, [n, vocab], are those wanted, but for a share of their spread; of those that are nan or infinite nothing can be told.

    What a model itself bans is left out, at the least number of its dtype (Chameleon's image tokens): beside it nothing is spread.
    """
    told = want.isfinite() & (want > torch.finfo(want.dtype).min)
    if not told.any():
        return True
    smallest = torch.finfo(want.dtype).eps * want[told].abs().max().double()
    off = (got.to(want.device) - want)[told].double().square().mean().sqrt()
    mean = want.double().masked_fill(~told, 0).sum(dim=-1, keepdim=True) / told.sum(dim=-1, keepdim=True).clamp(min=1)
    spread = (want - mean)[told].double().square().mean().sqrt()
    return bool(off <= tolerance * spread + ROUNDINGS * smallest)


def tolerance(model: nn.Module, logits: Tensor) -> float:
    """Return how far logits may lie apart that a model computes twice: by its coarsest floating dtype."""
    dtypes = {logits.dtype, *(p.dtype for p in model.parameters())}
    reduced = REDUCED if torch.float32 in dtypes and torch.get_float32_matmul_precision() != "highest" else 0.0
    return max(reduced, *(TOLERANCES.get(dtype, COARSE) for dtype in dtypes))
