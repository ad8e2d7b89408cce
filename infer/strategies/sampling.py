"""Greedy and multinomial decoding: one generator for all the sequences that take one token a step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...data.errors import UserError
from ..filters.pipeline import Filters
from ..requests.generation import Generation
from ..requests.params import RequestParams
from ..requests.rng import choose, refuse_nan
from ..requests.sequence import TokenSequence, release_finished
from ..requests.strategy import Arrivals, Host, Strategy, next_tokens
from ..requests.trace import TraceRecorder
from .spec import StrategySpec


def sampling(generation: Generation, host: Host) -> None:
    """Greedy and multinomial decoding: one generator for all the sequences that take one token a step."""
    host.join("sampling", TokenSequence.open(generation, host.runner), sampled)


def sampled(arrivals: Arrivals) -> Strategy:
    """Give every sequence one token a pass, until no sequence is left; `arrivals` is asked for more before each pass.

    Sequences are filtered together, each by its own settings, and each draws by its own noise. A request for several answers
    runs its prompt once and forks.
    """
    live: list[TokenSequence] = []
    filters = Filters(live)
    while True:
        live = live + arrivals()
        if not live:
            return
        forward = next_tokens(live, open=True)
        logits = yield forward
        live, logits = still_going(forward.sequences, logits)
        if any(awaits_forks(sequence) for sequence in live):
            live, sources = with_forks(live)
            logits = logits[sources]
        if live != filters.sequences:
            filters = Filters(live)
        live = committed(live, *chosen(filters, logits))


def chosen(filters: Filters, logits: Tensor) -> tuple[list[int], list[float]]:
    """An id for each of the filters' sequences by its logits, [sequences, vocab], and its log-probability behind the filters; those that these leave nothing fail."""
    live = filters.sequences
    recorder = TraceRecorder.of(live, logits)
    found = filters.chosen(logits) if recorder is None else None
    if found is not None and -1 not in found[0]:
        return found
    scores, errors = filters.each(logits, recorder)
    ids, logprobs = (each.tolist() for each in choose(scores, keys_of(live), filters.few))
    for index in range(len(live)):
        if found is not None and found[0][index] >= 0:  # whatever stands beside it
            ids[index], logprobs[index] = found[0][index], found[1][index]
        elif index in errors:
            live[index].generation.fail(errors[index])
    if recorder is not None:
        recorder.chosen(scores, ids)
    return ids, logprobs


def still_going(live: list[TokenSequence], logits: Tensor) -> tuple[list[TokenSequence], Tensor]:
    """Release the sequences whose requests ended while a pass was asked for and run; return the others with their logits, [sequences, vocab]."""
    going = [index for index, sequence in enumerate(live) if not sequence.finished]
    return release_finished(live), logits if len(going) == len(live) else logits[going]


def commit_choices(live: list[TokenSequence], scores: Tensor, recorder: TraceRecorder | None) -> list[TokenSequence]:
    """Give every sequence the token that its scores choose, [sequences, vocab] after every filter; return the sequences that go on, as `committed` does."""
    ids, logprobs = (each.tolist() for each in choose(scores, keys_of(live)))
    if recorder is not None:
        recorder.chosen(scores, ids)
    return committed(live, ids, logprobs)


def keys_of(live: Sequence[TokenSequence]) -> list[int | None]:
    """What the noise of each sequence's ids hangs on, None where it takes the likeliest."""
    return [sequence.key() if sequence.request.params.samples else None for sequence in live]


def committed(live: list[TokenSequence], ids: Sequence[int], logprobs: Sequence[float]) -> list[TokenSequence]:
    """Give every sequence a token; return the sequences that go on.

    The tokens are published and the sequences that are finished released, with all those of a request that fails.
    """
    for sequence, id, logprob in zip(live, ids, logprobs):
        if not sequence.finished:
            with sequence.generation.contained():
                sequence.commit(id, refuse_nan(logprob))
                sequence.publish()
    return release_finished(live)


def awaits_forks(sequence: TokenSequence) -> bool:
    """Whether the further answers of the sequence's request are still to be forked from it, once its prompt has been run."""
    return sequence.request.width > 1 and not sequence.generation.forked and not sequence.finished


def with_forks(live: list[TokenSequence]) -> tuple[list[TokenSequence], list[int]]:
    """Add the further answers of requests whose prompt has just been run; return all sequences and the index of the one whose logits each has."""
    sequences, sources = [], []
    for index, sequence in enumerate(live):
        new = [sequence]
        if awaits_forks(sequence):
            new += [forked(sequence, choice) for choice in range(1, sequence.request.width)]
            sequence.generation.forked = True
        sequences += new
        sources += [index] * len(new)
    return sequences, sources


def forked(sequence: TokenSequence, choice: int) -> TokenSequence:
    """Return a fork of the sequence that grows another answer of its request."""
    fork = sequence.fork()
    fork.choice = choice
    return fork


def check_sampling(params: RequestParams) -> None:
    """Raise UserError where several answers would all be the same."""
    if params.num_return_sequences > 1 and not params.samples:
        raise UserError(f"num_return_sequences={params.num_return_sequences} greedy answers would all be the same: give do_sample or num_beams")


SAMPLING = StrategySpec("sampling", sampling, about=__doc__, check=check_sampling)
