"""The product with a model's own weights: the same numbers whatever the number of rows, and so whichever library computes them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seodang.infer.kernels.linear_kernel import FEW, linear_kernel


@pytest.fixture
def onednn(monkeypatch):
    """How many rows each product had that went to oneDNN."""
    rows, own = [], torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda x, *rest: rows.append(len(x)) or own(x, *rest), raising=False)
    return rows


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_few_rows_on_one_thread_take_another_way_to_the_same_numbers(onednn, bias):
    layer = nn.Linear(768, 40, bias=bias)
    product, inputs = linear_kernel([layer], quick_few=True), [torch.randn(rows, 768) for rows in (0, 1, 2, FEW // 768, FEW // 768 + 1, 9)]
    for x in inputs:
        got = product(x)
        assert got.is_contiguous()
        torch.testing.assert_close(got, F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
    assert onednn == [1, 5, 9]
    layer.weight.mul_(2)  # the weight is the layer's own
    torch.testing.assert_close(product(inputs[2]), F.linear(inputs[2], layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        product(inputs[2])
    finally:
        torch.set_num_threads(threads)
    assert onednn == [1, 5, 9, 2]
    linear_kernel([layer])(inputs[2])
    assert onednn == [1, 5, 9, 2, 2]  # where nobody asked for the quick way, rows do not tell how many they are
