"""Linear layers by oneDNN: the same numbers, in its context alone, and only where it is to be had."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seodang.infer.kernels import products as kernels
from seodang.infer.kernels.products import LARGE, MANY, fits, onednn_products


@pytest.fixture
def products(monkeypatch):
    """How many products went to oneDNN."""
    called, own = [], torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *args: called.append(1) or own(*args), raising=False)
    return called


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_a_layer_gives_the_same_numbers(products):
    layer, bare, x = nn.Linear(48, 40), nn.Linear(48, 40, bias=False), torch.randn(2, MANY, 48)
    with torch.no_grad():
        wanted = layer(x), bare(x)
        with onednn_products():
            got = layer(x), bare(x)
        after = layer(x)
    assert len(products) == 2
    for one, other in zip(got, wanted):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert torch.equal(after, wanted[0])


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize(("learns", "calls"), [("xwb", 2), ("xw", 2), ("x", 2), ("wb", 1), ("b", 1), ("", 1)])
def test_gradients_are_those_of_a_layer_in_float64(products, monkeypatch, learns, calls):
    monkeypatch.setattr(kernels, "LARGE", 1)
    draw = lambda *size: torch.randn(*size, generator=torch.Generator().manual_seed(len(size)))
    told = {"x": draw(MANY, 48, 2).transpose(1, 2), "w": draw(40, 48), "b": draw(40)}  # x as it comes out of attention, its rows not side by side
    upstream = draw(40, MANY, 2).permute(1, 2, 0)
    found = []
    for wide in (False, True):
        leaves = {name: (value.double() if wide else value).detach().requires_grad_(name in learns) for name, value in told.items()}
        bias = leaves["b"] if "b" in learns else None
        with onednn_products():
            out = F.linear(leaves["x"], leaves["w"], bias)
        if learns:
            out.backward(upstream.double() if wide else upstream)
        found.append([out.detach(), *(leaf.grad for name, leaf in leaves.items() if name in learns)])
        assert all((leaf.grad is not None) == (name in learns) for name, leaf in leaves.items())
    assert len(products) == calls  # in float32 alone
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-4)


def test_with_gradients_only_large_products_are_for_it_and_under_autocast_none():
    x, weight = torch.randn(MANY, 8), torch.randn(4, 8)
    assert not fits(x, weight)
    assert fits(torch.empty(MANY, 1).expand(MANY, LARGE // MANY), torch.empty(1, 1).expand(1, LARGE // MANY))
    with torch.no_grad():
        assert fits(x, weight)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not fits(x, weight)


@torch.no_grad()
def test_what_is_not_for_it_stays(products):
    x, weight = torch.randn(MANY, 8), torch.randn(4, 8)
    assert not fits(x[: MANY - 1], weight) and not fits(x.double(), weight.double()) and not fits(x.bfloat16(), weight.bfloat16())
    with onednn_products():
        torch.testing.assert_close(F.linear(x.double(), weight.double()), x.double() @ weight.double().T)
        with torch.enable_grad():
            leaf = weight.clone().requires_grad_()
            F.linear(x, leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, x.sum(0).expand(4, -1))
    assert not products
