"""Greedy and multinomial decoding: one generator for all the rows that take one token a step."""

from __future__ import annotations

from collections.abc import Callable

from .filters import Filters
from .row import Row, release
from .sample import choose, uniform
from .strategy import Forward, Strategy


def sampling(arrivals: Callable[[], list[Row]]) -> Strategy:
    """Give every row one token a pass, until no row is left; `arrivals` is asked for more before each pass.

    Rows are filtered together, each by its own settings, and each draws its own noise.
    """
    live: list[Row] = []
    filters = Filters(live)
    while True:
        live = live + arrivals()
        if not live:
            return
        if live != filters.rows:
            filters = Filters(live)
        logits = yield Forward(live, [row.unseen for row in live], [1] * len(live))
        ids, logprobs = choose(filters(logits), [noise(row) for row in live])
        for row, id, logprob in zip(live, ids.tolist(), logprobs.tolist()):
            row.commit(id, logprob)
            row.request.publish(row)
        release([row for row in live if row.finished])
        live = [row for row in live if not row.finished]


def noise(row: Row) -> float | None:
    """The row's number for its next token, None where it takes the likeliest."""
    return uniform(row.request.seed, row.position) if row.request.params.samples else None
