"""Linear layers by oneDNN: the same numbers, in its context alone, and only where it is to be had."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seodang.infer.kernels.products import MANY, fits, onednn_products


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
