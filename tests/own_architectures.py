"""Tiny random models of our own architectures."""

import pytest
import torch

from seodang.infer.architectures.lstm import LSTMConfig, LSTMForConditionalGeneration
from seodang.infer.architectures.transformer import TransformerConfig, TransformerForConditionalGeneration

ENDS = {"vocab_size": 128, "d_model": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
TRANSFORMER = {**ENDS, "encoder_layers": 2, "num_heads": 4, "d_ff": 64}
# with 0.5 throughout it says one token whatever it reads: what the feed-forward layers and the norms add outweighs that
DEVIATIONS = {"transformer": {"embed": 0.2, "norm": 0.1, "feed_forward": 0.1, "cross": 0.3}}
LSTM = {**ENDS, "num_layers": 2}


def build(kind: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes):
    """A model in evaluation mode, all of whose weights are random, the norms' and the biases too, and large enough that its distributions are not flat."""
    config, model_class = {
        "transformer": (TransformerConfig(**{**TRANSFORMER, **changes}), TransformerForConditionalGeneration),
        "lstm": (LSTMConfig(**{**LSTM, **changes}), LSTMForConditionalGeneration),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
        for name, parameter in model.named_parameters():
            scale = next((scale for part, scale in DEVIATIONS.get(kind, {}).items() if part in name), 0.5)
            torch.nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0, std=scale)
    return model.to(dtype).eval()


@pytest.fixture(scope="session")
def own():
    """`own(kind, **config)`: a random float64 model of ours, built once for each call's arguments; do not change its weights."""
    built = {}

    def get(kind: str, **changes):
        key = (kind, repr(sorted(changes.items())))
        if key not in built:
            built[key] = build(kind, **changes)
        return built[key]

    return get


@pytest.fixture
def fresh_own():
    """`fresh_own(kind, ...)`: the same, to be changed."""
    return build
