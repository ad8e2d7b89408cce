"""The runner for architectures that carry a state: the same calls, the same logits as the model's own."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from seodang.data.errors import UserError
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.stateful import StatefulRunner

HYBRID = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
STATEFUL = {
    "mamba": {"num_hidden_layers": 2, "state_size": 4},
    "rwkv": {"num_hidden_layers": 2, "attention_hidden_size": 32},
    "lfm2": {**HYBRID, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
}


def build(kind: str, settings: dict):
    sizes = {"vocab_size": 128, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **settings})).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def ids(n: int, seed: int) -> list[int]:
    return torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def whole(model, tokens: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


@pytest.mark.parametrize("kind", STATEFUL)
def test_stateful_logits_equal_the_models_own(kind):
    model = build(kind, STATEFUL[kind])
    runner = open_runner(model)
    assert isinstance(runner, StatefulRunner) and not runner.capabilities.truncate
    a, b = ids(10, 1), ids(7, 2)
    rows = [runner.allocate(), runner.allocate()]
    first = runner.forward(rows, [a[:6], b[:3]], [1, 2])
    [fork] = runner.fork([rows[0]])
    second = runner.forward([rows[0], rows[1], fork], [a[6:8], b[3:4], [5]], [2, 1, 1])
    want_a, want_b = whole(model, a), whole(model, b)
    torch.testing.assert_close(first, torch.cat([want_a[5:6], want_b[1:3]]), rtol=0, atol=5e-5)
    torch.testing.assert_close(second[:3], torch.cat([want_a[6:8], want_b[3:4]]), rtol=0, atol=5e-5)
    torch.testing.assert_close(second[3], whole(model, [*a[:6], 5])[-1], rtol=0, atol=5e-5)
    with pytest.raises(UserError, match=f"{kind} carries a state"):
        runner.truncate(rows[0], 3)


def test_a_state_is_forgotten_as_a_whole_where_it_cannot_be_cut():
    model = build("mamba", STATEFUL["mamba"])
    runner = open_runner(model)
    slot = runner.allocate()
    runner.forward([slot], [ids(5, 1)], [1])
    runner.truncate(slot, 0)
    torch.testing.assert_close(runner.forward([slot], [ids(4, 2)], [1]), whole(model, ids(4, 2))[-1:], rtol=0, atol=5e-5)


def test_refuses_by_name_a_state_that_the_model_keeps_to_itself():
    settings = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "lru_width": 32, "head_dim": 8}
    runner = StatefulRunner(build("recurrent_gemma", {**settings, "intermediate_size": 64, "block_types": ["recurrent", "attention"]}))
    with pytest.raises(UserError, match="recurrent_gemma does not hand out its state"):
        runner.forward([runner.allocate()], [[5, 6]], [1])
