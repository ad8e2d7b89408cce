"""Filters of one distribution: by hand, against transformers' processors, which take one value a batch, and against slow readings
of llama.cpp's rules."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from seodang.infer.filters.logits import (
    dynamic_temperature,
    epsilon_cutoff,
    eta_cutoff,
    min_p,
    temperature,
    top_h,
    top_k,
    top_n_sigma,
    top_p,
    typical_p,
    xtc,
)
from seodang.infer.filters.mirostat import mirostat

FILTERS = {
    "temperature": (temperature, TemperatureLogitsWarper, [0.3, 1.0, 2.5]),
    "top_k": (top_k, TopKLogitsWarper, [1, 7, 50, 5000]),
    "top_p": (top_p, TopPLogitsWarper, [0.05, 0.5, 0.9, 0.999]),
    "min_p": (min_p, MinPLogitsWarper, [0.01, 0.2, 1.0]),
    "typical_p": (typical_p, TypicalLogitsWarper, [0.05, 0.5, 0.95]),
    "epsilon_cutoff": (epsilon_cutoff, EpsilonLogitsWarper, [1e-4, 3e-3, 0.2]),
    "eta_cutoff": (eta_cutoff, EtaLogitsWarper, [3e-4, 4e-3, 0.5]),
    "top_h": (top_h, TopHLogitsWarper, [0.1, 0.4, 0.9]),
}


def column(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])  # flat, as a model's, sharp
@pytest.mark.parametrize("dropped", [False, True])  # whether filters before it have dropped tokens
def test_each_row_equals_transformers_filter_with_that_rows_value(name, scale, dropped):
    ours, theirs, values = FILTERS[name]
    values = values * 4
    logits = scale * torch.randn(len(values), 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if dropped:
        logits[:, ::2] = -torch.inf
    expected = torch.cat([theirs(value)(torch.zeros(1, 1).long(), row[None].clone()) for value, row in zip(values, logits)])
    got = ours(logits, column(*values).to(torch.long if name == "top_k" else torch.float64))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


# the rules of llama.cpp for one row of numbers, in plain Python


def softmax(row: list[float]) -> list[float]:
    most = max(row)
    weights = [math.exp(x - most) for x in row]
    return [w / sum(weights) for w in weights]


def slow_dynamic_temperature(row, t, spread, exponent):
    left = [x for x in row if x > -math.inf]
    entropy = -sum(p * math.log(p) for p in softmax(left) if p > 0)
    low, high = max(0.0, t - spread), t + spread
    return [x / (low + (high - low) * (entropy / math.log(len(left))) ** exponent) for x in row]


def slow_top_n_sigma(row, n):
    left = [x for x in row if x > -math.inf]
    mean = sum(left) / len(left)
    sigma = math.sqrt(sum((x - mean) ** 2 for x in left) / len(left))
    return [x if x >= max(left) - n * sigma else -math.inf for x in row]


def slow_xtc(row, probability, threshold, noise):
    if noise >= probability or threshold > 0.5:
        return row
    probs = softmax(row)
    order = sorted(range(len(row)), key=lambda i: -probs[i])
    reach = [i for i in order if probs[i] >= threshold]
    return [-math.inf if i in reach[:-1] else x for i, x in enumerate(row)]


def slow_mirostat(row, mu):
    probs = softmax(row)
    keep = [i for i, p in enumerate(probs) if p > 0 and -math.log2(p) <= mu] or [probs.index(max(probs))]
    return [x if i in keep else -math.inf for i, x in enumerate(row)]


LLAMA = {
    "dynatemp": (dynamic_temperature, slow_dynamic_temperature, [(1.0, 0.5, 1.0), (0.8, 0.8, 0.7), (1.2, 2.0, 2.0)]),
    "top_n_sigma": (top_n_sigma, slow_top_n_sigma, [(0.5,), (1.0,), (2.5,)]),
    "xtc": (xtc, slow_xtc, [(1.0, 0.05, 0.3), (0.5, 0.02, 0.4), (0.5, 0.02, 0.6), (1.0, 0.51, 0.0)]),
    "mirostat": (mirostat, slow_mirostat, [(0.01,), (3.0,), (6.5,)]),
}


@pytest.mark.parametrize("name", LLAMA)
@pytest.mark.parametrize("scale", [0.3, 2.0, 6.0])
@pytest.mark.parametrize("dropped", [False, True])
def test_each_row_equals_llama_cpps_rule_with_that_rows_values(name, scale, dropped):
    ours, slow, values = LLAMA[name]
    values = values * 5
    logits = scale * torch.randn(len(values), 60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if dropped:
        logits[:, ::2] = -torch.inf
    expected = torch.tensor([slow(row.tolist(), *value) for value, row in zip(values, logits)], dtype=torch.float64)
    got = ours(logits, *(column(*each) for each in zip(*values)))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-6)
    if name != "dynatemp":
        assert (got != logits).any()  # the values do drop something


def test_dynamic_temperature_is_coldest_where_the_model_is_sure():
    logits = torch.tensor([[9.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [3.0, -torch.inf, -torch.inf, -torch.inf]])
    got = dynamic_temperature(logits, column(1.0).expand(3, 1), column(0.5).expand(3, 1), column(1.0).expand(3, 1))
    assert 9 / 0.5 > got[0, 0] > 9 / 0.51  # nearly no entropy: nearly 1 - 0.5
    torch.testing.assert_close(got[1], torch.full((4,), 1 / 1.5, dtype=torch.float64))  # as much as there can be: 1 + 0.5
    assert got[2].tolist() == [6.0, -torch.inf, -torch.inf, -torch.inf]


def test_neutral_values_keep_the_row():
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(0))
    for kept in (
        typical_p(logits, column(1.0)), epsilon_cutoff(logits, column(0.0)), eta_cutoff(logits, column(0.0)),
        top_n_sigma(logits, column(0.0)), xtc(logits, column(0.0), column(0.1), column(0.0)),
    ):  # fmt: skip
        assert torch.equal(kept, logits)


def test_xtc_drops_the_top_choices_but_the_least_of_them():
    logits = torch.tensor([[0.40, 0.30, 0.20, 0.10]]).log().repeat(3, 1)
    kept = xtc(logits, column(0.5, 0.5, 0.5), column(0.15, 0.15, 0.45), column(0.2, 0.7, 0.2)).isfinite()
    assert kept.tolist() == [[False, False, True, True], [True] * 4, [True] * 4]  # done; its number is too high; none reaches 0.45


def test_top_n_sigma_keeps_the_same_at_any_temperature():
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(3))
    for t in (0.2, 3.0):
        assert torch.equal(top_n_sigma(logits / t, column(1.0)).isfinite(), top_n_sigma(logits, column(1.0)).isfinite())


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


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12),
    st.integers(0, 14),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
)
def test_every_filter_keeps_a_token_and_most_the_likeliest(row, k, p, m):
    logits = torch.tensor([row])
    for got in (
        top_k(logits, column(k).long()), top_p(logits, column(p)), min_p(logits, column(m)), epsilon_cutoff(logits, column(m)),
        eta_cutoff(logits, column(m)), top_h(logits, column(p)), top_n_sigma(logits, column(5 * m)), mirostat(logits, column(9 * m)),
        dynamic_temperature(logits, column(1.0), column(1 + m), column(p)),
    ):  # fmt: skip
        assert (got[logits == logits.max()] == got.max()).any() and got.max() > -torch.inf
        assert not got.isnan().any()
    for got in (typical_p(logits, column(p)), xtc(logits, column(1.0), column(m), column(0.0))):
        assert got.max() > -torch.inf
        assert not got.isnan().any()
