"""Several threads on one model: each gets what it would get alone, and the model stays as it was."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from seodang.infer.explain.attention_map import attention_map
from seodang.infer.runners.architecture import transformers_model
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.early_exit import open_first_layers
from seodang.infer.runners.encoder_decoder import EncoderDecoderRunner
from seodang.infer.runners.native_runner import NativeRunner
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.padded import PaddedRunner
from seodang.infer.runners.ragged import RaggedRunner
from seodang.infer.runners.stateful import StatefulRunner

IDS = [5, 9, 17, 33, 5, 9]
SMALL = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OTHERS = {
    "gpt_neox": {**SMALL, "intermediate_size": 64, "max_position_embeddings": 64, "hidden_dropout": 0.5},
    "bloom": {**SMALL, "hidden_dropout": 0.5},
    "mamba": {"vocab_size": 128, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2},
}
RUNNERS = {
    "gpt_neox": RaggedRunner, "llama": NativeRunner, "gpt2": DirectRunner, "lora": RaggedRunner, "bloom": PaddedRunner, "mamba": StatefulRunner,
    "t5": EncoderDecoderRunner,
}  # fmt: skip


def built(kind: str, fresh_tiny) -> torch.nn.Module:
    """A model in training mode, where dropout shows whether a pass has it switched off to its end."""
    torch.manual_seed(0)
    if kind in OTHERS:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **OTHERS[kind]))
    elif kind == "lora":
        model = get_peft_model(fresh_tiny("llama"), LoraConfig(r=2, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False))
    else:
        model = fresh_tiny(kind, **({"activation_function": "tanh"} if kind == "gpt2" else {}))  # which no native step has
    if kind not in ("llama", "gpt2"):  # a hook would take the direct runner's layers away from it
        transformers_model(model).get_input_embeddings().register_forward_hook(lambda *_: time.sleep(0.003))  # so that the threads meet
    return model.train()


def passes(runner) -> torch.Tensor:
    """The logits of a prompt and three steps."""
    row = runner.allocate([7, 8, 3]) if isinstance(runner, EncoderDecoderRunner) else runner.allocate()
    return torch.cat([runner.forward([row], [part], [1]) for part in (IDS[:3], IDS[3:4], IDS[4:5], IDS[5:])])


def together(*calls) -> list[torch.Tensor]:
    with ThreadPoolExecutor(len(calls)) as threads:
        return [done.result() for done in [threads.submit(call) for call in calls]]


def told(model) -> tuple:
    """What a pass lends itself of a model."""
    inner = transformers_model(model)
    config = inner.config.get_text_config()
    return config._attn_implementation, config.num_hidden_layers, [module.training for module in inner.modules()]


@pytest.mark.parametrize("kind", RUNNERS)
def test_runners_of_one_model_run_side_by_side(kind, fresh_tiny):
    model = built(kind, fresh_tiny)
    before, alone = told(model), passes(open_runner(model))
    runners = [open_runner(model) for _ in range(3)]
    assert all(type(runner) is RUNNERS[kind] for runner in runners)
    for logits in together(*(lambda own=own: passes(own) for own in runners)):
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-6)
    assert told(model) == before


def test_a_map_of_attention_and_the_first_layers_run_beside_a_runner(fresh_tiny):
    model = built("gpt_neox", fresh_tiny)
    before, runner = told(model), open_runner(model)
    tasks = [
        lambda: passes(runner),
        lambda: attention_map(model, IDS, 1),
        lambda: passes(open_first_layers(open_runner(model), 1)),
        lambda: attention_map(model, IDS, 0),
    ]
    for found, alone in zip(together(*tasks), [task() for task in tasks]):
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)
    assert told(model) == before
