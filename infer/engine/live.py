"""An engine that lives on: requests come at any time and from any thread, and one thread of its own runs the passes for all of them."""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ..checkpoint.adapter import read_adapter
from ..kernels.low_rank import Adapter
from ..requests.events import Event
from ..requests.generation import Generation, Stage
from ..requests.request import Request
from ..requests.runtime import runtime_of
from ..requests.stats import Runtime
from ..runners.contract import Runner
from ..runners.open import open_runner
from ..runners.paradigm import is_bidirectional
from ..strategies.registry import check_steps
from .budget import Budget
from .core import MAX_ROWS, Engine, slots_of
from .embedding import EmbeddingTicket, embedding_request, embedding_size
from .loop import Loop, Ticket
from .pace import Pace
from .params import SamplingParams
from .prefix_cache import PrefixCache
from .prompts import Prompt, new_requests

T = TypeVar("T", bound=Ticket)

MAX_WAITING = 1024  # requests that wait to come in; one more is refused
STUCK_AFTER = 120.0  # seconds that one step may take before the engine counts as stuck


class QueueFull(UserError):
    """So many requests wait already that another is not taken: ask again later."""


@dataclass(frozen=True)
class Health:
    """Whether a live engine answers, why not where it does not, and what it has in hand: requests, and the bytes they may come to of how many."""

    ok: bool
    reason: str | None
    running: int
    waiting: int
    bytes_reserved: int
    bytes_limit: int


