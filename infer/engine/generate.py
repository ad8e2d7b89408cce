"""Prompts to answers: all at once, one by one as they finish, or token by token."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ..requests.events import Event, Finished, Result
from ..requests.generation import Generation
from ..runners.open import open_runner
from .core import MAX_ROWS, Engine
from .params import SamplingParams
from .prefix_cache import PrefixCache
from .prompts import Params, Prompt, new_requests


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    params: Params = None,
    *,
    trace: bool = False,
    prefix_cache: PrefixCache | None = None,
    literal: bool | None = None,
    max_rows: int = MAX_ROWS,
    on_error: str | None = None,
) -> list[Result]:
    """Answer every prompt; `num_return_sequences` results a prompt, in the order of the prompts.

    A text is continued as it stands, messages (a list, or a Dialogue with tools) go through the chat template, ids are taken as they are.
    `params` are one for all or one a prompt; None, for all or for one, takes the checkpoint's own settings (its generation_config: a
    temperature, beams, forced tokens), and where it has none the likeliest tokens, as `SamplingParams()` does in any case. At most
    `max_rows` answers grow at the same time. With `trace`, each result holds what was observed at every step. A `prefix_cache` keeps what
    the model has read: a prompt that begins as an earlier one (the next turn of a talk) costs only what is new. What looks like a control
    token inside messages is text, in a prompt that is a text the control token; `literal`, True or False, makes it the one or the other in
    both. Raises UserError, before anything is computed, for a prompt that is empty or too long for the model with its `max_new_tokens`, for
    options that the strategy or the model cannot honour, and for a filter of the caller's that fails in its trial.

    What goes wrong later (a filter or grammar that leaves no token, a beam search without an end, a function of the caller's that raises) is
    its prompt's alone: with `on_error="result"` that prompt's results have the finish_reason "error" and say why, and the others are what they
    would have been; with "raise" the UserError ends the call. Without, one prompt raises and several do not.
    """
    how = {"trace": trace, "prefix_cache": prefix_cache, "literal": literal, "max_rows": max_rows, "on_error": on_error}
    results = answers(model, tokenizer, prompts, params, **how)
    return sorted(results, key=lambda result: (result.prompt_index, result.choice))


def answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    params: Params = None,
    *,
    trace: bool = False,
    prefix_cache: PrefixCache | None = None,
    literal: bool | None = None,
    max_rows: int = MAX_ROWS,
    on_error: str | None = None,
    ahead: int | None = None,
) -> Iterator[Result]:
    """As `generate`, and raises as it does, but each result comes as soon as it is there; `result.prompt_index` counts the prompts.

    With `ahead`, no prompt is begun that stands so many places behind the first that is not answered: whoever puts the results into the
    order of the prompts never holds more.
    """
    if on_error not in (None, "raise", "result"):
        raise UserError(f'on_error must be "raise" or "result", got {on_error!r}')
    engine, generations = prepare(model, tokenizer, prompts, params, trace, prefix_cache, max_rows, literal)
    raises = len(generations) == 1 if on_error is None else on_error == "raise"
    return results(run(engine, generations, raises, ahead), generations, trace)


def results(events: Iterator[Event], generations: Sequence[Generation], trace: bool) -> Iterator[Result]:
    """Return the result of each answer that finishes, with its prompt's events where they are traced; the generations let it go."""
    traces: dict[int, list[Event]] = {generation.request.index: [] for generation in generations}
    left = [generation.request.params.num_return_sequences for generation in generations]
    for event in events:
        if trace:
            traces[event.prompt_index].append(event)
        if isinstance(event, Finished):
            result = generations[event.prompt_index].results[event.choice]
            left[event.prompt_index] -= 1
            if not left[event.prompt_index]:
                generations[event.prompt_index].let_go()
            yield replace(result, trace=traces[event.prompt_index]) if trace else result  # all of a prompt's answers share one list


def stream(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    params: SamplingParams | None = None,
    *,
    trace: bool = False,
    prefix_cache: PrefixCache | None = None,
    literal: bool | None = None,
) -> Iterator[Event]:
    """Answer one prompt, token by token, by the settings given or the checkpoint's own; the texts of the events join to the answer's text.

    Raises UserError as `generate` does, at once and not at the first event; what goes wrong later is raised in its place among the events.
    """
    return run(*prepare(model, tokenizer, [prompt], params, trace, prefix_cache, MAX_ROWS, literal), raises=True)


def prepare(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    params: Params,
    trace: bool,
    prefix_cache: PrefixCache | None,
    max_rows: int,
    literal: bool | None = None,
) -> tuple[Engine, list[Generation]]:
    """Open an engine and make a request of every prompt before any of them is run; raises UserError as `generate` does."""
    runner = open_runner(model) if prefix_cache is None else prefix_cache.runner_for(model)
    engine = Engine(runner, max_rows, prefix_cache)
    return engine, [Generation(request) for request in new_requests(model, tokenizer, prompts, params, engine, trace, literal)]


def run(engine: Engine, generations: Sequence[Generation], raises: bool = False, ahead: int | None = None) -> Iterator[Event]:
    """Run the requests together to their ends and yield what happens; cache slots are given back if the caller stops early.

    With `raises`, the first request that fails ends them all by its error. With `ahead`, each waits until it is among so many from the first
    that is not done.
    """
    events: deque[Event] = deque()
    submitted = first = 0
    try:
        going = True
        while going or submitted < len(generations):
            while first < len(generations) and generations[first].done:
                first += 1
            for generation in generations[submitted : None if ahead is None else first + ahead]:
                generation.on_event = events.append
                engine.submit(generation)
                submitted += 1
            going = engine.step()
            while events:
                event = events.popleft()
                if raises and isinstance(event, Finished) and event.error is not None:
                    raise next(generation.error for generation in generations if generation.request.index == event.prompt_index)
                yield event
    finally:
        engine.close()
