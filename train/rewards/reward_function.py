"""A Python function as a reward: read from a file, given the columns that it takes, and checked by its signature against those that there are."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ...data.errors import UserError
from ...infer.checkpoint.manifest import fingerprint

Reward = Callable[..., list[float]]

CALL_ARGUMENTS = ("prompts", "completions")


@dataclass(frozen=True)
class Parameters:
    """The names that a reward function takes, those that it cannot do without, and whether it takes any other as well."""

    names: frozenset[str]
    required: tuple[str, ...]
    takes_all: bool

    def select(self, given: dict[str, Any]) -> dict[str, Any]:
        """Of some arguments those that the function takes."""
        return {name: value for name, value in given.items() if self.takes_all or name in self.names}


def parameters_of(reward: Reward) -> Parameters:
    """What a function takes; raises UserError for one that cannot be called by names, or takes no completions."""
    name = reward_name(reward)
    if inspect.iscoroutinefunction(reward):
        raise UserError(f"reward {name} is asynchronous: give a plain function")
    try:
        parameters = inspect.signature(reward).parameters.values()
    except ValueError:  # one written in C may have none to show
        return Parameters(frozenset(), (), takes_all=True)
    if unnamed := [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]:
        raise UserError(f"reward {name} takes {unnamed[0]} by its place alone: rewards are called by names, take the / out of its parameters")
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if not takes_all and "completions" not in (names := [p.name for p in named]):
        raise UserError(f"reward {name} takes {', '.join(names) or 'nothing'}, but not completions: it must be {name}(prompts, completions, **columns)")
    return Parameters(frozenset(p.name for p in named), tuple(p.name for p in named if p.default is p.empty), takes_all)


def check_columns(rewards: Sequence[Reward], rows: Sequence[dict[str, Any]], also: Sequence[str] = ()) -> None:
    """Refuse a reward that needs a column which no row has, or for one that is `in_every_record` some row lacks.

    `also` names what a trainer gives beside the columns.
    """
    there = sorted({name for row in rows for name in row.get("columns") or {}})
    for reward in rewards:
        check_columns(getattr(reward, "parts", ()), rows, also)
        for needed in parameters_of(reward).required:
            if needed in CALL_ARGUMENTS or needed in also:
                continue
            if needed not in there:
                hint = did_you_mean(needed, [*CALL_ARGUMENTS, *there], cutoff=0.8) or ": add it"
                raise UserError(f"reward {reward_name(reward)} needs the column {needed}, but the records have {', '.join(there) or 'no columns'}{hint}")
            lacking = next((row for row in rows if (row.get("columns") or {}).get(needed) is None), None)
            if lacking is not None and getattr(inspect.unwrap(reward), "in_every_record", False):
                raise UserError(f"reward {reward_name(reward)} needs the column {needed}, which {lacking.get('where') or 'a record'} does not have: add it")


def with_all_columns(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in which every column is there, None where a record lacks it: rewards are given whole columns."""
    names = dict.fromkeys(name for row in rows for name in row.get("columns") or {})
    return [{**row, "columns": {name: (row.get("columns") or {}).get(name) for name in names}} for row in rows]


def reward_name(reward: Reward) -> str:
    """What a reward is called in messages and logs."""
    return getattr(reward, "__name__", type(reward).__name__)


def load_function(text: str) -> Reward:
    """The function that `path/to/file.py:function` names; it is given of the columns those that it takes.

    Raises UserError where there is no such file or function, or the file cannot be executed.
    """
    path, _, name = text.rpartition(":")
    if not path.endswith(".py") or not name:
        raise UserError(f"reward {text!r} must name a file and a function in it, as path/to/file.py:function")
    if not Path(path).is_file():
        raise UserError(f"reward {text!r}: there is no file {path}")
    module = _executed(Path(path), text)
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"reward {text!r}: {path} has no function {name}{did_you_mean(name, vars(module))}")
    return with_named_columns(function)


def _executed(path: Path, text: str) -> Any:
    """The file as a module, under a name that no other module has: a dataclass looks for the module that it is defined in."""
    spec = importlib.util.spec_from_file_location(f"seodang_reward_{fingerprint(str(path.resolve()))}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise UserError(f"reward {text!r}: {path} cannot be executed: {describe_error(error)}") from error
    return module


def with_named_columns(function: Reward) -> Reward:
    """The function as a reward: of prompts, completions and columns it is given those that it names, or all where it takes `**columns`."""
    parameters = parameters_of(function)

    # Wrapped again (`CheckedReward`), it is called with nothing but what the function takes.
    def reward(prompts: Sequence[Any] = (), completions: Sequence[str] = (), **columns: Any) -> list[float]:
        return function(**parameters.select({"prompts": prompts, "completions": completions, **columns}))

    reward.__name__, reward.__wrapped__ = reward_name(function), function  # its own signature stays to be seen
    return reward


def describe_error(error: Exception) -> str:
    """An error in a line, with the file and line that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames and not isinstance(error, SyntaxError) else ""  # which says it itself
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The nearest known name as the end of an error message; empty where none is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f": did you mean {near[0]}?" if near else ""
