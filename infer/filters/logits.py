"""Filters of one distribution: logits to logits. Those that look back are in `penalties` and `bans`; choosing is `sample`'s work.

logits are [rows, vocab]; every argument is [rows, 1], one value a row, so that requests with different settings share
a batch. A dropped token becomes -inf, and at least one token survives: the likeliest, but in `typical_p` and `xtc`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FIRST_LOOK = 256  # candidates that usually hold the whole nucleus; sorting a vocabulary costs twenty times as much
TOP_H_LOOK = 100  # candidates that top-h weighs, as in transformers
COLDEST = 1e-5  # dynamic temperature's floor: a colder division would overflow, and this one leaves the likeliest alone


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def logprobs(logits: Tensor) -> Tensor:
    """Return log-probabilities in float32 at least, [.., vocab]."""
    return wide(logits).log_softmax(dim=-1)


def temperature(logits: Tensor, t: Tensor) -> Tensor:
    """Divide by t: below 1 sharpens the distribution, above 1 flattens it; 1 keeps the row."""
    return logits / t


def dynamic_temperature(logits: Tensor, t: Tensor, spread: Tensor, exponent: Tensor) -> Tensor:
    """Divide by a temperature between t - spread and t + spread: the hotter, the nearer the row's entropy is to its maximum.

    The share of the entropy, in [0, 1], is raised to `exponent` first (llama.cpp's temp_ext). A spread of 0 is `temperature`.
    """
    low, high = (t - spread).clamp(min=0), t + spread
    most = (logits > -torch.inf).sum(dim=-1, keepdim=True).to(logits).log()  # entropy of a flat choice among what is left
    share = (entropy(logits) / most).nan_to_num(0).clamp(0, 1)
    return logits / (low + (high - low) * share**exponent).clamp(min=COLDEST)


def top_k(logits: Tensor, k: Tensor) -> Tensor:
    """Keep the k likeliest tokens, and those level with the last of them; 0 keeps the row (Fan et al., 2018)."""
    k = k.clamp(max=logits.shape[-1])
    most = int(k.max())
    if most == 0:
        return logits
    least = logits.topk(most, dim=-1).values.gather(-1, (k - 1).clamp(min=0))
    return logits.masked_fill((logits < least) & (k > 0), -torch.inf)


def top_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the likeliest tokens that together reach probability p, and those level with the last of them; 1 keeps the row.

    Nucleus sampling (Holtzman et al., 2020).
    """
    look = min(FIRST_LOOK, logits.shape[-1])
    likeliest = logits.topk(look, dim=-1).values
    weights, reached = cumulated(likeliest)
    total = reached[:, -1:]
    if bool((likeliest[:, -1] > -torch.inf).any()):  # some row has more candidates
        whole = 1 / logits.softmax(dim=-1).amax(dim=-1, keepdim=True).double()  # in units of the likeliest token's weight
        total = torch.where(likeliest[:, -1:] > -torch.inf, whole, total)
    while look < logits.shape[-1] and bool(((reached[:, -1:] < p * total) & (p < 1)).any()):
        look = min(16 * look, logits.shape[-1])
        likeliest = logits.topk(look, dim=-1).values
        weights, reached = cumulated(likeliest)
    return logits.masked_fill((logits < nucleus_end(likeliest, weights, reached, p * total)) & (p < 1), -torch.inf)


def cumulated(likeliest: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of logits in falling order, the first being 1, and their running sum, in float64.

    The sum goes one by one, so that a row's does not depend on how many columns its mates need.
    """
    weights = (likeliest.double() - likeliest[:, :1].double()).exp()
    return weights, weights.cumsum(dim=-1)


def nucleus_end(likeliest: Tensor, weights: Tensor, reached: Tensor, wanted: Tensor) -> Tensor:
    """Return the least logit of the fewest likeliest tokens whose weight reaches what is wanted, [rows, 1]."""
    before = (reached - weights).to(likeliest)  # no finer than the logits are: a sum that is off by less reaches it too
    count = (before < wanted.to(likeliest)).sum(dim=-1, keepdim=True).clamp(min=1)
    return likeliest.gather(-1, count - 1)


def min_p(logits: Tensor, p: Tensor) -> Tensor:
    """Drop every token less likely than p times the likeliest one; 0 keeps the row (Nguyen et al., 2024)."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + p.log(), -torch.inf)


def typical_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the tokens whose surprise is nearest to the entropy and that together reach probability p; 1 keeps the row.

    The likeliest token may go. Locally typical sampling (Meister et al., 2022).
    """
    logprobs = logits.log_softmax(dim=-1)
    distance = (-logprobs - entropy(logits)).abs()
    look = 0
    while True:
        look = min(16 * look or FIRST_LOOK, logits.shape[-1])
        nearest, ids = distance.topk(look, dim=-1, largest=False)
        mass = logprobs.gather(-1, ids).double().exp().cumsum(dim=-1).to(logits)
        if look == logits.shape[-1] or bool((mass[:, -1:] >= p).all()):
            break
    last = (mass < p).sum(dim=-1, keepdim=True).clamp(max=look - 1)
    return logits.masked_fill((distance > nearest.gather(-1, last)) & (p < 1), -torch.inf)


def epsilon_cutoff(logits: Tensor, epsilon: Tensor) -> Tensor:
    """Drop every token of a probability below epsilon; 0 keeps the row (Hewitt et al., 2022)."""
    return drop_unlikely(logits, epsilon)


def eta_cutoff(logits: Tensor, epsilon: Tensor) -> Tensor:
    """Drop every token of a probability below min(epsilon, sqrt(epsilon) exp(-entropy)); 0 keeps the row (Hewitt et al., 2022)."""
    return drop_unlikely(logits, torch.minimum(epsilon, epsilon.sqrt() * (-entropy(logits)).exp()))


def drop_unlikely(logits: Tensor, least: Tensor) -> Tensor:
    """Drop the tokens of a probability below `least`, but never the likeliest."""
    return logits.masked_fill((logits.softmax(dim=-1) < least) & (logits < logits.amax(dim=-1, keepdim=True)), -torch.inf)


def top_h(logits: Tensor, h: Tensor) -> Tensor:
    """Keep the likeliest tokens while their part of the entropy is at most h times the whole (Potraghloo et al., 2025).

    As in transformers the entropy is that of the 100 likeliest alone, and no more than those survive, whatever h.
    """
    likeliest, ids = logits.topk(min(TOP_H_LOOK, logits.shape[-1]), dim=-1)
    parts = torch.special.entr(likeliest.softmax(dim=-1))
    keep = parts.cumsum(dim=-1) <= h * parts.sum(dim=-1, keepdim=True)
    keep[:, 0] = True
    return torch.full_like(logits, -torch.inf).scatter(-1, ids, likeliest.masked_fill(~keep, -torch.inf))


def top_n_sigma(logits: Tensor, n: Tensor) -> Tensor:
    """Drop every logit more than n standard deviations below the highest; 0 keeps the row (Tang et al., 2024).

    The deviation is that of the logits not dropped before (llama.cpp). A temperature does not change what survives.
    """
    left = logits > -torch.inf
    count = left.sum(dim=-1, keepdim=True)
    mean = logits.masked_fill(~left, 0).sum(dim=-1, keepdim=True) / count
    sigma = ((logits - mean).masked_fill(~left, 0).square().sum(dim=-1, keepdim=True) / count).sqrt()
    return logits.masked_fill((logits < logits.amax(dim=-1, keepdim=True) - n * sigma) & (n > 0), -torch.inf)


def xtc(logits: Tensor, probability: Tensor, threshold: Tensor, noise: Tensor) -> Tensor:
    """Exclude top choices: of the tokens that reach the threshold, drop all but the least likely.

    It happens where the row's own uniform number, noise, is below `probability`; 0 keeps the row, and so does a threshold above 0.5.
    The rule of llama.cpp and text-generation-webui.
    """
    probs = logits.softmax(dim=-1)
    least = probs.masked_fill(probs < threshold, torch.inf).amin(dim=-1, keepdim=True)  # inf where none reaches it
    return logits.masked_fill((probs > least) & (noise < probability), -torch.inf)


def mirostat(logits: Tensor, mu: Tensor) -> Tensor:
    """Drop every token of a surprise above mu bits, but never the likeliest (Basu et al., 2021, version 2)."""
    surprise = -logits.log_softmax(dim=-1) / math.log(2)
    return logits.masked_fill((surprise > mu) & (logits < logits.amax(dim=-1, keepdim=True)), -torch.inf)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the distribution in nats, [rows, 1]; dropped tokens have no part in it."""
    logprobs = logits.log_softmax(dim=-1)
    return -(logprobs.exp() * logprobs.clamp(min=-1e30)).sum(dim=-1, keepdim=True)  # 0 times -inf would be nan
