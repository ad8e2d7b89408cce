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
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
