"""What the native step does to each number of a feed-forward layer, to a capped score and to a capped logit, against the same in float64."""

import ctypes
import math

import pytest
import torch

from seodang.infer.runners.native import compiler, library

SOURCE = """#include "%s"
#include "%s"
void activated_by(int kind, float *x, float *by, int count) { activate(kind, x, by, count); }
void bounded(float bound, float *x, int count) { bound_softly(x, bound, count); }
"""
EXACT = {
    "SiLUActivation": lambda x: x * torch.sigmoid(x),
    "GELUActivation": lambda x: x * 0.5 * torch.erfc(-x / math.sqrt(2)),
    "NewGELUActivation": lambda x: x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "ReLU": torch.relu,
}
EPSILON = 2.0**-23


@pytest.fixture(scope="module", params=[None, ("haswell", "avx2"), ("x86-64", "sse4_1")], ids=["native", "avx2", "plain"])
def compiled(request, tmp_path_factory):
    """The functions of `activations.h`, by themselves."""
    march, needs = request.param or ("native", None)
    if needs and not torch.cpu.get_capabilities().get(needs):
        pytest.skip(f"this CPU has no {needs}")
    source = tmp_path_factory.mktemp("activations") / "activations.c"
    headers = [library.SOURCE.with_name(name) for name in ("kernels.h", "activations.h")]
    source.write_text(SOURCE % tuple(headers), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(source.parent))
        return ctypes.CDLL(str(compiler.built(source, march)))


def spread() -> torch.Tensor:
    """Numbers of every size that float32 has, and the neighbourhood of where a polynomial ends."""
    sizes = torch.logspace(-30, 4, 4000, dtype=torch.float64)
    near = torch.linspace(-12, 12, 16000, dtype=torch.float64)
    return torch.cat([sizes, -sizes, near, torch.zeros(64)]).float()


def address(x: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


@pytest.mark.parametrize("name", EXACT)
def test_an_activation_is_that_of_float64_to_a_few_roundings(compiled, name):
    x = spread()
    got, wanted = x.clone(), EXACT[name](x.double())
    compiled.activated_by(library.ACTIVATIONS[name], address(got), None, len(x))
    assert ((got.double() - wanted).abs() <= 3 * EPSILON * torch.maximum(wanted.abs(), x.double().abs().clamp(max=8))).all()
    by = torch.linspace(-2, 2, len(x))
    opened = x.clone()
    compiled.activated_by(library.ACTIVATIONS[name], address(opened), address(by), len(x))
    assert torch.equal(opened, got * by)


@pytest.mark.parametrize("bound", [1.0, 30.0])
def test_a_soft_bound_is_that_of_float64_to_a_few_roundings(compiled, bound):
    x = spread()
    got, wanted = x.clone(), torch.tanh(x.double() / bound) * bound
    compiled.bounded(ctypes.c_float(bound), address(got), len(x))
    assert ((got.double() - wanted).abs() <= 3 * EPSILON * wanted.abs()).all()
    strange = torch.tensor([math.inf, -math.inf, math.nan, 0.0] * 16)
    compiled.bounded(ctypes.c_float(bound), address(strange), len(strange))
    assert strange[0] == bound and strange[1] == -bound and strange[2].isnan() and strange[3] == 0
