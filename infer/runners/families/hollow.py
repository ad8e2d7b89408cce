"""Models without weights, to be filled with what a file holds."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights, no_tie_weights


def hollow(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Return the model that `build` makes, its weights holding nothing and tied to nothing; what else it computes as it is built is there."""
    with _EmptyOnMeta(), no_init_weights(), no_tie_weights():
        return build()


class _EmptyOnMeta(TorchFunctionMode):
    """Have weights take no memory. What else a model computes as it is built stays on the CPU: on the meta device torch imports its compiler for it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.empty and not (kwargs or {}).get("device"):
            kwargs = {**(kwargs or {}), "device": "meta"}
        return function(*args, **(kwargs or {}))
