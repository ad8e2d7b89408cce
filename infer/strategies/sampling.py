"""Greedy and multinomial decoding: one generator for all the sequences that take one token a step."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..filters.pipeline import Filters
from ..requests.request import TokenSequence, release
from ..requests.rng import choose
from ..requests.strategy import Strategy, next_tokens
from ..requests.trace import TraceRecorder
from .selection import check_sampling
from .spec import StrategySpec


def sampling(arrivals: Callable[[], list[TokenSequence]]) -> Strategy:
    """Give every sequence one token a pass, until no sequence is left; `arrivals` is asked for more before each pass.

    Rows are filtered together, each by its own settings, and each draws by its own noise. A request for several answers
    runs its prompt once and forks.
    """
    live: list[TokenSequence] = []
    filters = Filters(live)
    while True:
        live = live + arrivals()
        if not live:
            return
        logits = yield next_tokens(live)
        if any(sequence.request.alone and sequence.request.width > 1 for sequence in live):
            live, places = with_forks(live)
            logits = logits[places]
        if live != filters.sequences:
            filters = Filters(live)
        watch = TraceRecorder.of(live, logits)
        scores, errors = filters.each(logits, watch)
        for place, error in errors.items():
            live[place].request.fail(error)
        live = take(live, scores, watch)


def take(live: list[TokenSequence], scores: Tensor, watch: TraceRecorder | None) -> list[TokenSequence]:
    """Give every sequence the token that its scores choose, [rows, vocab] after every filter, and tell of it; return the sequences that go on.

    A request that fails is finished with all its sequences.
    """
    chosen, logprobs = choose(scores, [sequence.key() if sequence.request.params.samples else None for sequence in live])
    ids = chosen.tolist()
    if watch is not None:
        watch.chosen(scores, ids)
    for sequence, id, logprob in zip(live, ids, logprobs.tolist()):
        if not sequence.finished:
            with sequence.request.contained():
                sequence.commit(id, logprob)
                sequence.request.publish(sequence)
    release([sequence for sequence in live if sequence.finished])
    return [sequence for sequence in live if not sequence.finished]


def with_forks(live: list[TokenSequence]) -> tuple[list[TokenSequence], list[int]]:
    """Add the further answers of requests whose prompt has just been run; return all sequences and whose logits each has."""
    sequences, places = [], []
    for place, sequence in enumerate(live):
        new = [sequence]
        if sequence.request.alone:
            new += [forked(sequence, choice) for choice in range(1, sequence.request.width)]
            sequence.request.alone = False
        sequences += new
        places += [place] * len(new)
    return sequences, places


def forked(sequence: TokenSequence, choice: int) -> TokenSequence:
    """A fork of the sequence that grows another answer of its request."""
    fork = sequence.fork()
    fork.choice = choice
    return fork


SAMPLING = StrategySpec("sampling", None, about=__doc__, check=check_sampling)
