"""Assisted (speculative) decoding: many tokens a pass of the model, guessed first and then judged by it all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..filters.pipeline import Filters, uses
from ..filters.specs import FILTERS
from ..requests.events import Provisional
from ..requests.request import Request, Row, release, shared
from ..requests.rng import choose, key, uniform
from ..requests.strategy import Forward, Host, Strategy
from ..requests.trace import Drafted, Watch
from .assistants import Drafts, assistant
from .sampling import with_forks
from .speculation import Guess, speculate

JUDGE = 2  # the place among a row's numbers for a position of the one that says whether a guess stays
ALIKE = {name for name, spec in FILTERS.items() if spec.kind == "warper"} - {"xtc", "mirostat"} | {"logit_bias", "suppress_tokens"}


def assisted(request: Request, host: Host) -> None:
    """Answer with the tokens, or the distribution, that the model alone would give, in fewer of its passes.

    A greedy answer is that of greedy decoding, token for token, and an answer sampled with guesses that are certain of themselves
    (prompt lookup, a draft of another tokenizer) is that of sampling with the same seed. With the guesses of a draft model it is another
    of the same distribution. Requests with the same assistant share their passes.
    """
    key, new_drafts = assistant(request, host)
    vocab = host.runner.config.vocab_size
    host.join(key, Row.open(request, host.runner), lambda rows: speculative(rows, new_drafts(), vocab))


def speculative(arrivals: list[Row], drafts: Drafts, vocab: int) -> Strategy:
    """Give every row as many tokens a pass as its guess deserves and one more, until no row is left; rows may arrive on the way."""
    live: list[Row] = []
    while True:
        live, arrivals[:] = live + arrivals, []
        if not live:
            return
        ready = [row for row in live if not awaits_forks(row)]
        guesses = dict(zip(ready, (yield from drafts.guess(ready)))) if ready else {}
        guesses = {row: trimmed(row, guesses.get(row, Guess()), vocab) for row in live}
        logits = yield Forward(live, [row.unseen + guesses[row].ids for row in live], [len(guesses[row].ids) + 1 for row in live])
        if len(ready) < len(live):
            live, logits, guesses = forked(live, logits, guesses)
        for row in live:
            row.request.alone = False
        judge(live, [guesses[row] for row in live], logits, drafts)
        finished = [row for row in live if row.finished]
        drafts.release(finished)
        release(finished)
        live = [row for row in live if not row.finished]


def awaits_forks(row: Row) -> bool:
    """Whether the row's prompt is still to be run for several answers, which draft from the second pass on."""
    return row.request.alone and row.request.width > 1


def forked(live: list[Row], logits: Tensor, guesses: dict[Row, Guess]) -> tuple[list[Row], Tensor, dict[Row, Guess]]:
    """Add the further answers of requests whose prompt has just been run."""
    rows, places = with_forks(live)
    parts = logits.split([len(guesses[row].ids) + 1 for row in live])
    return rows, torch.cat([parts[place] for place in places]), {row: guesses.get(row, Guess()) for row in rows}


def trimmed(row: Row, guess: Guess, vocab: int) -> Guess:
    """Cut a guess where it leaves the vocabulary, after an end, and where the answer would be full."""
    guess.cut(max(row.request.params.max_new_tokens - row.position - 1, 0))
    for i, id in enumerate(guess.ids):
        if not 0 <= id < vocab:
            guess.cut(i)
            break
        if id in row.request.ends:
            guess.cut(i + 1)
            break
    return guess


@dataclass(frozen=True)
class Place:
    """Where a token is to be chosen: so many tokens ahead of the row, where the guess, if any, was drawn from `scores`."""

    row: Row
    ahead: int
    id: int | None
    scores: Tensor | None

    @property
    def position(self) -> int:
        """Where in the answer it is."""
        return self.row.position + self.ahead


def places_of(row: Row, guess: Guess, ahead: bool) -> list[Place]:
    """Return a place for each token of the guess and one behind it, seen from where the row stands, or each from where it is itself."""
    ids, scores = [*guess.ids, None], [*guess.scores, *[None] * (len(guess.ids) + 1 - len(guess.scores))]
    return [Place(row, i if ahead else 0, id, own) for i, (id, own) in enumerate(zip(ids, scores))]


