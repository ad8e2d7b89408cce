"""Greedy and multinomial decoding: one generator for all the rows that take one token a step."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..filters.pipeline import Filters
from ..requests.request import Row, release
from ..requests.rng import choose
from ..requests.strategy import Strategy, next_tokens
from ..requests.trace import Watch


def sampling(arrivals: Callable[[], list[Row]]) -> Strategy:
    """Give every row one token a pass, until no row is left; `arrivals` is asked for more before each pass.

    Rows are filtered together, each by its own settings, and each draws by its own noise. A request for several answers
    runs its prompt once and forks.
    """
    live: list[Row] = []
    filters = Filters(live)
    while True:
        live = live + arrivals()
        if not live:
            return
        logits = yield next_tokens(live)
        if any(row.request.alone and row.request.width > 1 for row in live):
            live, places = with_forks(live)
            logits = logits[places]
        if live != filters.rows:
            filters = Filters(live)
        watch = Watch.of(live, logits)
        scores, errors = filters.each(logits, watch)
        for place, error in errors.items():
            live[place].request.fail(error)
        live = take(live, scores, watch)


def take(live: list[Row], scores: Tensor, watch: Watch | None) -> list[Row]:
    """Give every row the token that its scores choose, [rows, vocab] after every filter, and tell of it; return the rows that go on.

    A request that fails is finished with all its rows.
    """
    chosen, logprobs = choose(scores, [row.key() if row.request.params.samples else None for row in live])
    ids = chosen.tolist()
    if watch is not None:
        watch.chosen(scores, ids)
    for row, id, logprob in zip(live, ids, logprobs.tolist()):
        if not row.finished:
            with row.request.contained():
                row.commit(id, logprob)
                row.request.publish(row)
    release([row for row in live if row.finished])
    return [row for row in live if not row.finished]


def with_forks(live: list[Row]) -> tuple[list[Row], list[int]]:
    """Add the further answers of requests whose prompt has just been run; return all rows and whose logits each has."""
    rows, places = [], []
    for place, row in enumerate(live):
        new = [row]
        if row.request.alone:
            new += [forked(row, choice) for choice in range(1, row.request.width)]
            row.request.alone = False
        rows += new
        places += [place] * len(new)
    return rows, places


def forked(row: Row, choice: int) -> Row:
    """A fork of the row that grows another answer of its request."""
    fork = row.fork()
    fork.choice = choice
    return fork
