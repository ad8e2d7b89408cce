"""The first layers of a model as its draft."""

import copy

import pytest
import torch

from seodang.infer.engine.core import Engine
from seodang.infer.runners.open import open_runner


@pytest.mark.parametrize("kind", ["llama", "gpt2", "cohere"])
def test_an_early_exit_is_the_model_without_its_last_layers(tiny, kind):
    model = copy.deepcopy(tiny(kind, **{"n_layer" if kind == "gpt2" else "num_hidden_layers": 4})).double()
    short = copy.deepcopy(model)
    name = "h" if kind == "gpt2" else "layers"
    setattr(short.base_model, name, getattr(short.base_model, name)[:3])
    short.config.num_hidden_layers = 3
    first = Engine(open_runner(model)).first_layers(3)
    row, ids = first.allocate(), [5, 6, 7, 8]
    logits = torch.cat([first.forward([row], [ids[:3]], [3]), first.forward([row], [ids[3:]], [1])])
    with torch.no_grad():
        torch.testing.assert_close(logits, short(torch.tensor([ids])).logits[0], atol=1e-9, rtol=0)
    assert len(getattr(model.base_model, name)) == model.config.num_hidden_layers == 4
