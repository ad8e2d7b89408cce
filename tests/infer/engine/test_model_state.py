"""When a model is the same as before: by its state, and at a glance."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from peft import LoraConfig, get_peft_model

from seodang.infer import open_runner
from seodang.infer.engine.model_state import Glance, state_of
from seodang.infer.runners.early_exit import open_first_layers

ADAPTER = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)


def test_the_state_of_a_model_is_that_between_passes(fresh_tiny):
    """Another thread has the model down to its first layer: the state waits until it is whole."""
    model = fresh_tiny()
    whole, cut, enough = state_of(model), Event(), Event()

    def draft():
        with open_first_layers(open_runner(model), 1)._with_attention():
            cut.set()
            enough.wait(10)

    with ThreadPoolExecutor() as pool:
        drafting = pool.submit(draft)
        cut.wait(10)
        found = pool.submit(state_of, model)
        assert len(list(model.model.layers)) == 1 and not found.done()
        enough.set()
        assert found.result(10) == whole and drafting.result(10) is None


def first(model, name: str):
    """The first module of a name."""
    return next(module for path, module in model.named_modules() if path.endswith(name))


CHANGES = {
    "a weight in place": lambda model: model.lm_head.weight.add_(1),
    "a buffer in place": lambda model: next(model.buffers()).mul_(2),
    "a weight's values": lambda model: setattr(model.lm_head.weight, "data", model.lm_head.weight.data.clone()),
    "a weight": lambda model: setattr(model.lm_head, "weight", torch.nn.Parameter(model.lm_head.weight.clone())),
    "a bias where there was none": lambda model: setattr(model.lm_head, "bias", torch.nn.Parameter(torch.zeros(128))),
    "another dtype": lambda model: model.double(),
    "a module": lambda model: setattr(model.model.layers[0], "mlp", torch.nn.Identity()),
    "a module within one that had none": lambda model: setattr(model.lm_head, "more", torch.nn.Identity()),
    "a forward": lambda model: setattr(model.model.layers[1], "forward", lambda *given, **named: None),
    "a hook": lambda model: model.model.layers[0].register_forward_hook(lambda *given: None),
    "a hook before": lambda model: model.model.layers[0].register_forward_pre_hook(lambda *given: None),
    "an adapter": lambda model: get_peft_model(model, ADAPTER),
}
OF_ADAPTERS = {
    "disabled": lambda model: first(model, "q_proj").enable_adapters(False),
    "merged": lambda model: model.merge_adapter(),
    "scaled": lambda model: first(model, "q_proj").set_scale("default", 3.0),
    "switched": lambda model: (model.add_adapter("other", ADAPTER), model.set_adapter("other")),
}


@pytest.mark.parametrize("change", [*CHANGES, *OF_ADAPTERS])
@torch.no_grad()
def test_a_change_is_seen_at_a_glance_once_and_by_the_state(fresh_tiny, change):
    model = fresh_tiny()
    adapted = get_peft_model(model, ADAPTER) if change in OF_ADAPTERS else model
    glance, before = Glance(model), state_of(model)
    assert not glance.changed() and state_of(model) == before
    {**CHANGES, **OF_ADAPTERS}[change](adapted)
    assert state_of(model) != before
    assert glance.changed() and not glance.changed()


def test_weights_that_are_not_counted_are_no_trouble(fresh_tiny):
    model = fresh_tiny()
    glance = Glance(model)
    with torch.inference_mode():
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(128, 32), requires_grad=False)
    assert glance.changed() and not glance.changed()


def test_passes_are_no_changes(tiny_llama):
    glance, runner = Glance(tiny_llama), open_runner(tiny_llama)
    runner.forward([runner.allocate()], [[5, 6, 7]], [1])
    short = open_first_layers(runner, 1)
    short.forward([short.allocate()], [[5, 6, 7]], [1])
    tiny_llama(input_ids=torch.tensor([[5, 6]]))
    assert not glance.changed()
