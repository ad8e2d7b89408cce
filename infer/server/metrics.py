"""/metrics, as Prometheus reads it: requests, tokens, times and memory, counted while calls are answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..engine.live import LiveEngine
from ..engine.loop import Ticket
from ..requests.events import Committed, Event, Finished

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
WHOLE = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """What is counted of an engine and of the calls that it answers, in a registry of its own."""

    def __init__(self, engine: LiveEngine):
        self._registry = registry = CollectorRegistry()
        gauges = {
            "requests_running": ("Prompts that are being read or answered.", lambda: engine.health().running),
            "requests_waiting": ("Prompts that wait to come in.", lambda: engine.health().waiting),
            "cache_reserved_bytes": ("Bytes of the KV cache that prompts in hand may come to.", lambda: engine.health().bytes_reserved),
            "cache_limit_bytes": ("Bytes that the KV cache may take.", lambda: engine.budget.limit),
            "cache_rows_in_use": ("Rows of the KV cache that prompts in hand hold.", lambda: engine.rows_in_use),
            "prefix_cache_bytes": ("Bytes kept for prompts that begin alike.", lambda: engine.prefix_cache.bytes if engine.prefix_cache else 0),
        }
        for name, (about, value) in gauges.items():
            Gauge(f"seodang_{name}", about, registry=registry).set_function(value)
        self.requests = Counter("seodang_http_requests", "Requests by path and status (499: the client went away).", ("path", "status"), registry=registry)
        self.answers = Counter("seodang_answers", "Answers by finish reason.", ("finish_reason",), registry=registry)
        self.prompt_tokens = Counter("seodang_prompt_tokens", "Tokens of prompts that came in, by the end of their calls.", registry=registry)
        self.cached_tokens = Counter("seodang_cached_prompt_tokens", "Those of them that the prefix cache had.", registry=registry)
        self.generated_tokens = Counter("seodang_generated_tokens", "Tokens of answers.", registry=registry)
        first, between = "From a call's first byte to the first token of its first answer.", "From a token of an answer to its next."
        self.first = Histogram("seodang_time_to_first_token_seconds", first, buckets=FIRST, registry=registry)
        self.between = Histogram("seodang_time_between_tokens_seconds", between, buckets=BETWEEN, registry=registry)
        whole = "From a request's first byte to its last, by path."
        self.whole = Histogram("seodang_http_request_seconds", whole, ("path",), buckets=WHOLE, registry=registry)

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        return generate_latest(self._registry)


class Watch:
    """What is noted of one request over HTTP while it is answered: counts and times, never text."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self.began = time.perf_counter()
        self.first: float | None = None  # seconds to its first token
        self.written = 0  # tokens
        self.calls: list[Sequence[Ticket]] = []
        self._reasons: dict[tuple[int, int], str] = {}  # by prompt and choice
        self._last: dict[tuple[int, int], float] = {}  # when the answer's newest token came

    def hear(self, place: int, event: Event) -> None:
        """Note an event; called in the engine's thread, for each token of each answer."""
        if isinstance(event, Committed):
            now, answer, metrics = time.perf_counter(), (place, event.choice), self._metrics
            last = self._last.get(answer)
            if last is not None:
                metrics.between.observe(now - last)
            elif self.first is None:
                self.first = now - self.began
                metrics.first.observe(self.first)
            self._last[answer] = now
            self.written += 1
            metrics.generated_tokens.inc()
        elif isinstance(event, Finished):
            self._reasons[place, event.choice] = event.reason
            self._metrics.answers.labels(event.reason).inc()

    def end(self, path: str, status: str) -> dict[str, int | float | list[str] | None]:
        """Count the request, which is over, and return what there is to say of it."""
        seconds = time.perf_counter() - self.began
        self._metrics.requests.labels(path, status).inc()
        self._metrics.whole.labels(path).observe(seconds)
        told: dict[str, int | float | list[str] | None] = {}
        if tickets := [ticket for tickets in self.calls for ticket in tickets]:
            came_in = [ticket.generation for ticket in tickets if ticket.generation.started is not None]
            read, cached = sum(each.request.prompt_length for each in came_in), sum(each.cached_tokens for each in came_in)
            self._metrics.prompt_tokens.inc(read)
            self._metrics.cached_tokens.inc(cached)
            answers = [(place, choice) for place, ticket in enumerate(tickets) for choice in range(ticket.generation.request.params.num_return_sequences)]
            reasons = [self._reasons.get(answer, "cancelled") for answer in answers]
            told = {"prompt_tokens": read, "cached_tokens": cached, "completion_tokens": self.written, "finish_reasons": reasons}
            told["first_token_ms"] = None if self.first is None else milliseconds(self.first)
        return {**told, "total_ms": milliseconds(seconds)}


WATCH: ContextVar[Watch] = ContextVar("watch")  # of the request that is being answered


def watched(tickets: Sequence[Ticket]) -> Callable[[int, Event], None]:
    """Return what hears the events of a call by the place of their prompt: the watch of the request that it is of; `tickets` will be the call's."""
    watch = WATCH.get(None)
    if watch is None:
        return lambda place, event: None
    watch.calls.append(tickets)
    return watch.hear


def milliseconds(seconds: float) -> float:
    """To a tenth."""
    return round(1000 * seconds, 1)


def metric_routes(metrics: Metrics) -> APIRouter:
    """The path that Prometheus reads."""
    routes = APIRouter()

    @routes.get("/metrics", response_class=Response)
    async def read_metrics() -> Response:
        """Requests, tokens, times and memory, in Prometheus' format."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return routes
