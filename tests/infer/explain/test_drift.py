"""How far passes over a cache are from full ones: nothing where all are full, else what transformers' own cache gives."""

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import SamplingParams
from seodang.infer.explain.drift import drift
from seodang.infer.runners.paradigm import Diffusion, declare

from ..diffusion.by_hand import NEW, ByHand, passes_by_hand
from ..diffusion.conftest import MASK

PROMPTS = [[5, 6, 7, 8, 5, 6], [20, 21, 22]]


@pytest.fixture(params=[0, 1])
def model(request, fresh_tiny):
    model = fresh_tiny("llama").double()
    declare(model.config, Diffusion(MASK, request.param))
    return model


def asked(**settings) -> SamplingParams:
    return SamplingParams(max_new_tokens=NEW, ignore_eos=True, **settings)


def test_the_drift_is_that_of_transformers_own_cache_from_its_own_full_passes(model, tiny_tokenizer):
    results, found = drift(model, tiny_tokenizer, PROMPTS, asked(cache_refresh=99, block_length=4, dual_cache=True))
    divergences, changed, cached = [], [], 0
    for prompt, result in zip(PROMPTS, results, strict=True):
        before = [None] * NEW
        for each in passes_by_hand(model, prompt, 99, 4, dual=True):
            full = ByHand(model, prompt).full([MASK if id is None else id for id in before])[each.positions]
            full[:, MASK] = -torch.inf
            p, q = full.softmax(dim=-1), each.logits.softmax(dim=-1)
            seen = p > 0
            divergences += [float((p[seen] * (p[seen] / q[seen]).log()).sum())]
            changed += (p.argmax(dim=-1) != q.argmax(dim=-1)).tolist()
            before, cached = each.canvas, cached + each.cached
        assert result.ids == before
    assert found.divergence == pytest.approx(sum(divergences) / len(divergences), rel=1e-8) and found.divergence > 1e-5
    assert (found.tokens, found.changed, found.forwards, found.cached) == (2 * NEW, sum(changed) / len(changed), 2 * NEW, cached) and cached == 12


@pytest.mark.parametrize("settings", [{"cache_refresh": 1}, {"cache_refresh": 1, "block_length": 3, "confidence_threshold": 0.05}, {"steps": 3}])
def test_full_passes_have_none(model, tiny_tokenizer, settings):
    _, found = drift(model, tiny_tokenizer, PROMPTS, asked(**settings))
    assert found.tokens == 2 * NEW and found.divergence == pytest.approx(0, abs=1e-12) and (found.changed, found.cached) == (0, 0)


def test_what_it_cannot_measure_is_refused_by_name(model, tiny_tokenizer, tiny_llama):
    for settings, reason in (({"cfg_scale": 1.0}, "cfg_scale changes what a pass says"), ({"num_return_sequences": 2, "seed": 1, "temperature": 1.0}, "num_return_sequences=2")):
        with pytest.raises(UserError, match=reason):
            drift(model, tiny_tokenizer, PROMPTS, asked(**settings))
    with pytest.raises(UserError, match="this llama is none"):
        drift(tiny_llama, tiny_tokenizer, PROMPTS, asked())
