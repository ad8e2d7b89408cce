"""The first layers of a model as a model of its own: they draft for the whole (LayerSkip, Elhoushi et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ...data.errors import UserError
from .by_length import RaggedByLength
from .contract import Runner
from .direct import DirectRunner
from .native_runner import NativeRunner
from .ragged import RaggedRunner
from .ragged_attention import ForwardBatch


class FirstLayers:
    """Cuts a runner down to its model's first `layers` layers, then the final norm and the head; the weights are the model's own."""

    def __init__(self, model: nn.Module, layers: int, **how):
        self.layers = layers
        super().__init__(model, **how)
        self._owner, self._name = holder_of_layers(self.model, self.config.num_hidden_layers)
        if layers >= self.config.num_hidden_layers:
            raise UserError(
                f"assistant_early_exit={layers} leaves nothing to save: the model has {self.config.num_hidden_layers} layers, give fewer"
            )

    def _read(self) -> None:
        super()._read()
        self.decoder.blocks = self.decoder.blocks[: self.layers]

    @contextmanager
    def _with_attention(self) -> Iterator[None]:
        with super()._with_attention():
            whole, count = self._owner._modules[self._name], self.config.num_hidden_layers
            # some architectures walk their layers, others count them by the configuration
            self._owner._modules[self._name], self.config.num_hidden_layers = whole[: self.layers], self.layers
            try:
                yield
            finally:
                self._owner._modules[self._name], self.config.num_hidden_layers = whole, count

    def _check(self, plan: ForwardBatch) -> None:
        if len(plan.attended) != self.layers:
            raise UserError(f"{self.config.model_type} does not stop after its first {self.layers} layers: drop assistant_early_exit")


class FirstLayersRagged(FirstLayers, RaggedRunner):
    """The first layers of the model as it is."""


class FirstLayersByLength(FirstLayers, RaggedByLength):
    """The first layers of a model that turns its positions by the length of the whole."""


class FirstLayersDirect(FirstLayers, DirectRunner):
    """The first layers of a model of the direct families."""


class FirstLayersNative(FirstLayers, NativeRunner):
    """The first layers of a model whose steps run natively."""


def open_first_layers(runner: Runner, layers: int) -> FirstLayersRagged | FirstLayersByLength | FirstLayersDirect | FirstLayersNative:
    """Return a runner of the first layers of another runner's model; raises UserError for an architecture without it."""
    if not isinstance(runner, RaggedRunner):
        raise UserError(f"assistant_early_exit leaves out layers, which Seodang cannot do in {runner.config.model_type}: use a draft model")
    kinds = {NativeRunner: FirstLayersNative, DirectRunner: FirstLayersDirect, RaggedByLength: FirstLayersByLength}
    how = {"kv_cache_dtype": runner.kv_cache_dtype} if isinstance(runner, DirectRunner) else {}
    return next((kind for own, kind in kinds.items() if isinstance(runner, own)), FirstLayersRagged)(runner.model, layers, **how)


def holder_of_layers(model: nn.Module, count: int) -> tuple[nn.Module, str]:
    """Return the module that holds the list of the model's `count` layers, and the list's name there; raises UserError unless there is one."""
    holders = [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if len(holders) != 1:
        kind = type(model).__name__
        raise UserError(f"assistant_early_exit needs one list of {count} layers, of which {kind} has {len(holders)}: use a draft model")
    return holders[0]
