"""What training draws at random: an epoch's order, which hangs on the epoch alone, and numbers that nothing else may use up."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def order_by_epoch(dataloader: Any, seed: int, epoch: int) -> None:
    """Let the order of an epoch depend on the seed and the epoch alone, whatever was drawn before.

    Without, trl's RepeatSampler and transformers' LengthGroupedSampler go on where the epoch before left off, which a resumed run has not seen;
    and behind the layers that several processes and a resumed epoch put around a sampler, accelerate does not tell it the epoch.
    """
    layer = _beneath(dataloader)
    while layer is not None:
        if hasattr(layer, "generator"):
            layer.generator = (layer.generator or torch.Generator()).manual_seed(seed + epoch)
        if hasattr(layer, "set_epoch"):
            layer.set_epoch(epoch)
        layer = _beneath(layer)


def _beneath(layer: Any) -> Any:
    """What a data loader, or a sampler of batches, takes its indices from."""
    found = getattr(layer, "batch_sampler", None)
    return getattr(layer, "sampler", None) if found is None else found


@contextmanager
def preserve_random_state(device: torch.device) -> Iterator[None]:
    """Put Python's, numpy's and torch's random states back as they were, on the CPU and on `device`."""
    state = random_state(device)
    try:
        yield
    finally:
        restore_random_state(state, device)


def random_state(device: torch.device) -> tuple[Any, ...]:
    """Python's, numpy's and torch's random states, on the CPU and on `device`."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def restore_random_state(state: tuple[Any, ...], device: torch.device) -> None:
    """Put back what `random_state` gave."""
    python, arrays, cpu, gpu = state
    random.setstate(python)
    np.random.set_state(arrays)
    torch.set_rng_state(cpu)
    if gpu is not None:
        torch.cuda.set_rng_state(gpu, device)
