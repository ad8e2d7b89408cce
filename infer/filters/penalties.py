"""Filters that look back and make what was said less likely, or the end more, each with its settings.

logits are [rows, vocab]; numbers are [rows, 1], one a row; a history is one [n] tensor of ids a row. Ids beyond the
vocabulary are passed over. On beams the scores are log-probabilities, all negative: what the repetition penalties
divide there are negative numbers, as in transformers. Nothing is raised: settings are judged when they are given.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..requests.options import CONFIG, LLAMA_CPP, OPENAI, VLLM, option, settings
from ..requests.rules import above_zero, any_number, both, must_be, not_negative, number, texts, whole
from ..requests.sequence import TokenSequence
from .spec import Apply, FilterSpec, answer, column, history, looking_back, nothing, other_than, source

DEFAULT_BREAKERS = ("\n", ":", '"', "*")  # what DRY's repetitions do not reach across, as in llama.cpp
LARGEST_LOG = 88.7228391  # of a float32: the exponent of DRY's penalty stops before it overflows, as in llama.cpp
LARGEST_BOOST = 1e30  # of an end token; beyond it a float32 would overflow and drown every other score


def repetition_penalty(logits: Tensor, penalty: Tensor, past_ids: Sequence[Tensor]) -> Tensor:
    """Divide positive logits of the tokens in a row's history by its penalty, and multiply negative ones; 1 keeps the row.

    logits are [rows, vocab], the penalties [rows, 1]; `past_ids` are each row's prompt and answer, [n].

    Source: Keskar et al. 2019, CTRL: a conditional transformer language model for controllable generation.
    """
    logits = logits.clone()
    for row, factor, past in zip(logits, penalty.squeeze(-1).tolist(), past_ids):
        if factor != 1.0:
            past = past[past < len(row)].to(row.device)
            seen = row.gather(0, past)
            row.scatter_(0, past, torch.where(seen < 0, seen * factor, seen / factor))
    return logits


@settings
class RepetitionPenalty:
    repetition_penalty: float | None = option(
        None, "Above 1 makes tokens of prompt and answer less likely.", above_zero, example=1.2, same_in=(CONFIG, VLLM), off=1.0,
        aliases={LLAMA_CPP: ("repeat_penalty",)},
    )  # fmt: skip


REPETITION_PENALTY = FilterSpec(
    "repetition_penalty", "penalty", repetition_penalty, RepetitionPenalty, looking_back(repetition_penalty, "repetition_penalty", history),
    asks=other_than("repetition_penalty", 1), of_the_scale=True,
)  # fmt: skip


def encoder_repetition_penalty(logits: Tensor, penalty: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Make the tokens of the source more likely: the repetition penalty of 1 / penalty on them; 1 keeps the row.

    logits are [rows, vocab], the penalties [rows, 1]; `sources` are the encoder's inputs, or the prompts of a decoder, [n] each.

    Source: transformers' EncoderRepetitionPenaltyLogitsProcessor, there against hallucinations.
    """
    return repetition_penalty(logits, 1 / penalty, sources)


@settings
class EncoderRepetitionPenalty:
    encoder_repetition_penalty: float | None = option(
        None, "Above 1 makes tokens that the source, or the prompt, lacks less likely.", above_zero, example=1.2, same_in=(CONFIG,), off=1.0,
    )


ENCODER_REPETITION_PENALTY = FilterSpec(
    "encoder_repetition_penalty", "penalty", encoder_repetition_penalty, EncoderRepetitionPenalty,
    looking_back(encoder_repetition_penalty, "encoder_repetition_penalty", source), asks=other_than("encoder_repetition_penalty", 1),
    looks_back=nothing, of_the_scale=True,
)  # fmt: skip


def presence_penalty(logits: Tensor, penalty: Tensor, answers: Sequence[Tensor]) -> Tensor:
    """Subtract the penalty from every token that the answer has; 0 keeps the row.

    `answers` are the ids of each row's answer, [n] each; the prompt does not count, as in vLLM.

    Source: OpenAI's API reference, presence_penalty.
    """
    return _subtract(logits, penalty, answers, lambda counts: counts.clamp(max=1))


def frequency_penalty(logits: Tensor, penalty: Tensor, answers: Sequence[Tensor]) -> Tensor:
    """Subtract the penalty from every token as often as the answer has it; 0 keeps the row.

    `answers` are the ids of each row's answer, [n] each; the prompt does not count, as in vLLM.

    Source: OpenAI's API reference, frequency_penalty.
    """
    return _subtract(logits, penalty, answers, lambda counts: counts)


@settings
class PresencePenalty:
    presence_penalty: float | None = option(
        None, "Taken from the logit of every token that the answer has.", any_number, example=0.5, same_in=(OPENAI, LLAMA_CPP)
    )


@settings
class FrequencyPenalty:
    frequency_penalty: float | None = option(
        None, "Taken from it for each time that it is there.", any_number, example=0.5, same_in=(OPENAI, LLAMA_CPP)
    )


PRESENCE_PENALTY = FilterSpec(
    "presence_penalty", "penalty", presence_penalty, PresencePenalty, looking_back(presence_penalty, "presence_penalty", answer)
)
FREQUENCY_PENALTY = FilterSpec(
    "frequency_penalty", "penalty", frequency_penalty, FrequencyPenalty, looking_back(frequency_penalty, "frequency_penalty", answer)
)


