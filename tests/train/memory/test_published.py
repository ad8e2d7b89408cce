"""Published configurations, by the numbers that their makers give."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from seodang.infer.checkpoint import without_weights
from seodang.infer.checkpoint.without_weights import load_without_weights, model_of_shapes

CONFIGS = Path(__file__).parents[3] / "benchmarks" / "configs"


@pytest.mark.parametrize(("name", "weights"), [("llama-3.1-8b", 8_030_261_248), ("qwen3-32b", 32_762_123_264), ("gpt-oss-20b", 20_914_757_184)])
def test_a_configuration_alone_gives_the_published_number_of_weights(name, weights):
    load_without_weights()
    try:
        model = model_of_shapes(str(CONFIGS / f"{name}.json"), AutoModelForCausalLM, torch.bfloat16, {})
    finally:
        without_weights._BUILT.set(None)
    assert sum(parameter.numel() for parameter in model.parameters()) == weights
    assert all(parameter.is_meta for parameter in model.parameters())
