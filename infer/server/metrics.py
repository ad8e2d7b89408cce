"""/metrics, as Prometheus reads it: requests, tokens, times and memory, counted while calls are answered."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from itertools import accumulate
from typing import TYPE_CHECKING

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..engine.live import LiveEngine
from ..requests.events import Committed, Event, Finished

if TYPE_CHECKING:
    from .calls import Call

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
WHOLE = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Tally:
    """A histogram: how many values fell up to each bound, and their sum. Far cheaper than the library's: one is noted for every token."""

    def __init__(self, bounds: Sequence[float]):
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        """Note a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str] = ()) -> None:
        """Add what was noted to a family, by its labels."""
        names = [*map(str, self._bounds), "+Inf"]
        family.add_metric(labels, list(zip(names, accumulate(self._counts))), self._sum)


class Metrics(Collector):
    """What is counted of an engine and of the calls that it answers, in a registry of its own."""

    def __init__(self, engine: LiveEngine):
        self._engine = engine
        self.requests: Counter[tuple[str, str]] = Counter()  # by path and status
        self.answers: Counter[str] = Counter()  # by finish reason
        self.prompt_tokens = self.cached_tokens = self.generated_tokens = 0
        self.first, self.between = Tally(FIRST), Tally(BETWEEN)
        self.whole: dict[str, Tally] = {}  # by path
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        return generate_latest(self._registry)

    def request(self, path: str, status: str, seconds: float) -> None:
        """Note a request that is over."""
        self.requests[path, status] += 1
        self.whole.setdefault(path, Tally(WHOLE)).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        health, cache = self._engine.health(), self._engine.prefix_cache
        yield GaugeMetricFamily("seodang_requests_running", "Prompts that are being read or answered.", health.running)
        yield GaugeMetricFamily("seodang_requests_waiting", "Prompts that wait to come in.", health.waiting)
        yield GaugeMetricFamily("seodang_cache_reserved_bytes", "Bytes of the KV cache that prompts in hand may come to.", health.bytes_reserved)
        yield GaugeMetricFamily("seodang_cache_limit_bytes", "Bytes that the KV cache may take.", health.bytes_limit)
        yield GaugeMetricFamily("seodang_prefix_cache_bytes", "Bytes kept for prompts that begin alike.", 0 if cache is None else cache.bytes)
        requests = CounterMetricFamily("seodang_http_requests", "Requests by path and status (499: the client went away).", labels=("path", "status"))
        for labels, count in sorted(self.requests.items()):
            requests.add_metric(labels, count)
        yield requests
        answers = CounterMetricFamily("seodang_answers", "Answers by finish reason.", labels=("finish_reason",))
        for reason, count in sorted(self.answers.items()):
            answers.add_metric([reason], count)
        yield answers
        yield CounterMetricFamily("seodang_prompt_tokens", "Tokens of prompts that came in, by the end of their calls.", self.prompt_tokens)
        yield CounterMetricFamily("seodang_cached_prompt_tokens", "Those of them that were not read: the prefix cache had them.", self.cached_tokens)
        yield CounterMetricFamily("seodang_generated_tokens", "Tokens of answers.", self.generated_tokens)
        first = HistogramMetricFamily("seodang_time_to_first_token_seconds", "From a call's first byte to the first token of its first answer.")
        self.first.add_to(first)
        yield first
        between = HistogramMetricFamily("seodang_time_between_tokens_seconds", "From a token of an answer to its next.")
        self.between.add_to(between)
        yield between
        whole = HistogramMetricFamily("seodang_http_request_seconds", "From a request's first byte to its last, by path.", labels=("path",))
        for path, tally in sorted(self.whole.items()):
            tally.add_to(whole, [path])
        yield whole


class Watch:
    """What is noted of one request over HTTP while it is answered: counts and times, never text."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self.began = time.perf_counter()
        self.first: float | None = None  # seconds to its first token
        self.written = 0  # tokens
        self.calls: list[Call] = []
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
            metrics.generated_tokens += 1
        elif isinstance(event, Finished):
            self._reasons[place, event.choice] = event.reason
            self._metrics.answers[event.reason] += 1

    def end(self, path: str, status: str) -> dict[str, int | float | list[str] | None]:
        """Count the request, which is over, and return what there is to say of it."""
        seconds = time.perf_counter() - self.began
        self._metrics.request(path, status, seconds)
        told: dict[str, int | float | list[str] | None] = {}
        if tickets := [ticket for call in self.calls for ticket in call.tickets]:
            came_in = [ticket.generation for ticket in tickets if ticket.generation.started is not None]
            read, cached = sum(each.request.prompt_length for each in came_in), sum(each.cached_tokens for each in came_in)
            self._metrics.prompt_tokens += read
            self._metrics.cached_tokens += cached
            answers = [(place, choice) for place, ticket in enumerate(tickets) for choice in range(ticket.generation.request.params.num_return_sequences)]
            reasons = [self._reasons.get(answer, "cancelled") for answer in answers]
            told = {"prompt_tokens": read, "cached_tokens": cached, "completion_tokens": self.written, "finish_reasons": reasons}
            told["first_token_ms"] = None if self.first is None else milliseconds(self.first)
        return {**told, "total_ms": milliseconds(seconds)}


WATCH: ContextVar[Watch] = ContextVar("watch")  # of the request that is being answered


def watched(call: Call) -> Callable[[int, Event], None]:
    """Return what hears a call's events by the place of their prompt: the watch of the request that it is of."""
    watch = WATCH.get(None)
    if watch is None:
        return lambda place, event: None
    watch.calls.append(call)
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