def judge(rows: list[Row], guesses: list[Guess], logits: Tensor, drafts: Drafts) -> None:
    """Commit what stays of each guess and the token behind it, and forget the rest; logits is [sum(len(guess) + 1), vocab]."""
    before = [row.position for row in rows]
    if all(stands_alone(row) for row in rows):
        commit_at_once(rows, guesses, logits)
    else:
        commit_in_turn(rows, guesses, logits)
    for row, guess, begin in zip(rows, guesses, before):
        if row.request.error is not None:
            continue  # nothing of it is in the cache any more
        came = row.ids[len(row.ids) - (row.position - begin) :]
        agreed = shared(guess.ids, came)
        row.forget(len(guess.ids) - agreed)
        drafts.learn(row, guess, came)
        tell(row, guess, begin, agreed)
        with row.request.contained():
            row.request.publish(row)


def stands_alone(row: Row) -> bool:
    """Whether no filter of the row depends on what is committed before it, so that all places can be filtered at once."""
    return not row.controls and not row.request.traced and uses(row.request.params) <= ALIKE


def commit_at_once(rows: list[Row], guesses: list[Guess], logits: Tensor) -> None:
    """Filter and choose at all places together, then commit each row's tokens up to the first that is not the guess."""
    places = [place for row, guess in zip(rows, guesses) for place in places_of(row, guess, ahead=True)]
    scores, errors = Filters([place.row for place in places]).each(logits)
    decisions = enumerate(decided(scores, places))
    for row, guess in zip(rows, guesses):
        own = [next(decisions) for _ in range(len(guess.ids) + 1)]
        for (at, (id, logprob)), guessed in zip(own, [*guess.ids, None]):
            if row.finished:
                break
            with row.request.contained():
                if at in errors:
                    raise errors[at]
                row.commit(id, logprob)
            if id != guessed:
                break


def commit_in_turn(rows: list[Row], guesses: list[Guess], logits: Tensor) -> None:
    """Filter, choose and commit place by place: a filter that looks back sees each token before the next is judged."""
    parts = dict(zip(rows, logits.split([len(guess.ids) + 1 for guess in guesses])))
    places = {row: places_of(row, guess, ahead=False) for row, guess in zip(rows, guesses)}
    going, turn = list(rows), 0
    filters = Filters(going)
    while going:
        if going != filters.rows:
            filters = Filters(going)
        own = torch.stack([parts[row][turn] for row in going])
        watch = Watch.of(going, own)
        scores, errors = filters.each(own, watch)
        for place, error in errors.items():
            going[place].request.fail(error)
        decisions = list(decided(scores, [places[row][turn] for row in going]))
        if watch is not None:
            watch.chosen(scores, [id for id, _ in decisions])
        for row, (id, logprob) in zip(going, decisions):
            if not row.finished:
                with row.request.contained():
                    row.commit(id, logprob)
        going = [row for row, (id, _) in zip(going, decisions) if not row.finished and id == places[row][turn].id]
        turn += 1


def decided(scores: Tensor, places: Sequence[Place]) -> Iterator[tuple[int, float]]:
    """Return the token of each place, with its log-probability; scores is [places, vocab], after every filter.

    A guess that is certain of itself is not looked at: the token is the one that greedy decoding or sampling would choose, and where it
    differs from the guess, it is as the rule of speculation would have it.
    """
    doubted = [i for i, place in enumerate(places) if place.scores is not None]
    keys = [key(place.row.seed, place.position) if place.row.request.params.samples else None for place in places]
    ids, logprobs = choose(scores, [own if place.scores is None else None for own, place in zip(keys, places)])
    if doubted:
        some = [places[i] for i in doubted]
        p = scores[doubted].double().softmax(dim=-1)
        q = torch.stack([place.scores for place in some]).to(p).softmax(dim=-1)
        guessed = torch.tensor([place.id for place in some], device=p.device)
        judged = torch.tensor([uniform(each.row.seed, each.position, JUDGE) for each in some], dtype=p.dtype, device=p.device)
        ids[doubted] = speculate(p, q, guessed, judged, torch.tensor([keys[i] for i in doubted], device=p.device))
        logprobs[doubted] = p.gather(-1, ids[doubted][:, None]).squeeze(-1).log().to(logprobs)
    return iter(list(zip(ids.tolist(), logprobs.tolist())))


def tell(row: Row, guess: Guess, position: int, accepted: int) -> None:
    """Tell those who trace what was guessed at a position, and how much of it came."""
    request = row.request
    if request.traced and guess.ids:
        for i, (id, p) in enumerate(zip(guess.ids, guess.probs)):
            request.hear(Provisional(request.index, position + i, id, p, row.choice))
        request.note(Drafted(tuple(guess.ids), accepted), position, row.choice)
