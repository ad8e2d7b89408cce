"""Filters that look back: against transformers' processors, against slow readings of the rules, and by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EncoderRepetitionPenaltyLogitsProcessor, ExponentialDecayLengthPenalty, RepetitionPenaltyLogitsProcessor

from seodang.infer.filters.penalties import (
    dry,
    encoder_repetition_penalty,
    exponential_decay,
    frequency_penalty,
    presence_penalty,
    repetition_penalty,
    repetitions,
)


def column(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def logits(rows: int, vocab: int = 50, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def pasts(rows: int, vocab: int = 50) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(vocab, (3 + i,), generator=generator) for i in range(rows)]


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (repetition_penalty, lambda penalty, past: RepetitionPenaltyLogitsProcessor(penalty)),
        (encoder_repetition_penalty, lambda penalty, past: EncoderRepetitionPenaltyLogitsProcessor(penalty, past[None])),
    ],
)
def test_repetition_penalties_equal_transformers_row_by_row(ours, theirs):
    penalties, history, scores = (1.3, 0.7, 2.0, 1.0) * 5, pasts(20), logits(20)
    for row, penalty, past, got in zip(scores, penalties, history, ours(scores, column(*penalties), history)):
        torch.testing.assert_close(got, theirs(penalty, past)(past[None], row[None].clone())[0], rtol=0, atol=1e-6)


def test_repetition_penalty_lowers_what_was_said_whatever_its_sign_and_passes_over_ids_that_the_model_lacks():
    got = repetition_penalty(torch.tensor([[2.0, -2.0, 1.0]]), column(2.0), [torch.tensor([0, 1, 60])])
    assert got.tolist() == [[1.0, -4.0, 1.0]]


def test_presence_counts_a_token_once_and_frequency_every_time():
    answers = [torch.tensor([1, 1, 2]), torch.tensor([], dtype=torch.long), torch.tensor([0, 60])]
    zero = torch.zeros(3, 4)
    assert presence_penalty(zero, column(0.5, 0.5, -1.0), answers).tolist() == [[0, -0.5, -0.5, 0], [0] * 4, [1, 0, 0, 0]]
    assert frequency_penalty(zero, column(0.5, 0.5, -1.0), answers).tolist() == [[0, -1.0, -0.5, 0], [0] * 4, [1, 0, 0, 0]]


def test_exponential_decay_equals_transformers_for_every_position():
    ends, prompt = [2, 5], 4
    for start, factor in ((3, 1.2), (0, 2.0), (5, 0.5)):
        theirs = ExponentialDecayLengthPenalty((start, factor), ends, prompt)
        for position in range(9):
            row = logits(1, seed=position)
            row[0, 5] = -torch.inf if position % 2 else row[0, 5]
            got = exponential_decay(row, column(start), column(factor), [position], [frozenset(ends)])
            torch.testing.assert_close(got, theirs(torch.zeros(1, prompt + position).long(), row.clone()), rtol=0, atol=1e-5)


def test_exponential_decay_stays_finite_in_a_long_answer():
    got = exponential_decay(torch.tensor([[1.0, -2.0, 0.0]]), column(1), column(3.0), [100_000], [[1, 2]])
    assert got.isfinite().all() and got.argmax() == 1


def slow_dry(row, strength, base, allowed, past, breakers):
    """p-e-w's rule read literally: for each token, the longest repetition that it would lengthen."""
    row = list(row)
    stretch = []
    for id in reversed(past):
        if id in breakers:
            break
        stretch.insert(0, id)
    for token in range(len(row)):
        longest = 0
        for place in range(len(past) - 1):
            if past[place + 1] == token:
                length = 0
                while length < len(stretch) and place - length >= 0 and past[place - length] == past[len(past) - 1 - length]:
                    length += 1
                longest = max(longest, length)
        if longest >= allowed and token not in breakers:
            row[token] -= strength * base ** (longest - allowed)
    return row


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=24), st.integers(1, 4), st.frozensets(st.integers(0, 3), max_size=2), st.floats(1.0, 3.0))
def test_dry_equals_its_rule_read_slowly(past, allowed, breakers, base):
    scores = logits(1, 5).double()
    got = dry(scores, column(0.8), column(base), column(allowed), [torch.tensor(past, dtype=torch.long)], [breakers])
    expected = slow_dry(scores[0].tolist(), 0.8, base, allowed, past, breakers)
    torch.testing.assert_close(got, torch.tensor([expected], dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_example_of_llama_cpps_source():
    a, b, c, y = range(4)
    past = torch.tensor([a, b, c, c, b, c, y, a, b, c])  # a b c goes on with c, b c with y, c with b
    assert repetitions(past, (), 1, 9) == {c: 3, b: 1, y: 2}
    assert repetitions(past, (), 1, 2) == {c: 2, b: 1, y: 2}
    got = dry(torch.zeros(1, 4), column(1.0), column(2.0), column(1), [past], [()])
    assert got.tolist() == [[0.0, -1.0, -4.0, -2.0]]


def test_dry_keeps_rows_that_ask_for_nothing_and_does_not_overflow():
    past = torch.tensor([1, 2] * 200)
    got = dry(torch.zeros(2, 4), column(0.0, 1.0), column(1.75, 1.75), column(2, 2), [past, past], [(), ()])
    assert got[0].tolist() == [0.0] * 4
    assert got.isfinite().all() and got[1, 1] < -1e30