def _subtract(logits: Tensor, penalty: Tensor, answers: Sequence[Tensor], weigh) -> Tensor:
    logits = logits.clone()
    for row, each, said in zip(logits, penalty.squeeze(-1).tolist(), answers):
        ids, counts = said[said < len(row)].unique(return_counts=True)
        row[ids.to(row.device)] -= each * weigh(counts).to(row)
    return logits


def dry(
    logits: Tensor, multiplier: Tensor, base: Tensor, allowed: Tensor, past_ids: Sequence[Tensor], breakers: Sequence[Collection[int]]
) -> Tensor:
    """Don't repeat yourself: subtract multiplier * base ** (n - allowed) from the token that would lengthen a repetition of n tokens.

    It counts how many of the newest tokens stood together, in this order, anywhere before; fewer than `allowed` go
    unpunished, and so does a token that is a breaker. No repetition reaches over a breaker. A multiplier of 0 keeps the row.
    `past_ids` is the stretch looked at, prompt included, [n] of each row, and `breakers` its ids over which no repetition reaches.

    Source: p-e-w, text-generation-webui's pull request 5677, DRY: a modern repetition penalty; as in llama.cpp.
    """
    logits = logits.clone()
    for row, strength, growth, least, past, stops in zip(
        logits, multiplier.squeeze(-1).tolist(), base.squeeze(-1).tolist(), allowed.squeeze(-1).tolist(), past_ids, breakers
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


@settings
class DontRepeatYourself:
    dry_multiplier: float | None = option(
        None, "Strength of the penalty on repeating a run of tokens (DRY).", not_negative, example=0.8, same_in=(LLAMA_CPP,)
    )
    dry_base: float = option(
        1.75, "How fast DRY grows with the run's length.", number("a number from 1", lambda b: b >= 1), example=2.0,
        part_of="dry_multiplier", same_in=(LLAMA_CPP,),
    )  # fmt: skip
    dry_allowed_length: int = option(
        2, "The longest run that DRY leaves alone.", whole(1), example=3, part_of="dry_multiplier", same_in=(LLAMA_CPP,)
    )
    dry_sequence_breakers: Sequence[str] = option(
        DEFAULT_BREAKERS, "Texts that no run reaches across.", texts, example=(".",), part_of="dry_multiplier", same_in=(LLAMA_CPP,)
    )
    dry_penalty_last_n: int | None = option(
        None, "DRY looks back so many tokens, all without it.", whole(1), example=64, part_of="dry_multiplier", same_in=(LLAMA_CPP,)
    )


def make_dry(sequences: Sequence[TokenSequence]) -> Apply:
    """`dry` by each sequence's settings, breakers and as much of its history as is looked at."""
    columns = [column(sequences, name) for name in ("dry_multiplier", "dry_base", "dry_allowed_length")]
    breakers = [sequence.request.breaker_ids for sequence in sequences]

    def recent(sequence: TokenSequence) -> Tensor:
        past, window = sequence.history(), sequence.request.params.dry_penalty_last_n
        return past if window is None else past[-window:]

    return lambda scores: dry(scores, *columns, [recent(sequence) for sequence in sequences], breakers)


DRY = FilterSpec("dry", "penalty", dry, DontRepeatYourself, make_dry)


def exponential_decay(
    logits: Tensor, start: Tensor, factor: Tensor, positions: Sequence[int], end_ids: Sequence[Sequence[int]]
) -> Tensor:
    """Raise the end tokens by their score's size times factor ** (position - start) - 1, once the answer is longer than start.

    `positions` are the lengths of the rows' answers, `end_ids` the ids that end each; a factor of 1 keeps the row.

    Source: transformers' ExponentialDecayLengthPenalty.
    """
    logits = logits.clone()
    for row, begin, growth, position, ends in zip(logits, start.squeeze(-1).tolist(), factor.squeeze(-1).tolist(), positions, end_ids):
        if position > begin and ends:
            boost = min(math.exp(min((position - begin) * math.log(growth), LARGEST_LOG)) - 1, LARGEST_BOOST)
            ids = torch.tensor(sorted(ends), device=row.device)
            row[ids] = torch.where(row[ids].isfinite(), row[ids] + row[ids].abs() * boost, row[ids])
    return logits


def of_two_numbers(value: object) -> bool:
    """Whether a value is a pair of numbers."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(n, int | float) for n in value)


@settings
class LengthDecay:
    exponential_decay_length_penalty: tuple[int, float] | None = option(
        None, "Where in the answer its end begins to become likelier, and by which factor a token.",
        both(
            must_be("where it begins and its factor", of_two_numbers),
            must_be("a place and a factor above 0", lambda value: abs(value[0]) < float("inf") and 0 < value[1] < float("inf")),
        ),
        example=(5, 1.1), same_in=(CONFIG,), from_json=lambda value: tuple(value) if isinstance(value, list) else value, command=False,
    )  # fmt: skip


def make_decay(sequences: Sequence[TokenSequence]) -> Apply:
    """`exponential_decay` by each sequence's settings, position and end tokens."""
    pairs = torch.tensor([sequence.request.params.exponential_decay_length_penalty for sequence in sequences], dtype=torch.float64)
    ends = [sequence.request.end_ids for sequence in sequences]
    return lambda scores: exponential_decay(scores, pairs[:, :1], pairs[:, 1:], [sequence.position for sequence in sequences], ends)


LENGTH_DECAY = FilterSpec(
    "exponential_decay_length_penalty", "penalty", exponential_decay, LengthDecay, make_decay, looks_back=nothing, of_the_scale=True
)
