"""Log-probabilities of given tokens and the entropies beside them, a chunk of positions at a time, differentiable.

For n positions, vocabulary V and hidden size d, the forward pass is one product of [n, d] by [d, V], the backward pass one for the hidden
states and one for the head's weight where that trains. Up to KEPT_BYTES of the distributions are kept for the backward pass; beyond, a
chunk's product is done again there.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 512  # positions a chunk: enough to keep the matrix kernels busy, 100 MB of float32 at a vocabulary of 49,152
KEPT_BYTES = 256 * 2**20


class LinearLogprobs(torch.autograd.Function):
    """Log-probabilities [n] of targets [n] and entropies [n] in nats of softmax(linear(hidden, weight, bias) / temperature), hidden [n, d].

    Without `wants_entropies` these are not computed, and are zeros.
    """

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, wants_entropies: bool, chunk: int
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropies = hidden.new_empty(len(targets), dtype=wide), hidden.new_zeros(len(targets), dtype=wide)
        keeps = any(ctx.needs_input_grad[:3]) and len(targets) * len(weight) * wide.itemsize <= KEPT_BYTES
        kept: list[Tensor] = []
        for start in range(0, len(targets), chunk):
            some = slice(start, start + chunk)
            every = _distribution(hidden[some], weight, bias, temperature, wide)
            logprobs[some] = every.gather(1, targets[some, None]).squeeze(1)
            if wants_entropies:
                entropies[some] = -(every.exp() * every).sum(dim=1)
            if keeps:
                kept.append(every)
            del every  # before the next chunk's is made
        ctx.save_for_backward(hidden, weight, bias, targets, entropies, *kept)
        ctx.temperature, ctx.chunk, ctx.wide = temperature, chunk, wide
        if not wants_entropies:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx, d_logprobs: Tensor, d_entropies: Tensor) -> tuple:
        hidden, weight, bias, targets, entropies, *kept = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight) if wants_weight else None
        d_bias = torch.zeros_like(bias) if wants_bias else None
        for i, start in enumerate(range(0, len(targets), ctx.chunk)):
            some = slice(start, start + ctx.chunk)
            every = kept[i] if kept else _distribution(hidden[some], weight, bias, ctx.temperature, ctx.wide)
            d_logits = _d_logits(every, targets[some], entropies[some], d_logprobs[some], d_entropies[some])
            if ctx.temperature != 1:
                d_logits /= ctx.temperature
            d_logits = d_logits.to(weight.dtype)
            if wants_hidden:
                torch.mm(d_logits, weight, out=d_hidden[some])
            if wants_weight:
                d_weight.addmm_(d_logits.T, hidden[some])
            if wants_bias:
                d_bias.add_(d_logits.sum(dim=0))
            del every, d_logits
        return d_hidden, d_weight, d_bias, None, None, None, None


def _distribution(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, wide: torch.dtype) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    return (logits if temperature == 1 else logits / temperature).log_softmax(dim=-1, dtype=wide)


def _d_logits(every: Tensor, targets: Tensor, entropies: Tensor, d_logprobs: Tensor, d_entropies: Tensor) -> Tensor:
    """The gradient of the logits: of log p(target) it is onehot - p, of the entropy H it is -p (log p + H)."""
    probs = every.exp()
    if bool(d_entropies.any()):
        d_logits = -probs * (d_logprobs[:, None] + d_entropies[:, None] * (every + entropies[:, None]))
    else:
        d_logits = probs.mul_(-d_logprobs[:, None])
    return d_logits.scatter_add_(1, targets[:, None], d_logprobs[:, None])


def head_logprobs(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The same for any head, [n, hidden] to [n, vocab]; nothing of a chunk is kept, its logits are computed again for the backward pass."""

    def some(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(hidden)
        every = (logits / temperature).log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        return every.gather(1, targets[:, None]).squeeze(1), -(every.exp() * every).sum(dim=1)

    pairs = [
        checkpoint(some, h, t, use_reentrant=False) if torch.is_grad_enabled() else some(h, t)
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    logprobs, entropies = zip(*pairs, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)
