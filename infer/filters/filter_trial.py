"""A caller's own filters tried once before anything is computed, on a copy of each, so that what they remember begins with the answer."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from functools import partial
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ..requests.request import Request
from ..runners.contract import Runner
from .pipeline import known_alone
from .user_filters import UserFilter, call_own, takes_ids_first

SHARED = (nn.Module, PreTrainedTokenizerBase, ModuleType, BuiltinFunctionType, type)  # a filter may hold these, and a copy holds the same
HIGHER = 100.0  # above any threshold that a filter has for logits themselves
DEPTH = 5  # how deep these are looked for in what a filter holds


def try_filters(requests: Sequence[Request], runner: Runner) -> None:
    """Call each filter of the requests' own once, on one row as the first request that has it would bring.

    The ids are that request's; the logits, [1, vocab], are made up: one token has nearly all, and ids that the tokenizer has not are dropped.
    Raises UserError for what `call_own` refuses. A filter that cannot be copied is not tried, nor is a module: its first token is its trial.
    """
    tried: set[int] = set()
    for request in requests:
        for own in request.params.filters:
            if id(own) not in tried:
                tried.add(id(own))
                try_filter(own, *as_before_the_first_token(request, runner))


def as_before_the_first_token(request: Request, runner: Runner) -> tuple[Tensor, Tensor]:
    """Made-up logits, [1, vocab], and the ids before the answer's first own token, [1, n], on the model's device."""
    device = next((each.device for each in runner.model.parameters()), torch.device("cpu"))
    logits = -4.0 * torch.arange(1, runner.vocab_size + 1, device=device).float().log()[None]
    return known_alone(logits, request.known_ids), torch.tensor([[*request.prompt_ids, *request.prefix_ids]], device=device)


def try_filter(own: UserFilter, logits: Tensor, history: Tensor) -> None:
    """Call a copy of a filter; raises UserError for what it does wrong, and says so where it would be right with its arguments exchanged.

    One that is right with higher logits is no mistake: it compares them with a number.
    """
    first = copied(own)
    if first is None:
        return
    device = [logits.device] if logits.device.type == "cuda" else []
    ours, theirs = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=device), torch.no_grad():
            try:
                call_own(first, logits.clone(), history.clone())
            except UserError as error:
                if is_right(copied(own), logits + HIGHER, history):
                    return
                if takes_ids_first(own) or not is_right(exchanged(copied(own)), logits, history):
                    raise
                remedy = "exchange its parameters, or derive it from transformers' LogitsProcessor, which is called as there"
                raise UserError(f"{error}: it seems to take (ids, logits), but a filter is called with (logits, ids): {remedy}") from error
    finally:
        random.setstate(ours)
        np.random.set_state(theirs)


def exchanged(own: UserFilter) -> UserFilter:
    """A function of (ids, logits) as a filter."""
    return lambda logits, history: own(history, logits)


def is_right(own: UserFilter, logits: Tensor, history: Tensor) -> bool:
    """Whether `call_own` refuses nothing."""
    try:
        call_own(own, logits.clone(), history.clone())
    except UserError:
        return False
    return True


def copied(own: Any) -> Any:
    """Return a copy of a callable that shares no state with it but models, tokenizers, modules and other functions' own; None for one that has none."""
    if isinstance(own, nn.Module):
        return None
    try:
        if isinstance(own, partial):
            args, keywords = copy.deepcopy((own.args, own.keywords), memo_of(own))
            return partial(copied(own.func), *args, **keywords)
        return copied_function(own) if isinstance(own, FunctionType) else copy.deepcopy(own, memo_of(own))
    except Exception:  # whatever it holds: files, locks, generators
        return None


def copied_function(own: FunctionType) -> FunctionType:
    """A function over copies of what it closes over, of its defaults and attributes, and of the globals that it names."""
    cells = [CellType() for _ in own.__closure__ or ()]
    named = {name: own.__globals__[name] for name in own.__code__.co_names if name in own.__globals__}
    full = [(cell, old.cell_contents) for cell, old in zip(cells, own.__closure__ or ()) if not is_empty(old)]
    names = dict(own.__globals__)
    function = FunctionType(own.__code__, names, own.__name__, None, tuple(cells))
    memo = memo_of([named, [contents for _, contents in full], own.__defaults__, own.__kwdefaults__, vars(own)])
    memo[id(own)] = function  # which may name itself
    names |= copy.deepcopy(named, memo)
    function.__defaults__, function.__kwdefaults__ = copy.deepcopy((own.__defaults__, own.__kwdefaults__), memo)
    vars(function).update(copy.deepcopy(vars(own), memo))
    for cell, contents in full:
        cell.cell_contents = copy.deepcopy(contents, memo)
    return function


def is_empty(cell: CellType) -> bool:
    """Whether nothing was assigned yet to the name that a function closes over."""
    try:
        cell.cell_contents
    except ValueError:
        return True
    return False


def memo_of(value: Any) -> dict[int, Any]:
    """What `copy.deepcopy` is to take for copied already."""
    return {id(each): each for each in shared_in(value.__self__ if isinstance(value, MethodType) else value, DEPTH)}


def shared_in(value: Any, depth: int) -> Iterator[Any]:
    """What a value holds that is not to be copied."""
    if isinstance(value, SHARED):
        yield value
    elif depth and not isinstance(value, Tensor | str | bytes | FunctionType):
        for each in parts_of(value):
            yield from shared_in(each, depth - 1)


def parts_of(value: Any) -> list[Any]:
    """What a collection or an object holds."""
    if isinstance(value, list | tuple | set):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, partial):
        return [value.func, *value.args, value.keywords]
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]
