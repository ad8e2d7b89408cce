"""Filters that look back and make what was said less likely, or the end more.

logits are [rows, vocab]; numbers are [rows, 1], one a row; a history is one [n] tensor of ids a row. Ids beyond the
vocabulary are passed over. On beams the scores are log-probabilities, all negative: what the repetition penalties
divide there are negative numbers, as in transformers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

LARGEST_LOG = 88.7228391  # of a float32: the exponent of DRY's penalty stops before it overflows, as in llama.cpp
LARGEST_BOOST = 1e30  # of an end token; beyond it a float32 would overflow and drown every other score


def repetition_penalty(logits: Tensor, penalty: Tensor, history: Sequence[Tensor]) -> Tensor:
    """Divide positive logits of the tokens in a row's history by its penalty, and multiply negative ones; 1 keeps the row.

    The history is prompt and answer (Keskar et al., 2019).
    """
    logits = logits.clone()
    for row, factor, past in zip(logits, penalty.squeeze(-1).tolist(), history):
        if factor != 1.0:
            past = past[past < len(row)].to(row.device)
            seen = row[past]
            row[past] = torch.where(seen < 0, seen * factor, seen / factor)
    return logits


def encoder_repetition_penalty(logits: Tensor, penalty: Tensor, source: Sequence[Tensor]) -> Tensor:
    """Make the tokens of the source more likely: the repetition penalty of 1 / penalty on them; 1 keeps the row.

    The source is the encoder's input, or the prompt of a decoder.
    """
    return repetition_penalty(logits, 1 / penalty, source)


def presence_penalty(logits: Tensor, penalty: Tensor, answers: Sequence[Tensor]) -> Tensor:
    """Subtract the penalty from every token that the answer has; 0 keeps the row (OpenAI, vLLM)."""
    return _subtract(logits, penalty, answers, lambda counts: counts.clamp(max=1))


def frequency_penalty(logits: Tensor, penalty: Tensor, answers: Sequence[Tensor]) -> Tensor:
    """Subtract the penalty from every token as often as the answer has it; 0 keeps the row (OpenAI, vLLM)."""
    return _subtract(logits, penalty, answers, lambda counts: counts)


def _subtract(logits: Tensor, penalty: Tensor, answers: Sequence[Tensor], weigh) -> Tensor:
    logits = logits.clone()
    for row, each, answer in zip(logits, penalty.squeeze(-1).tolist(), answers):
        ids, counts = answer[answer < len(row)].unique(return_counts=True)
        row[ids.to(row.device)] -= each * weigh(counts).to(row)
    return logits


def dry(
    logits: Tensor, multiplier: Tensor, base: Tensor, allowed: Tensor, history: Sequence[Tensor], breakers: Sequence[Collection[int]]
) -> Tensor:
    """Don't repeat yourself: subtract multiplier * base ** (n - allowed) from the token that would lengthen a repetition of n tokens.

    It counts how many of the newest tokens stood together, in this order, anywhere before; fewer than `allowed` go
    unpunished, and so does a token that is a breaker. No repetition reaches over a breaker. A multiplier of 0 keeps the row.
    `history` is the stretch looked at, prompt included. The rule of llama.cpp (p-e-w, koboldcpp).
    """
    logits = logits.clone()
    for row, strength, growth, least, past, stops in zip(
        logits, multiplier.squeeze(-1).tolist(), base.squeeze(-1).tolist(), allowed.squeeze(-1).tolist(), history, breakers
    ):
        most = int(least if growth == 1 else min(least + LARGEST_LOG / math.log(growth), len(past)))
        for id, length in repetitions(past, stops, int(least), most).items() if strength else ():
            if id < len(row) and id not in stops:
                row[id] -= strength * growth ** (length - int(least))
    return logits


def repetitions(past: Tensor, breakers: Collection[int], least: int, most: int) -> dict[int, int]:
    """Map each token that would lengthen a repetition of at least `least` tokens to the length of the longest such, or to `most`.

    repetitions([1 2 3 9 1 2], {}, 1, 9) is {3: 2}: the newest two tokens stood before a 3.
    """
    n = len(past)
    limit = next((i for i, id in enumerate(reversed(past.tolist())) if id in breakers), n) if breakers else n
    if n <= least or limit < least:
        return {}
    alive = torch.ones(n - 1, dtype=torch.bool)  # places where an earlier repetition may end
    longest = torch.zeros(n - 1, dtype=torch.long)
    for length in range(1, min(limit, most, n - 1) + 1):
        alive[: length - 1] = False
        alive[length - 1 :] &= past[: n - length] == past[n - length]
        if not bool(alive.any()):
            break
        longest += alive
    found: dict[int, int] = {}
    ends = (longest >= least).nonzero().squeeze(-1)
    for id, length in zip(past[ends + 1].tolist(), longest[ends].tolist()):
        found[id] = max(found.get(id, 0), length)
    return found


def exponential_decay(
    logits: Tensor, start: Tensor, factor: Tensor, positions: Sequence[int], end_ids: Sequence[Sequence[int]]
) -> Tensor:
    """Raise the end tokens by their score's size times factor ** (position - start) - 1, once the answer is longer than start."""
    logits = logits.clone()
    for row, begin, growth, position, ends in zip(logits, start.squeeze(-1).tolist(), factor.squeeze(-1).tolist(), positions, end_ids):
        if position > begin and ends:
            boost = min(math.exp(min((position - begin) * math.log(growth), LARGEST_LOG)) - 1, LARGEST_BOOST)
            ids = torch.tensor(sorted(ends), device=row.device)
            row[ids] = torch.where(row[ids].isfinite(), row[ids] + row[ids].abs() * boost, row[ids])
    return logits