class LiveEngine:
    """Answers requests that come at any time, from any thread, in passes that they share; a context manager.

        with LiveEngine(model, tokenizer) as engine:
            for event in engine.stream("The three primary colours are", SamplingParams(max_new_tokens=16)):
                print(getattr(event, "text", ""), end="")

    A thread of its own runs the passes; it sleeps while there is nothing to do. A request is encoded and checked by the thread that hands it
    in, so that a wrong one is refused there and disturbs nobody. What goes wrong later ends the request that it is of.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        cache_bytes: int | None = None,
        max_rows: int = MAX_ROWS,
        max_waiting: int = MAX_WAITING,
        reuse_prefixes: bool = True,
        pace: Pace | None = None,
        stuck_after: float = STUCK_AFTER,
        runner: Runner | None = None,
    ):
        """At most `max_rows` answers grow at a time and `max_waiting` requests wait; the KV cache takes at most `cache_bytes`, else `Budget.default`.

        `runner` stands in for the model's own; `pace` says how much of long prompts goes into a pass beside the others' tokens. With `reuse_prefixes`, what was read of a prompt is
        kept for those that begin alike, where the model's memory can be shared and cut (else `prefix_cache` is None). A step of more than
        `stuck_after` seconds counts as stuck (`health`). Raises UserError for a model that has no runner, and for numbers out of range.
        """
        for name, value in (("max_rows", max_rows), ("max_waiting", max_waiting), ("stuck_after", stuck_after)):
            if not value > 0:
                raise UserError(f"{name} must be above 0, got {value}")
        self.model, self.tokenizer = model, tokenizer
        self.max_rows, self.max_waiting, self.stuck_after = max_rows, max_waiting, stuck_after
        self.budget = Budget.default(model) if cache_bytes is None else Budget(cache_bytes)
        runner = runner or open_runner(model)
        self.prefix_cache = PrefixCache(model, sequences=None, max_bytes=self.budget.limit) if reuse_prefixes and is_shareable(runner) else None
        if self.prefix_cache is not None:
            runner = self.prefix_cache.runner
        self._pace = pace or Pace()
        self._loop = Loop(Engine(runner, max_rows, self.prefix_cache, self.budget, self._pace))
        self._loading = threading.Lock()  # adapters, which takes longer than others' prompts may wait
        self._encoding = threading.Lock()  # tokenizers, and what the engine keeps of further models, are for one thread at a time
        self._indices = itertools.count()
        self._adapters: dict[str, Adapter] = {}
        self._thread = self._loop.thread
        self._thread.start()
        self._end = weakref.finalize(self, end, self._loop)  # also where it is dropped, and at the interpreter's end

    def __enter__(self) -> LiveEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def positions(self) -> int | None:
        """How many positions the model can have, prompt and answer; None where nothing bounds them."""
        return self._loop.engine.runner.limit

    @property
    def runtime(self) -> Runtime:
        """What computes the model's passes."""
        return runtime_of(self._loop.engine.runner)

    @property
    def vector_size(self) -> int:
        """How many numbers a vector of `embed` has."""
        return embedding_size(self.model)

    @property
    def rows_in_use(self) -> int:
        """How many rows of the KV cache requests in hand hold, those aside that the prefix cache keeps; while a step runs they may be counted in its midst."""
        kept = 0 if self.prefix_cache is None else len(self.prefix_cache.slots)
        return max(0, self._loop.engine.runner.live - kept)

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        literal: bool | None = None,
        cache_salt: str | None = None,
        adapter: str | None = None,
        trace: bool = False,
        include_steps: bool = False,
        on_event: Callable[[Event], None] | None = None,
    ) -> Ticket:
        """Hand in a prompt, by the settings given or the checkpoint's own, and return at once; `literal` and `trace` are those of `generate`.

        It is answered with the `adapter` of this name (`load_adapter`), or by the model alone. What was read for other requests is only made
        use of where their adapter and `cache_salt` are the same. With `include_steps` each step of a diffusion answer is an event too, without
        all else that a trace has (`Observed`, of a `DiffusionStep`). Events go to `on_event`, called in the
        engine's thread, which it must not keep waiting, or else into the ticket. Raises UserError for a request that is wrong, as `generate`
        does, and for one beyond all rows or the whole budget; QueueFull and EngineClosed, UserErrors too, where none is taken.
        """

        def make() -> Request:
            [request] = new_requests(self.model, self.tokenizer, [prompt], params, self._loop.engine, trace, literal)
            if include_steps:
                check_steps(request.strategy, "include_steps")
            return replace(request, cache_salt=cache_salt, adapter=self._adapter(adapter), include_steps=include_steps)

        return self._hand_in(make, Ticket, on_event)

    def embed(
        self,
        prompt: Prompt,
        *,
        attention_mask: Sequence[int] | None = None,
        adapter: str | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> EmbeddingTicket:
        """Hand in a prompt to be turned into a vector as by `seodang.infer.embed`, in passes shared with all others, and return at once.

        The prefix cache has no part in it. Raises UserError, QueueFull and EngineClosed as `submit` does.
        """

        def make() -> Request:
            return replace(embedding_request(0, prompt, self.tokenizer, self._loop.engine, attention_mask), adapter=self._adapter(adapter))

        return self._hand_in(make, EmbeddingTicket, on_event)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **how: Any) -> Iterator[Event]:
        """Hand in a prompt as `submit` does, at once, and return its events; who stops listening, or never begins, cancels it."""
        events = self._followed(self.submit(prompt, params, **how))
        next(events)  # only what has begun has an end
        return events

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters that requests may be answered with, as they were loaded."""
        return list(self._adapters)

    def load_adapter(self, name: str, folder: str | os.PathLike) -> None:
        """Let requests be answered with the LoRA adapter of a folder, beside others with other adapters or none, in the same passes.

        Raises UserError for a name that is taken, for what cannot run so (see `read_adapter`), and for a model whose runner has no adapters.
        """
        if not self._loop.engine.runner.capabilities.adapters:
            raise UserError(f"a {self.model.config.model_type} model runs no adapters beside its weights: merge {folder} into a model of its own")
        with self._loading:
            if name in self._adapters:
                raise UserError(f"there is an adapter {name!r} already: give this one another name, or unload that one")
            self._adapters[name] = read_adapter(folder, name, self.model, self.tokenizer)

    def unload_adapter(self, name: str) -> None:
        """Take no more requests for an adapter, and forget what was read with it; those in hand go on with it. Raises UserError for an unknown one."""
        with self._loading:
            adapter = self._adapter(name)
            del self._adapters[name]
        adapter.unloaded = True
        if (cache := self.prefix_cache) is not None:
            self._loop.post(lambda: cache.forget(lambda salt: isinstance(salt, tuple) and salt[0] is adapter))

    def health(self) -> Health:
        """Whether the loop lives and its step does not last too long, with what is in hand; waits for nothing."""
        loop, generations = self._loop, [ticket.generation for ticket in self._loop.tickets()]
        began, reason = loop.began, loop.closed
        if reason is None and not self._thread.is_alive():
            reason = "the engine's thread has ended"
        if reason is None and began is not None and (lasts := time.monotonic() - began) > self.stuck_after:
            reason = f"a step has lasted {lasts:.0f} s, more than {self.stuck_after:g} s"
        waiting = sum(each.stage is Stage.WAITING for each in generations)
        reserved = sum(each.bytes_reserved for each in generations if each.stage is not Stage.WAITING)
        return Health(reason is None, reason, len(generations) - waiting, waiting, reserved, self.budget.limit)

    def describe(self) -> str:
        """What the model and the KV cache take of the memory, in a line or two."""
        return self.budget.describe(self.model, self._loop.engine.runner, self._pace.part, self.max_rows)

    def close(self, timeout: float | None = 0.0, why: str = "the engine is closed: make another one") -> None:
        """Take no more requests, let those in hand go on for so many seconds (None: to their ends), cancel what is left, and end the thread.

        Who still asks is told `why`. The step in hand is waited for, but no longer than one may last: where it is stuck, the thread is left to itself. A second call does nothing.
        An `on_event` may call it, and is not kept waiting: the thread ends behind the step.
        """
        if self._loop.is_own_thread():
            self._loop.stop()
            return
        self._loop.refuse(why)
        until = None if timeout is None else time.monotonic() + timeout
        for ticket in self._loop.tickets():
            ticket.wait(None if until is None else max(0.0, until - time.monotonic()))
        self._loop.stop()
        self._thread.join(self.stuck_after)
        self._end.detach()
        for ticket in self._loop.tickets():  # of a step that may never end
            ticket.generation.cancel()

    def _hand_in(self, make: Callable[[], Request], kind: type[T], on_event: Callable[[Event], None] | None) -> T:
        """Make a request, and hand it in unless there is no room for it; return its ticket."""
        with self._encoding:
            self._refuse_too_many()
            request = replace(make(), index=next(self._indices))
            self._refuse_too_wide(request)
            generation = Generation(request, bytes_reserved=self.budget.check(request, self._loop.engine))
            ticket = kind(generation, on_event, self._loop)
            self._loop.take(ticket)
        return ticket

    def _adapter(self, name: str | None) -> Adapter | None:
        """The adapter of this name; raises UserError where there is none."""
        if name is not None and name not in self._adapters:
            raise UserError(f"there is no adapter {name!r}: load it, or take one of {', '.join(self._adapters) or 'none'}")
        return None if name is None else self._adapters[name]

    def _followed(self, ticket: Ticket) -> Iterator[Event | None]:
        """Yield None once, to be begun by, then the events."""
        try:
            yield None
            yield from ticket.events()
        finally:
            ticket.cancel()

    def _refuse_too_wide(self, request: Request) -> None:
        """Raise UserError, with the numbers, for a request that could only come in beyond the engine's rows."""
        rows = slots_of(request, self._loop.engine.runner)
        if rows > self.max_rows:
            has = f"and there are {self.max_rows}: ask for fewer, or raise max_rows"
            raise UserError(f"the request needs {rows} rows for its answers, beams and guidance, {has}")

    def _refuse_too_many(self) -> None:
        self._loop.refuse_where_closed()
        waiting = sum(ticket.generation.stage is Stage.WAITING for ticket in self._loop.tickets())
        if waiting >= self.max_waiting:
            raise QueueFull(f"{waiting} requests wait already, and at most {self.max_waiting} may: ask again later, or raise max_waiting")


def end(loop: Loop) -> None:
    """Stop a loop and wait for the step in hand, unless it is the loop's own thread that asks."""
    loop.stop()
    if not loop.is_own_thread():
        loop.thread.join(STUCK_AFTER)


def is_shareable(runner) -> bool:
    """Whether what a runner has read of one prompt can begin another."""
    config = runner.model.config
    return runner.capabilities.fork and runner.capabilities.truncate and not (config.is_encoder_decoder or is_bidirectional(config))
