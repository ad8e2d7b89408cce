"""Attention of one row: against the softmax written out, query by query."""

import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from seodang.data.errors import UserError
from seodang.infer.runners import attention
from seodang.infer.runners.attention import attend, check_attention_kwargs
from seodang.train.memory.allocations import Allocations


def by_hand(query, key, value, *, past=0, scale=None, window=None, softcap=None, sinks=None, causal=True):
    """One query at a time, one head at a time, over a list of the keys it may see."""
    _, heads, n, d = query.shape
    group = heads // key.shape[1]
    out = torch.zeros(1, heads, n, value.shape[-1], dtype=query.dtype)
    for h in range(heads):
        for i in range(n):
            at = past + i
            sees = [j for j in range(key.shape[2]) if not causal or j <= at]
            if window is not None:
                sees = [j for j in sees if (j > at - window if causal else abs(at - j) <= window)]
            scores = torch.stack([query[0, h, i] @ key[0, h // group, j] for j in sees]) * (scale or d**-0.5)
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = scores.exp()
            total = weights.sum() + (sinks[h].exp() if sinks is not None else 0)
            for weight, j in zip(weights, sees):
                out[0, h, i] += weight / total * value[0, h // group, j]
    return out


def random(n, past, heads=4, kv_heads=2, d=8, d_v=8, dtype=torch.float64):
    torch.manual_seed(n + 7 * past)
    query = torch.randn(1, heads, n, d, dtype=dtype)
    key = torch.randn(1, kv_heads, past + n, d, dtype=dtype)
    return query, key, torch.randn(1, kv_heads, past + n, d_v, dtype=dtype)


CASES = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "window": {"window": 3},
    "window of one": {"window": 1},
    "window longer than the row": {"window": 50},
    "softcap": {"softcap": 2.0},
    "softcap and window": {"softcap": 2.0, "window": 2, "scale": 0.5},
    "sinks": {"sinks": torch.tensor([0.1, -1.0, 2.0, 0.5], dtype=torch.float64)},
    "not causal": {"causal": False},
    "window to both sides": {"causal": False, "window": 2},
}


def with_gradients(tensors, **options):
    """What comes out, and the gradients of its weighted sum; the sinks' too."""
    leaves = [each.clone().requires_grad_() for each in (*tensors, *([options["sinks"]] if "sinks" in options else []))]
    out = attend(*leaves[:3], **{**options, **({"sinks": leaves[3]} if "sinks" in options else {})})
    (out * torch.arange(out.numel(), dtype=out.dtype).view_as(out).sin()).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("n, past", [(23, 0), (17, 9)])
def test_queries_that_take_turns_give_the_same_and_the_same_gradients(n, past, options, monkeypatch):
    tensors = random(n, past)
    whole = with_gradients(tensors, past=past, **options)
    turns = []
    at_once = attention._attend_at_once
    monkeypatch.setattr(attention, "_attend_at_once", lambda *args, **how: turns.append(args[0].shape[2]) or at_once(*args, **how))
    monkeypatch.setattr(attention, "AT_ONCE", 40)
    monkeypatch.setattr(attention, "LEAST", 3)
    for one, other in zip(with_gradients(tensors, past=past, **options), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    fused_whole = "softcap" not in options and "sinks" not in options and options.get("window", 50) == 50 and (past == 0 or not options.get("causal", True))
    assert max(turns) == n if fused_whole else max(turns) < n
    assert not len(turns) % 2 or fused_whole  # each turn once more for the gradient


@pytest.mark.parametrize(("options", "heads"), [({"window": 1024}, 2), ({"softcap": 30.0}, 1), ({"sinks": torch.zeros(1)}, 1), ({"past": 8192}, 2)])
def test_nothing_as_large_as_all_queries_times_all_keys_is_made(options, heads):
    n, past = (8192, options["past"]) if "past" in options else (16384, 0)
    allocations = Allocations()
    with FakeTensorMode(allow_non_fake_inputs=True):
        query, key, value = (torch.empty(1, heads, count, 16, requires_grad=True) for count in (n, past + n, past + n))
        with allocations:
            attend(query, key, value, **{**options, "past": past}).sum().backward()
    assert 0 < max(moment.others for moment in allocations.moments) < 4 * n * (past + n) / 3  # a float32 for each would be 1 GiB


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("n, past", [(6, 0), (4, 5), (1, 0), (1, 7)])
def test_equals_the_softmax_written_out(n, past, options):
    tensors = random(n, past)
    torch.testing.assert_close(
        attend(*tensors, past=past, **options), by_hand(*tensors, past=past, **options), rtol=0, atol=1e-12
    )


def test_values_may_be_wider_or_narrower_than_keys():
    tensors = random(5, 2, d=8, d_v=6)
    torch.testing.assert_close(attend(*tensors, past=2), by_hand(*tensors, past=2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_gradients_equal_those_of_the_softmax_written_out(options):
    ours = [t.requires_grad_() for t in random(4, 3)]
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    attend(*ours, past=3, **options).square().sum().backward()
    by_hand(*theirs, past=3, **options).square().sum().backward()
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("options", [{}, {"window": 2}, {"softcap": 3.0}], ids=str)
def test_keeps_the_dtype_it_is_given(dtype, error, options):
    tensors = [t.to(dtype) for t in random(4, 2)]
    out = attend(*tensors, past=2, **options)
    exact = by_hand(*[t.double() for t in tensors], past=2, **options)
    assert out.dtype == dtype
    assert (out.double() - exact).abs().max() < error


def test_dropout_drops_the_share_it_is_told():
    query, key = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1000, 4)  # uniform weights of 1/1000
    each_key = torch.eye(1000)[None, None]  # the output is the weights themselves
    torch.manual_seed(0)
    for options in ({}, {"softcap": 5.0}):
        weights = attend(query, key, each_key, past=999, dropout=0.25, **options).flatten()
        assert (weights == 0).double().mean().item() == pytest.approx(0.25, abs=0.04)  # three standard deviations
        assert torch.allclose(weights[weights > 0], torch.tensor(4 / 3 / 1000))  # what survives is scaled up


def test_refuses_by_name_what_it_does_not_honour():
    layer = torch.nn.Identity()
    layer.config = types.SimpleNamespace(model_type="strange")
    check_attention_kwargs(layer, {"scaling": 0.5, "position_bias": None, "position_ids": torch.zeros(1)})
    with pytest.raises(UserError, match="strange.*'position_bias'"):
        check_attention_kwargs(layer, {"position_bias": torch.zeros(1)})
    with pytest.raises(UserError, match="'output_attentions'"):
        check_attention_kwargs(layer, {"output_attentions": True})
    check_attention_kwargs(layer, {"spans": [1]}, allowed=("spans",))
