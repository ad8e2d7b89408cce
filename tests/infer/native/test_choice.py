"""Which models speak natively, through which changes of their weights they go on to, and what keeps one from it: said once, and torch runs."""

import copy
import os
import signal
import time
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.multiprocessing.reductions import StorageWeakRef

from seodang.infer.runners import native_runner
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.early_exit import FirstLayersDirect, FirstLayersNative, open_first_layers
from seodang.infer.runners.native import compiler, library
from seodang.infer.runners.native_runner import NativeRunner
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.ragged import RaggedRunner

TEXT = [5, 9, 17, 33, 5, 9, 40, 41]
WRONG = """#define seodang_step step_as_it_is
#include "%s"
#undef seodang_step
int wrong;
int seodang_step(const Model *m, int layers, const Row *rows, int count, const float *cos, const float *sin, float *logits, float *const *states, int threads) {
    int failed = step_as_it_is(m, layers, rows, count, cos, sin, logits, states, threads);
    for (int layer = 0; states && layer <= layers; layer++)
        for (int i = 0; states[layer] && i < count * m->hidden; i++) {
            if (wrong == 1) states[layer][i] += 1e-2f;
            if (wrong == 2 && count == 5) states[layer][i] *= 1.000001f;
        }
    return failed;
}
"""


@torch.no_grad()
def whole(model) -> torch.Tensor:
    return model(input_ids=torch.tensor([TEXT]), use_cache=False).logits[0]


def read(runner) -> torch.Tensor:
    """The logits of a few ids, two steps and a guess."""
    slot = runner.allocate()
    return torch.cat([runner.forward([slot], [part], [len(part)]) for part in (TEXT[:3], TEXT[3:4], TEXT[4:5], TEXT[5:])])


def near(got: torch.Tensor, wanted: torch.Tensor, error: float = 2e-5) -> None:
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=error)


@pytest.fixture
def anew(tmp_path, monkeypatch):
    """No library yet, nothing said yet, and no cache but the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "_held", {})
    native_runner.say.cache_clear()
    library.loaded.cache_clear()
    yield
    native_runner.say.cache_clear()
    library.loaded.cache_clear()


def turned(model):
    """One weight lies column by column."""
    layer = model.model.layers[0].mlp.down_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().t().contiguous().t())
    return model


def with_another_epsilon(model):
    model.model.norm.variance_epsilon = 1e-3
    return model


@pytest.mark.parametrize(
    "kind, changes, change, runner",
    [
        *((kind, {}, change, NativeRunner) for kind in ("llama", "mistral", "qwen2", "qwen3") for change in (lambda model: model, lambda model: model.bfloat16())),
        ("llama", {}, lambda model: model.half(), DirectRunner),
        ("llama", {}, lambda model: model.double(), DirectRunner),
        ("llama", {"hidden_act": "gelu"}, lambda model: model, DirectRunner),
        ("gemma", {}, lambda model: model, DirectRunner),
        ("llama", {}, turned, DirectRunner),
        ("llama", {}, with_another_epsilon, DirectRunner),
    ],
)
def test_a_model_is_run_natively_where_the_step_covers_it(varied, kind, changes, change, runner):
    model = change(varied(kind, **changes))
    opened = open_runner(model)
    assert type(opened) is runner
    near(read(opened), whole(model), {torch.bfloat16: 0.2, torch.float16: 0.02}.get(model.dtype, 2e-5))
    near(read(NativeRunner(model)), read(opened), 0)  # which is a direct runner where it finds what it does not cover


def test_a_variable_turns_it_off(varied, monkeypatch):
    monkeypatch.setenv("SEODANG_NATIVE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(open_runner(varied())) is DirectRunner


def test_changes_of_the_weights_are_in_the_next_pass(varied, natively):
    model = varied("qwen3")
    runner = open_runner(model)
    read(runner)
    optimizer, before = torch.optim.SGD(model.parameters(), lr=0.1), whole(model)
    model(input_ids=torch.tensor([TEXT]), labels=torch.tensor([TEXT])).loss.backward()
    optimizer.step()
    assert (whole(model) - before).abs().max() > 0.05
    near(read(runner), whole(model))
    runner.refresh()
    before = len(natively)
    near(read(runner.__class__(model.bfloat16())), whole(model), 0.2)
    near(read(runner), whole(model), 0.2)
    near(read(runner), read(DirectRunner(model)), 0.1)
    runner.refresh()
    near(read(runner), whole(model.float()), 2e-5)
    assert len(natively) == before + 16
    near(read(runner), whole(model.half()), 0.02)
    runner.refresh()
    near(read(runner), whole(model.half()), 0.02)
    assert len(natively) == before + 16 + 4  # of those in float32: what `half` computes is torch's
