"""Calls of the functions that a caller brings along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...data.errors import UserError


def called(option: str, function: Callable, *args: Any) -> Any:
    """Call a function that came as a setting; what it raises comes as a UserError with the setting's and the function's name."""
    try:
        return function(*args)
    except Exception as error:  # it is the caller's: anything may come out of it
        raise UserError(f"{option} {name_of(function)} raised {type(error).__name__}: {error}") from error


def name_of(function: Callable) -> str:
    """What an error calls a function; an object by its type."""
    return getattr(function, "__name__", type(function).__name__)
