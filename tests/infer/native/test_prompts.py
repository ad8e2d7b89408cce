"""Prompts, read natively: to the bit what their ids get one by one, beside float64, and mixed with steps."""

import pytest
import torch

from seodang.infer.runners.native_runner import NativeRunner

ODD = {"hidden_size": 54, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "intermediate_size": 75, "vocab_size": 131, "attention_bias": True}
KINDS = {
    "odd sizes": ("llama", ODD),
    "heads of 64 in threes": ("llama", {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64}),
    "heads of 128": ("qwen3", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128}),
    "heads of 40, a window": ("mistral", {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 40, "sliding_window": 70}),
    "a narrow window": ("mistral", {"sliding_window": 5}),
    "soft bounds": ("gemma2", {"sliding_window": 33}),
}  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16]
BUILDS = [None, ("x86-64", "sse4_1"), ("haswell", "avx2")]


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build[0] if build else "native")
@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_gives_to_the_bit_what_its_ids_give_one_by_one(varied, other_build, natively, name, build, dtype):
    if build:
        other_build(*build)
    kind, changes = KINDS[name]
    runner = NativeRunner(varied(kind, max_position_embeddings=1024, num_hidden_layers=2, **changes).to(dtype))
    tokens = ids(290)
    prompt, steps = runner.allocate(), runner.allocate()
    natively.clear()
    whole = runner.observe([prompt], [tokens], [len(tokens)], [1])
    assert natively == [len(tokens)]
    for at in range(0, len(tokens)):
        alone = runner.observe([steps], [[tokens[at]]], [1], [1])
        assert torch.equal(alone.logits[0], whole.logits[at]) and torch.equal(alone.states[1][0], whole.states[1][at]), at
