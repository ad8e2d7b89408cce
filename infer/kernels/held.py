"""How much memory tensors take that lie anywhere in the objects of a library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor


def held_bytes(objects: Iterable[Any]) -> int:
    """Return how many bytes the tensors in these objects take; memory that several share counts once."""
    storages = {}
    for tensor in tensors_in(objects, set()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def tensors_in(found: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors in lists, tuples, mappings and objects' own attributes, each object once."""
    if isinstance(found, Tensor):
        yield found
        return
    if id(found) in seen or isinstance(found, str | bytes | int | float | type | None):
        return
    seen.add(id(found))
    if isinstance(found, Mapping):
        inner: Iterable[Any] = found.values()
    elif isinstance(found, list | tuple | set | frozenset) or not hasattr(found, "__dict__"):
        inner = found if isinstance(found, Iterable) else ()
    else:
        inner = vars(found).values()
    for each in inner:
        yield from tensors_in(each, seen)
