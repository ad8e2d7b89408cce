"""What the numbers of a model hang on: two passes in one state give the same keys and values."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import chain, repeat
from typing import Any

from torch import Tensor, nn

from ..runners.layers import is_foreign, is_replaced
from ..runners.model_lock import locked
from ..runners.open import kv_cache_dtype_of


def state_of(model: nn.Module) -> Hashable:
    """Return what the numbers of a model hang on, as far as torch and peft tell: equal states have equal keys and values.

    How its cache is kept; its modules and tensors with how often each was changed in place; hooks; adapters, those active, disabled, merged, and their scales.
    """
    found: list[Hashable] = [kv_cache_dtype_of(model)]
    with locked(model):  # another thread's pass may have it changed
        modules = list(model.modules())
    for module in modules:
        found += [id(module), is_replaced(module), *module._forward_pre_hooks]
        found += [handle for handle, hook in module._forward_hooks.items() if is_foreign(hook)]
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                found.append((tensor.data_ptr(), version(tensor), tensor.dtype))
        if hasattr(type(module), "merged_adapters"):  # peft's
            found.append((module.disable_adapters, *map(str, (module.active_adapters, module.merged_adapters, vars(module).get("scaling")))))
    return tuple(found)


def version(tensor: Tensor) -> int:
    """How often the tensor was changed in place; those of inference mode are not counted."""
    return 0 if tensor.is_inference() else tensor._version


def versions(tensors: list[Tensor]) -> list[int]:
    """How often each tensor was changed in place."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:  # some are of inference mode
        return list(map(version, tensors))


def adapters_of(module: nn.Module) -> tuple:
    """What a module of peft's says of its adapters."""
    return module.disable_adapters, list(module.active_adapters), list(module.merged_adapters), dict(vars(module).get("scaling") or {})


class Glance:
    """Tells at a glance whether a model may have changed since it was last asked: ten times cheaper than its state.

    It says yes whenever the state has changed, and may say so where it has not.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._take_stock()

    def changed(self) -> bool:
        """Whether something is not as it was at the last call, or when this was made."""
        with locked(self.model):
            if self._look() == self._seen:
                return False
            self._take_stock()
        return True

    def _take_stock(self) -> None:
        """Note where modules keep what they have: the same dictionaries, as long as the same modules stand in each other."""
        with locked(self.model):
            modules = list(self.model.modules())
            self._children = [module._modules for module in modules if module._modules]
            self._leaves = [module._modules for module in modules if not module._modules]
            self._own = [vars(module) for module in modules]
            self._hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
            holders = [own for module in modules for own in (module._parameters, module._buffers)]
            self._holders, self._bare = [own for own in holders if own], [own for own in holders if not own]
            self._adapted = [module for module in modules if hasattr(type(module), "merged_adapters")]
            self._seen = self._look()

    def _look(self) -> list[Any]:
        tensors = [tensor for tensor in chain.from_iterable(map(dict.values, self._holders)) if tensor is not None]
        return [
            kv_cache_dtype_of(self.model),
            list(map(id, chain.from_iterable(map(dict.values, self._children)))),
            any(self._leaves), any(self._bare),
            list(map(id, map(dict.get, self._own, repeat("forward")))),
            list(chain.from_iterable(self._hooks)) if any(self._hooks) else [],
            list(map(id, tensors)), list(map(Tensor.data_ptr, tensors)), versions(tensors),
            list(map(adapters_of, self._adapted)),
        ]  # fmt: skip
