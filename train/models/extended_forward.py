"""Further outputs of a module's forward, put on the one instance: what a stage needs of an architecture whose code is not ours."""

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn

Forward = Callable[..., Any]  # a function of the module and of what it is called with


def extend_forward(module: nn.Module, name: str, extension: Callable[[Forward], Forward], *, speaks_as_before: bool = False) -> None:
    """Give the module the forward that `extension` makes of the one it has; nothing where it has an extension of this name.

    The forward before is handed over as a function of the module, so that a deep copy of the module calls its own. The class's forward stays
    where it is, `type(module).forward`. `speaks_as_before` says that without its further arguments the module answers as it did, so that the
    engine, which reads that word from the forward, may compute past it.
    """
    if name in extensions_of(module):
        return
    before = vars(module).get("forward")
    function = module.forward.__func__
    forward = extension(function)
    forward.speaks_as_before = speaks_as_before and (before is None or getattr(before, "speaks_as_before", False))
    forward.extension, forward.before = name, None if before is None else function
    module.forward = MethodType(forward, module)


def restore_forward(module: nn.Module, name: str) -> None:
    """Take the extension of this name off again. Raises ValueError where it is not the outermost, for what came after has its forward inside."""
    names = extensions_of(module)
    if name not in names:
        return
    if names[0] != name:
        raise ValueError(f"{names[0]} was put around {name}: restore it first")
    if (before := module.forward.before) is None:
        del module.forward
    else:
        module.forward = MethodType(before, module)


def extensions_of(module: nn.Module) -> list[str]:
    """The names of a module's extensions, the outermost first."""
    names, forward = [], vars(module).get("forward")
    while forward is not None:
        if (name := getattr(forward, "extension", None)) is not None:
            names.append(name)
        forward = getattr(forward, "before", None)
    return names


def release_from_accelerate(model: nn.Module) -> None:
    """Take the autocast that an earlier Trainer's accelerate left around the model's forward off again, so that the next one puts it on anew.

    Extended from outside, the forward would compute beyond the autocast, and accelerate prepares no model twice. There is no public call that
    undoes both.
    """
    if getattr(model, "_is_accelerate_prepared", False) and "_original_forward" in vars(model):
        before = vars(model).pop("_original_forward")
        if getattr(before, "__func__", None) is type(model).forward:
            del model.forward
        else:
            model.forward = before
        model._is_accelerate_prepared = False
