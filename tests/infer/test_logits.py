"""Filters: by hand, and against transformers' processors, which take one value a batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from seodang.infer.logits import min_p, repetition_penalty, temperature, top_k, top_p

FILTERS = {
    "temperature": (temperature, TemperatureLogitsWarper, [0.3, 1.0, 2.5]),
    "top_k": (top_k, TopKLogitsWarper, [1, 7, 50, 5000]),
    "top_p": (top_p, TopPLogitsWarper, [0.05, 0.5, 0.9, 0.999]),
    "min_p": (min_p, MinPLogitsWarper, [0.01, 0.2, 1.0]),
}


def column(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])  # flat, as a model's, sharp
def test_each_row_equals_transformers_filter_with_that_rows_value(name, scale):
    ours, theirs, values = FILTERS[name]
    logits = scale * torch.randn(len(values), 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.cat([theirs(value)(torch.zeros(1, 1).long(), row[None]) for value, row in zip(values, logits)])
    got = ours(logits, column(*values).to(torch.long if name == "top_k" else torch.float64))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_repetition_penalty_equals_transformers_row_by_row():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    history = [torch.tensor([1, 4, 4, 9]), torch.tensor([0]), torch.tensor([3, 60])]  # 60 is beyond the vocabulary
    got = repetition_penalty(logits, column(1.3, 0.7, 2.0), history)
    for row, penalty, past, result in zip(logits, (1.3, 0.7, 2.0), history, got):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(past[None], row[None].clone())[0]
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_top_k_keeps_the_likeliest_and_zero_keeps_the_row():
    kept = top_k(torch.tensor([[1.0, 3.0, 2.0, 0.0]]).repeat(3, 1), column(2, 0, 9).long()).isfinite()
    assert kept.tolist() == [[False, True, True, False], [True] * 4, [True] * 4]


def test_top_p_keeps_the_fewest_that_reach_the_probability():
    logits = torch.tensor([[0.50, 0.30, 0.15, 0.05]]).log().repeat(4, 1)
    kept = top_p(logits, column(0.5, 0.7, 0.96, 1.0)).isfinite()
    assert kept.tolist() == [
        [True, False, False, False],  # 0.50 reaches it
        [True, True, False, False],  # 0.50 + 0.30
        [True, True, True, True],  # 0.95 does not reach 0.96
        [True, True, True, True],
    ]


def test_min_p_keeps_tokens_near_the_likeliest():
    logits = torch.tensor([[0.50, 0.30, 0.15, 0.05]]).log().repeat(2, 1)
    kept = min_p(logits, column(0.4, 0.0)).isfinite()
    assert kept.tolist() == [[True, True, False, False], [True] * 4]  # below 0.4 * 0.50 is dropped


def test_repetition_penalty_lowers_what_was_said_whatever_its_sign():
    got = repetition_penalty(torch.tensor([[2.0, -2.0, 1.0]]), column(2.0), [torch.tensor([0, 1])])
    assert got.tolist() == [[1.0, -4.0, 1.0]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12),
    st.integers(0, 14),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
)
def test_no_filter_drops_the_likeliest_token(row, k, p, m):
    logits = torch.tensor([row])
    for got in (top_k(logits, column(k).long()), top_p(logits, column(p)), min_p(logits, column(m))):
        assert got[0, logits.argmax()] == logits.max()
        assert not got.isnan().any()
