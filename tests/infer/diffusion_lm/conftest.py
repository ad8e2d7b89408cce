"""A tiny Diffusion-LM in float64, with embeddings that can be read."""

import pytest
import torch

from seodang.infer.diffusion_lm.model import DiffusionLM, DiffusionLMConfig


@pytest.fixture
def tiny_lm():
    """`tiny_lm(seed=0, **config)`: a random model of one's own, whose predictions hang on latents, positions and steps."""

    def build(seed: int = 0, **changes) -> DiffusionLM:
        sizes = {"vocab_size": 11, "embedding_size": 6, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = DiffusionLMConfig(**{**sizes, "max_position_embeddings": 8, "diffusion_steps": 20, **changes})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return DiffusionLM(config).double().eval()

    return build
