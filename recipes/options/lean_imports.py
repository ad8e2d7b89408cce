"""What transformers imports with its models, less what speaking has no use for: torch's compiler, its tensors over several processes.

`import transformers.modeling_utils` takes longer than torch and transformers together: functions of it are marked for a compiler, which is imported for
that (and sympy with it), and all folders of models are listed a second time. A command that only lets a model speak compiles nothing and is one process:
there the marks are left out while that module is imported. What asks for the compiler later gets it whole, as loading weights in floats does (torch's meta
device needs it). Where a library has moved, so that this fails, all is imported as usual.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import ModuleType
from typing import Any

VERBS = ("generate", "chat", "score", "explain", "serve")  # that train nothing
COMPILER = "torch._dynamo"
INDEXING = f"{COMPILER}._trace_wrapped_higher_order_op"


def import_models() -> None:
    """Import what transformers' models are made of, without what only a compiler or several processes need."""
    if COMPILER in sys.modules or "transformers.modeling_utils" in sys.modules:
        return
    import torch
    import transformers  # which is to find torch's own

    with suppress(Exception), ExitStack() as stack:  # whatever a library that has moved raises: imported as usual, it may not
        stack.enter_context(marks_left_out(torch))
        stack.enter_context(replaced(torch.distributed, "is_available", lambda: False))
        stack.enter_context(listed_once())
        stack.enter_context(replaced(transformers.utils, "is_scipy_available", lambda: False))  # where it is installed, losses of object detection import it
        importlib.import_module("transformers.modeling_utils")
        importlib.import_module("transformers.masking_utils")


@contextmanager
def marks_left_out(torch: ModuleType) -> Iterator[None]:
    """Have functions marked for the compiler by nothing, and the one class of it that masks use imported when it is first made."""
    compiler, indexing = ModuleType(COMPILER), ModuleType(INDEXING)
    for name in ("disable", "allow_in_graph", "disallow_in_graph", "assume_constant_result", "nonstrict_trace"):
        setattr(compiler, name, unmarked)

    class TransformGetItemToIndex:
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return importlib.import_module(INDEXING).TransformGetItemToIndex(*args, **kwargs)

    indexing.TransformGetItemToIndex = TransformGetItemToIndex
    sys.modules[COMPILER], sys.modules[INDEXING] = compiler, indexing
    torch._dynamo = compiler
    try:
        with replaced(torch.compiler, "disable", unmarked), replaced(torch.compiler, "allow_in_graph", unmarked):
            yield
    finally:
        del sys.modules[COMPILER], sys.modules[INDEXING]
        vars(torch).pop("_dynamo", None)  # torch imports it when it is asked for


def unmarked(function: Callable | None = None, *args: Any, **kwargs: Any) -> Callable:
    """Return a function as it is; as a decorator with arguments, what does that."""
    return (lambda each: each) if function is None else function


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Have an attribute be another for a while."""
    former = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, former)


@contextmanager
def listed_once() -> Iterator[None]:
    """Let the package of all models have what transformers has listed of it already."""
    from pathlib import Path

    from transformers.utils import import_utils

    listed = import_utils.define_import_structure
    models = Path(sys.modules["transformers"].__file__).parent / "models"

    def known(module_path: Any, prefix: str | None = None) -> Any:
        if prefix is not None or Path(module_path) != models / "__init__.py":
            return listed(module_path, prefix)
        found = listed(models, prefix="models")  # remembered from the import of transformers, which put its own modules beside them
        inside = {needs: {name.removeprefix("models."): objects for name, objects in held.items() if name.startswith("models.")} for needs, held in found.items()}
        return {needs: held for needs, held in inside.items() if held}

    with replaced(import_utils, "define_import_structure", known):
        yield
