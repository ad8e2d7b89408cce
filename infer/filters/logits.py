"""Filters of one distribution, each with its settings: logits to logits. Those that look back are in `penalties` and `bans`.

logits are [rows, vocab]; every argument is [rows, 1], one value a row, so that requests with different settings share
a batch. A dropped token becomes -inf, and at least one token survives: the likeliest, but in `typical_p` and `xtc`.
Nothing is raised: settings are judged when they are given, and scores that are no distribution where a token is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..requests.options import CONFIG, LLAMA_CPP, OPENAI, VLLM, option, settings
from ..requests.params import RequestParams
from ..requests.rules import above_zero, fraction, not_negative, number, share, whole
from ..requests.sequence import TokenSequence
from .spec import Apply, FilterSpec, column, given, nothing, other_than, warping

FIRST_LOOK = 256  # candidates that usually hold the whole nucleus; sorting a vocabulary costs twenty times as much
TOP_H_LOOK = 100  # candidates that top-h weighs, as in transformers
XTC_DRAW = -1  # its place among the sequence's numbers for a position; choices count theirs from 0
below_one = number("in [0, 1)", lambda x: 0 <= x < 1)
COLDEST = 1e-5  # dynamic temperature's floor: a colder division would overflow, and this one leaves the likeliest alone


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 at least."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def logprobs(logits: Tensor) -> Tensor:
    """Return log-probabilities in float32 at least, [.., vocab]."""
    return wide(logits).log_softmax(dim=-1)


COLDEST = 1e-30  # what is divided by less overflows in float32


def temperature(logits: Tensor, t: Tensor) -> Tensor:
    """Divide by t, above 0: below 1 sharpens the distribution, above 1 flattens it; 1 keeps the row.

    Source: Ackley et al. 1985, A learning algorithm for Boltzmann machines.
    """
    return logits / t


@settings
class Temperature:
    temperature: float | None = option(
        None, "Below 1 sharper, above 1 flatter; 0 is greedy. This, like every filter of sampling, turns sampling on.",
        number(f"0, or a number from {COLDEST:g}", lambda t: t == 0 or t >= COLDEST), example=0.7, samples=True, greedy=0, same_in=(CONFIG, OPENAI, LLAMA_CPP),
    )  # fmt: skip


TEMPERATURE = FilterSpec(
    "temperature", "warper", temperature, Temperature, warping(temperature, "temperature"),
    asks=lambda params: params.temperature not in (None, 0, 1) and not params.dynatemp_range, memoryless=True,
)  # fmt: skip


def dynamic_temperature(logits: Tensor, t: Tensor, spread: Tensor, exponent: Tensor) -> Tensor:
    """Divide by a temperature between t - spread and t + spread: the hotter, the nearer the row's entropy is to its maximum.

    The share of the entropy, in [0, 1], is raised to `exponent` first. A spread of 0 is `temperature`.

    Source: llama.cpp's sampler temp-ext, after koboldcpp's dynamic temperature.
    """
    low, high = (t - spread).clamp(min=0), t + spread
    most = (logits > -torch.inf).sum(dim=-1, keepdim=True).to(logits).log()  # entropy of a flat choice among what is left
    share = (entropy(logits) / most).nan_to_num(0).clamp(0, 1)
    return logits / (low + (high - low) * share**exponent).clamp(min=COLDEST)


@settings
class DynamicTemperature:
    dynatemp_range: float | None = option(
        None, "The entropy moves the temperature by up to this much.", not_negative, example=0.2, samples=True, same_in=(LLAMA_CPP,)
    )
    dynatemp_exponent: float = option(
        1.0, "How the entropy does so.", above_zero, example=2.0, part_of="dynatemp_range", same_in=(LLAMA_CPP,)
    )


def lies_around(params: RequestParams) -> str | None:
    """The refusal of a range without the temperature in its middle."""
    if params.dynatemp_range and not params.temperature:
        return f"dynatemp_range={params.dynatemp_range} needs the temperature that it lies around: give temperature"
    return None


DYNATEMP = FilterSpec(
    "dynatemp", "warper", dynamic_temperature, DynamicTemperature,
    warping(dynamic_temperature, "temperature", "dynatemp_range", "dynatemp_exponent"), asks=given("dynatemp_range"),
    shares=("temperature",), asked_by=(("temperature", "dynatemp_range"),), check=lies_around, memoryless=True,
)  # fmt: skip


def top_k(logits: Tensor, k: Tensor) -> Tensor:
    """Keep the k likeliest tokens, and those level with the last of them; 0 keeps the row.

    Source: Fan et al. 2018, Hierarchical neural story generation.
    """
    k = k.clamp(max=logits.shape[-1])
    most = int(k.max())
    if most == 0:
        return logits
    least = logits.topk(most, dim=-1).values.gather(-1, (k - 1).clamp(min=0))
    return logits.masked_fill((logits < least) & (k > 0), -torch.inf)


@settings
class TopK:
    top_k: int | None = option(
        None, "Draw from the k likeliest tokens; with penalty_alpha, the candidates.", whole(0, "a whole number from 0 (0 is off)"),
        example=4, samples=True, same_in=(CONFIG, VLLM, LLAMA_CPP),
    )  # fmt: skip


TOP_K = FilterSpec("top_k", "warper", top_k, TopK, warping(top_k, "top_k"), memoryless=True)


def top_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the likeliest tokens that together reach probability p, and those level with the last of them; 1 keeps the row.

    Source: Holtzman et al. 2020, The curious case of neural text degeneration (nucleus sampling).
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


@settings
class TopP:
    top_p: float | None = option(
        None, "Draw from the likeliest tokens that together reach this probability.", share, example=0.9, samples=True,
        same_in=(CONFIG, OPENAI, LLAMA_CPP),
    )  # fmt: skip


TOP_P = FilterSpec("top_p", "warper", top_p, TopP, warping(top_p, "top_p"), asks=other_than("top_p", 1), memoryless=True)


def min_p(logits: Tensor, p: Tensor) -> Tensor:
    """Drop every token less likely than p times the likeliest one; 0 keeps the row.

    Source: Nguyen et al. 2024, Turning up the heat: min-p sampling for creative and coherent LLM outputs.
    """
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + p.log(), -torch.inf)


@settings
class MinP:
    min_p: float | None = option(
        None, "Drop tokens less likely than this times the likeliest.", fraction, example=0.1, samples=True, same_in=(CONFIG, VLLM, LLAMA_CPP)
    )


MIN_P = FilterSpec("min_p", "warper", min_p, MinP, warping(min_p, "min_p"), memoryless=True)


def typical_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the tokens whose surprise is nearest to the entropy and that together reach probability p; 1 keeps the row.

    The likeliest token may go.

    Source: Meister et al. 2023, Locally typical sampling.
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


@settings
class TypicalP:
    typical_p: float | None = option(
        None, "Draw from the tokens of typical surprise that together reach this probability.", share, example=0.9, samples=True,
        same_in=(CONFIG, LLAMA_CPP),
    )  # fmt: skip


TYPICAL_P = FilterSpec(
    "typical_p", "warper", typical_p, TypicalP, warping(typical_p, "typical_p"), asks=other_than("typical_p", 1), memoryless=True
)


def epsilon_cutoff(logits: Tensor, epsilon: Tensor) -> Tensor:
    """Drop every token of a probability below epsilon; 0 keeps the row.

    Source: Hewitt et al. 2022, Truncation sampling as language model desmoothing.
    """
    return drop_unlikely(logits, epsilon)


@settings
class EpsilonCutoff:
    epsilon_cutoff: float | None = option(None, "Drop tokens less likely than this.", below_one, example=0.01, samples=True, same_in=(CONFIG,))


EPSILON_CUTOFF = FilterSpec(
    "epsilon_cutoff", "warper", epsilon_cutoff, EpsilonCutoff, warping(epsilon_cutoff, "epsilon_cutoff"), memoryless=True
)


def eta_cutoff(logits: Tensor, epsilon: Tensor) -> Tensor:
    """Drop every token of a probability below min(epsilon, sqrt(epsilon) exp(-entropy)); 0 keeps the row.

    Source: the same as of `epsilon_cutoff`.
    """
    return drop_unlikely(logits, torch.minimum(epsilon, epsilon.sqrt() * (-entropy(logits)).exp()))


@settings
class EtaCutoff:
    eta_cutoff: float | None = option(
        None, "Drop tokens less likely than this or what the entropy makes of it.", below_one, example=0.01, samples=True, same_in=(CONFIG,)
    )


ETA_CUTOFF = FilterSpec("eta_cutoff", "warper", eta_cutoff, EtaCutoff, warping(eta_cutoff, "eta_cutoff"), memoryless=True)


def drop_unlikely(logits: Tensor, least: Tensor) -> Tensor:
    """Drop the tokens of a probability below `least`, but never the likeliest."""
    return logits.masked_fill((logits.softmax(dim=-1) < least) & (logits < logits.amax(dim=-1, keepdim=True)), -torch.inf)


def top_h(logits: Tensor, h: Tensor) -> Tensor:
    """Keep the likeliest tokens while their part of the entropy is at most h times the whole.

    As in transformers the entropy is that of the 100 likeliest alone, and no more than those survive, whatever h.

    Source: Potraghloo et al. 2025, Top-H decoding: adapting the creativity and coherence with bounded entropy.
    """
    likeliest, ids = logits.topk(min(TOP_H_LOOK, logits.shape[-1]), dim=-1)
    parts = torch.special.entr(likeliest.softmax(dim=-1))
    keep = parts.cumsum(dim=-1) <= h * parts.sum(dim=-1, keepdim=True)
    keep[:, 0] = True
    return torch.full_like(logits, -torch.inf).scatter(-1, ids, likeliest.masked_fill(~keep, -torch.inf))


@settings
class TopH:
    top_h: float | None = option(
        None, "Keep the likeliest tokens up to this share of the entropy.", share, example=0.5, samples=True, same_in=(CONFIG,)
    )


TOP_H = FilterSpec("top_h", "warper", top_h, TopH, warping(top_h, "top_h"), memoryless=True)


def top_n_sigma(logits: Tensor, n: Tensor) -> Tensor:
    """Drop every logit more than n standard deviations below the highest; 0 keeps the row.

    The deviation is that of the logits not dropped before, as in llama.cpp. A temperature does not change what survives.

    Source: Tang et al. 2024, Top-n sigma: not all logits are you need.
    """
    left = logits > -torch.inf
    count = left.sum(dim=-1, keepdim=True)
    mean = logits.masked_fill(~left, 0).sum(dim=-1, keepdim=True) / count
    sigma = ((logits - mean).masked_fill(~left, 0).square().sum(dim=-1, keepdim=True) / count).sqrt()
    return logits.masked_fill((logits < logits.amax(dim=-1, keepdim=True) - n * sigma) & (n > 0), -torch.inf)


@settings
class TopNSigma:
    top_n_sigma: float | None = option(
        None, "Keep tokens within so many standard deviations of the largest logit.", number("a number from 0 (0 is off)", lambda n: n >= 0),
        example=1.0, samples=True, same_in=(LLAMA_CPP,),
    )  # fmt: skip


TOP_N_SIGMA = FilterSpec("top_n_sigma", "warper", top_n_sigma, TopNSigma, warping(top_n_sigma, "top_n_sigma"), memoryless=True)


def xtc(logits: Tensor, probability: Tensor, threshold: Tensor, noise: Tensor) -> Tensor:
    """Exclude top choices: of the tokens that reach the threshold, drop all but the least likely.

    It happens where the row's own uniform number, noise, is below `probability`; 0 keeps the row, and so does a threshold above 0.5.

    Source: p-e-w, text-generation-webui's pull request 6335, Exclude top choices (XTC); as in llama.cpp.
    """
    probs = logits.softmax(dim=-1)
    least = probs.masked_fill(probs < threshold, torch.inf).amin(dim=-1, keepdim=True)  # inf where none reaches it
    return logits.masked_fill((probs > least) & (noise < probability), -torch.inf)


@settings
class ExcludeTopChoices:
    xtc_probability: float | None = option(
        None, "How often all but the least of the likely tokens are left out.", fraction, example=0.5, samples=True, same_in=(LLAMA_CPP,)
    )
    xtc_threshold: float = option(0.1, "What is likely there.", fraction, example=0.2, part_of="xtc_probability", same_in=(LLAMA_CPP,))


def make_xtc(sequences: Sequence[TokenSequence]) -> Apply:
    """`xtc` by each sequence's settings and its own noise at its next position."""
    columns = [column(sequences, name) for name in ("xtc_probability", "xtc_threshold")]

    def apply(scores: Tensor) -> Tensor:
        noise = torch.tensor([sequence.noise(XTC_DRAW) for sequence in sequences], dtype=torch.float64)[:, None]
        return xtc(scores, *(each.to(scores.device) for each in (*columns, noise)))

    return apply


XTC = FilterSpec("xtc", "warper", xtc, ExcludeTopChoices, make_xtc, looks_back=nothing)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the distribution in nats, [rows, 1]; dropped tokens have no part in it."""
    logprobs = logits.log_softmax(dim=-1)
    return -(logprobs.exp() * logprobs.clamp(min=-1e30)).sum(dim=-1, keepdim=True)  # 0 times -inf would be nan
