"""Cases of a test that hardly differ: some are run often, the others by the full tests alone."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pytest


def full_but(often: Collection[str], cases: Mapping[str, Any] | Iterable[str]) -> list[Any]:
    """The cases as pytest's parameters under their names, all but those named `often` marked full; names alone are their own values."""
    values = cases if isinstance(cases, Mapping) else {name: name for name in cases}
    return [pytest.param(value, id=name, marks=() if name in often else pytest.mark.full) for name, value in values.items()]
