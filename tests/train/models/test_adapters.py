"""The faster LoRA layers compute what peft's compute."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from seodang.train.models.adapters import LoraLinear, speed_up_adapters


def adapted(fresh_tiny, **changes):
    torch.manual_seed(0)
    settings = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False, **changes}
    return get_peft_model(fresh_tiny("llama"), LoraConfig(**settings))


def gradients(model, ids):
    model.zero_grad()
    logits = model(ids).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"target_modules": ["q_proj", "down_proj"]}, {"use_dora": True}, {"lora_bias": True}])
def test_logits_and_gradients_equal_pefts_own(fresh_tiny, changes):
    ids = torch.arange(3, 43).view(2, 20)
    plain, fast = adapted(fresh_tiny, **changes), adapted(fresh_tiny, **changes)
    speed_up_adapters(fast)
    (expected, wanted), (logits, found) = gradients(plain, ids), gradients(fast, ids)
    assert torch.allclose(logits, expected, atol=1e-5) and set(found) == set(wanted)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_the_plain_layers_do_go_the_fast_way_and_dropout_does_not(fresh_tiny, monkeypatch):
    calls = []
    own = LoraLinear.apply
    monkeypatch.setattr(LoraLinear, "apply", lambda *args: calls.append(1) or own(*args))
    ids = torch.arange(3, 13)[None]
    for changes, expected in (({}, 14), ({"lora_dropout": 0.5}, 0), ({"use_dora": True}, 0)):
        model = adapted(fresh_tiny, **changes).train()
        speed_up_adapters(model)
        calls.clear()
        model(ids)
        assert len(calls) == expected
    model = adapted(fresh_tiny)
    speed_up_adapters(model)
    before, after = model(ids).logits, None
    with model.disable_adapter():
        calls.clear()
        off = model(ids).logits
        assert not calls
    after = model.merge_and_unload()(ids).logits
    assert torch.allclose(off, fresh_tiny("llama")(ids).logits, atol=1e-6) and torch.allclose(before, after, atol=1e-4)


def test_the_function_passes_a_numerical_check_of_its_gradients():
    torch.manual_seed(0)
    x, w, c, a, b = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 4), (5, 4), (5,), (2, 4), (5, 2)))
    x, a, b = (t.requires_grad_(True) for t in (x, a, b))
    assert torch.autograd.gradcheck(lambda x, a, b: LoraLinear.apply(x, w, c, a, b, 0.7), (x, a, b))
