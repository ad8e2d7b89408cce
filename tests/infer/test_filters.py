"""The chain of filters: each row its own settings, in transformers' order."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from seodang.data.refusal import UserError
from seodang.infer.filters import Filters
from seodang.infer.params import SamplingParams
from seodang.infer.row import Request, Row


def row(ids: list[int], **settings) -> Row:
    request = Request(0, ids, SamplingParams(**settings), 0, frozenset(), lambda: None)
    return Row(request, None, 0, list(ids), None)


def logits(rows: int) -> torch.Tensor:
    return 3 * torch.randn(rows, 200, generator=torch.Generator().manual_seed(0))


def theirs(row: Row, scores: torch.Tensor) -> torch.Tensor:
    """transformers' own chain for one row."""
    params, chain = row.request.params, LogitsProcessorList()
    chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty or 1.0))
    for name, warper in {"temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}.items():
        if getattr(params, name) and params.samples:
            chain.append(warper(getattr(params, name)))
    return chain(torch.tensor([row.ids]), scores[None].clone())[0]


def test_rows_with_unlike_settings_are_filtered_together_as_each_would_be_alone():
    rows = [
        row([1, 2, 3], temperature=0.7, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.3),
        row([4, 4]),
        row([5], repetition_penalty=0.8),
        row([6, 7], top_p=0.5),
        row([8], temperature=1.7, min_p=0.2),
        row([9], temperature=0.0, top_k=3),  # greedy: not warped
    ]
    scores = logits(len(rows))
    got = Filters(rows)(scores)
    for each, before, after in zip(rows, scores, got):
        torch.testing.assert_close(after, theirs(each, before), rtol=0, atol=1e-6)


def test_rows_that_ask_for_nothing_cost_nothing():
    scores = logits(2)
    assert Filters([row([1]), row([2], max_new_tokens=9)])(scores) is scores


def test_the_penalty_looks_back_at_the_answer_too():
    each = row([1, 2], repetition_penalty=2.0)
    each.history()
    each.ids.append(7)
    scores = torch.full((1, 10), 4.0)
    assert Filters([each])(scores)[0].tolist() == [4, 2, 2, 4, 4, 4, 4, 2, 4, 4]


def test_half_precision_is_filtered_in_float32():
    assert Filters([row([1])])(logits(1).bfloat16()).dtype == torch.float32


def test_a_callers_filters_touch_their_own_row_before_the_temperature():
    seen = []

    def only_even(logits, history):
        seen.append((tuple(logits.shape), history.tolist()))
        return logits.masked_fill(torch.arange(logits.shape[-1]) % 2 == 1, -torch.inf)

    rows = [row([3]), row([4, 5], filters=[only_even, SuppressTokensLogitsProcessor([0])], temperature=0.5)]
    scores = logits(2)
    got = Filters(rows)(scores)
    assert torch.equal(got[0], scores[0])
    assert seen == [((1, 200), [[4, 5]])]
    expected = scores[1] / 0.5
    expected[1::2] = expected[0] = -torch.inf
    torch.testing.assert_close(got[1], expected)


def test_a_filter_that_returns_nonsense_is_named():
    def forgetful(logits, history):
        return None

    def merciless(logits, history):
        return logits - torch.inf

    with pytest.raises(UserError, match="forgetful must return logits of shape"):
        Filters([row([1], filters=[forgetful])])(logits(1))
    with pytest.raises(UserError, match="merciless left no token"):
        Filters([row([1], filters=[merciless])])(logits(1))
