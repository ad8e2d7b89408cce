"""What computes the passes of a runner: which kind it is, its kernel, weights and threads, and why not the native step."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ..kernels.quantised_linear import Quantised
from ..runners.contract import Runner
from ..runners.direct import DirectRunner
from ..runners.direct_encoder_decoder import DirectEncoderDecoder
from ..runners.encoder_decoder import EncoderDecoderRunner
from ..runners.native.library import built_for
from ..runners.native_runner import NativeRunner, kept_from
from ..runners.padded import PaddedRunner
from ..runners.ragged import RaggedRunner
from ..runners.recomputing import RecomputingRunner
from ..runners.recurrent import RecurrentRunner
from ..runners.stateful import StatefulRunner
from .stats import Runtime

# the first that a runner is an instance of
NAMES: dict[type, str] = {
    NativeRunner: "native", DirectRunner: "direct", DirectEncoderDecoder: "direct", RecurrentRunner: "recurrent", EncoderDecoderRunner: "padded",
    RaggedRunner: "ragged", PaddedRunner: "padded", StatefulRunner: "stateful", RecomputingRunner: "recomputing",
}  # fmt: skip
_TOLD: WeakKeyDictionary[Runner, Told] = WeakKeyDictionary()


class Told(NamedTuple):
    """What was found out of a runner, in which state of it; `decoder`, what a direct one reads weights by, is another once `refresh` has looked at them."""

    decoder: ReferenceType | None
    state: tuple[bool, torch.dtype, torch.device, int]
    runtime: Runtime


def runtime_of(runner: Runner) -> Runtime:
    """Return what computes the passes of a runner, as it and its model are now; looked at anew where they have changed."""
    weight = runner.model.get_input_embeddings().weight
    decoder, covers = (runner.decoder, runner.covers) if isinstance(runner, DirectRunner) else (None, False)
    state = covers, weight.dtype, weight.device, torch.get_num_threads()
    told = _TOLD.get(runner)
    if told is None or told.state != state or (told.decoder and told.decoder()) is not decoder:
        told = _TOLD[runner] = Told(decoder and ref(decoder), state, found_out(runner, weight))
    return told.runtime


def found_out(runner: Runner, weight: Tensor) -> Runtime:
    """Look at a runner and its model."""
    device = weight.device.type
    reason = kept_from(runner) if device == "cpu" else None
    name = next((name for kind, name in NAMES.items() if isinstance(runner, kind)), type(runner).__name__.removesuffix("Runner").lower())
    if name == "native" and (reason is not None or device != "cpu"):
        name = "direct"
    if isinstance(runner, DirectRunner) and not runner.covers:
        name = "ragged"
    kernel = built_for() if name == "native" else f"torch {torch.backends.cpu.get_cpu_capability() if device == 'cpu' else device}"
    return Runtime(name, kernel, weights_of(runner.model, weight), torch.get_num_threads(), reason, getattr(runner, "kv_cache_dtype", None) or "auto")


def weights_of(model: nn.Module, weight: Tensor) -> str:
    """What most of a model's linear layers are kept in; `weight` is its embedding."""
    kinds = Counter(module.kind for module in model.modules() if isinstance(module, Quantised))
    return kinds.most_common(1)[0][0] if kinds else str(weight.dtype).removeprefix("torch.")
