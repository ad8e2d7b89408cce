"""A model lent for a pass: what is changed in it is put back before another thread goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_MAKING_ONE = threading.Lock()


@contextmanager
def locked(model: nn.Module) -> Iterator[None]:
    """Keep other threads from lending the model meanwhile; the thread that has it may lend it again."""
    with _MAKING_ONE:
        lock = _LOCKS.setdefault(model, threading.RLock())
    with lock:
        yield


@contextmanager
def use_attention(model: nn.Module, configs: Sequence[PreTrainedConfig], implementation: str) -> Iterator[None]:
    """Have the model attend by this implementation, and put its own back."""
    with locked(model):
        before = [config._attn_implementation for config in configs]
        try:
            for config in configs:
                config._attn_implementation = implementation
            yield
        finally:
            for config, own in zip(configs, before):
                config._attn_implementation = own


def configs_of(model: nn.Module) -> list[PreTrainedConfig]:
    """Return the configurations that say how the model attends: its own, and those of models within it."""
    return list({id(module.config): module.config for module in model.modules() if isinstance(module, PreTrainedModel)}.values())
