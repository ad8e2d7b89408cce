"""A live engine of a tiny model, and a model that may think and call tools."""

import copy
import time
from pathlib import Path

import pytest
import trl

from seodang.infer.engine.live import LiveEngine


@pytest.fixture
def engine(tiny_llama, tiny_tokenizer):
    """Of few rows, for which few may wait."""
    with LiveEngine(tiny_llama, tiny_tokenizer, max_rows=8, max_waiting=4) as engine:
        yield engine


@pytest.fixture(scope="session")
def talker(wordy_tokenizer, tiny):
    """A random model with Qwen3's template: it may think between tags, and writes calls between others."""
    tokenizer = copy.deepcopy(wordy_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
    return tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id), tokenizer


@pytest.fixture
def is_empty():
    """`is_empty(engine)`: whether, soon, nothing is in hand any more: no request waits or runs, and every slot is free but for those of the prefix cache."""

    def check(engine: LiveEngine) -> bool:
        until, empty = time.monotonic() + 20, False
        while not empty and time.monotonic() < until:
            time.sleep(0.005)
            held = engine._loop.engine.runner.live - len(engine.prefix_cache.slots)
            empty = held == engine.health().running == engine.health().waiting == 0
        return empty

    return check
