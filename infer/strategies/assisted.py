"""Assisted (speculative) decoding: many tokens a pass of the model, guessed first and then judged by it all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..filters.pipeline import Filters, uses
from ..filters.registry import FILTERS
from ..requests.events import Provisional
from ..requests.generation import Generation
from ..requests.rng import choose, key, refuse_nan, uniform
from ..requests.sequence import TokenSequence, release_finished, shared_length
from ..requests.strategy import Arrivals, Forward, Host, Strategy
from ..requests.trace import DraftTrace, TraceRecorder
from .assistants import Assistants, Drafts, assistant, check_assisted
from .sampling import awaits_forks, with_forks
from .spec import StrategySpec
from .speculation import Guess, speculate

JUDGE = 2  # which of a sequence's random numbers for a position says whether a guess stays
ALIKE = {name for name, spec in FILTERS.items() if spec.memoryless}


def assisted(generation: Generation, host: Host) -> None:
    """Answer with the tokens, or the distribution, that the model alone would give, in fewer of its passes.

    A greedy answer is that of greedy decoding, token for token, and an answer sampled with guesses that are certain of themselves
    (prompt lookup, a draft of another tokenizer) is that of sampling with the same seed. With the guesses of a draft model it is another
    of the same distribution. Requests with the same assistant share their passes.
    """
    key, new_drafts = assistant(generation.request, host)
    vocab = host.runner.config.vocab_size
    host.join(key, TokenSequence.open(generation, host.runner), lambda arrivals: speculative(arrivals, new_drafts(), vocab))


def speculative(arrivals: Arrivals, drafts: Drafts, vocab: int) -> Strategy:
    """Give every sequence as many tokens a pass as its guess deserves and one more, until no sequence is left.

    `arrivals` is asked for more sequences before each guess; ids from `vocab` on are none of the model's.
    """
    live: list[TokenSequence] = []
    while True:
        live = live + arrivals()
        if not live:
            return
        ready = [sequence for sequence in live if not awaits_forks(sequence)]  # several answers draft from the second pass on
        guesses = dict(zip(ready, (yield from drafts.guess(ready)))) if ready else {}
        drafts.release([sequence for sequence in live if sequence.finished])  # guessing takes passes, and requests may be cancelled meanwhile
        live = release_finished(live)
        if not live:
            continue
        guesses = {sequence: trimmed(sequence, guesses.get(sequence, Guess()), vocab) for sequence in live}
        new, keep = [sequence.unseen + guesses[sequence].ids for sequence in live], [len(guesses[sequence].ids) + 1 for sequence in live]
        forward = Forward(live, new, keep, open=True)
        logits = yield forward
        live, guesses = forward.sequences, {sequence: guesses.get(sequence, Guess()) for sequence in forward.sequences}
        if any(map(awaits_forks, live)):
            live, logits, guesses = forked(live, logits, guesses)
        judge(live, [guesses[sequence] for sequence in live], logits, drafts)
        drafts.release([sequence for sequence in live if sequence.finished])
        live = release_finished(live)


def forked(live: list[TokenSequence], logits: Tensor, guesses: dict[TokenSequence, Guess]) -> tuple[list[TokenSequence], Tensor, dict[TokenSequence, Guess]]:
    """Add the further answers of requests whose prompt has just been run, with their logits, [sum(len(guess) + 1), vocab], and empty guesses."""
    sequences, sources = with_forks(live)
    parts = logits.split([len(guesses[sequence].ids) + 1 for sequence in live])
    return sequences, torch.cat([parts[source] for source in sources]), {sequence: guesses.get(sequence, Guess()) for sequence in sequences}


def trimmed(sequence: TokenSequence, guess: Guess, vocab: int) -> Guess:
    """Cut a guess where it leaves the vocabulary, after an end, and where the answer would be full."""
    guess.cut(max(sequence.request.params.max_new_tokens - sequence.position - 1, 0))
    for i, id in enumerate(guess.ids):
        if not 0 <= id < vocab:
            guess.cut(i)
            break
        if id in sequence.request.ends:
            guess.cut(i + 1)
            break
    return guess


@dataclass(frozen=True)
class Choice:
    """A token that is to be chosen: so many tokens ahead of the sequence, where the guess, if any, was drawn from `scores`."""

    sequence: TokenSequence
    ahead: int
    id: int | None
    scores: Tensor | None

    @property
    def position(self) -> int:
        """Where in the answer it is."""
        return self.sequence.position + self.ahead


def choices_of(sequence: TokenSequence, guess: Guess, ahead: bool) -> list[Choice]:
    """Return a choice for each token of the guess and one behind it, seen from where the sequence stands, or each from where it is itself."""
    ids, scores = [*guess.ids, None], [*guess.scores, *[None] * (len(guess.ids) + 1 - len(guess.scores))]
    return [Choice(sequence, i if ahead else 0, id, own) for i, (id, own) in enumerate(zip(ids, scores))]


def judge(sequences: list[TokenSequence], guesses: list[Guess], logits: Tensor, drafts: Drafts) -> None:
    """Commit what stays of each guess and the token behind it, and roll the rest back; logits is [sum(len(guess) + 1), vocab]."""
    before = [sequence.position for sequence in sequences]
    if all(stands_alone(sequence) for sequence in sequences):
        commit_at_once(sequences, guesses, logits)
    else:
        commit_in_turn(sequences, guesses, logits)
    for sequence, guess, begin in zip(sequences, guesses, before):
        if sequence.generation.broken_off:
            continue  # nothing of it is in the cache any more
        came = sequence.ids[len(sequence.ids) - (sequence.position - begin) :]
        agreed = shared_length(guess.ids, came)
        sequence.rollback(len(guess.ids) - agreed)
        drafts.learn(sequence, guess, came)
        trace_draft(sequence, guess, begin, agreed)
        with sequence.generation.contained():
            sequence.publish()


def stands_alone(sequence: TokenSequence) -> bool:
    """Whether no filter of the sequence depends on what is committed before it, so that all choices can be filtered at once."""
    return not sequence.constraints and not sequence.request.traced and uses(sequence.request.params) <= ALIKE


def commit_at_once(sequences: list[TokenSequence], guesses: list[Guess], logits: Tensor) -> None:
    """Filter and choose all together, then commit each sequence's tokens up to the first that is not the guess; logits as in `judge`, [.., vocab]."""
    choices = [choice for sequence, guess in zip(sequences, guesses) for choice in choices_of(sequence, guess, ahead=True)]
    scores, errors = Filters([choice.sequence for choice in choices]).each(logits)
    decisions = enumerate(decided(scores, choices))
    for sequence, guess in zip(sequences, guesses):
        own = [next(decisions) for _ in range(len(guess.ids) + 1)]
        for (at, (id, logprob)), guessed in zip(own, [*guess.ids, None]):
            if sequence.finished:
                break
            with sequence.generation.contained():
                if at in errors:
                    raise errors[at]
                sequence.commit(id, refuse_nan(logprob))
            if id != guessed:
                break


def commit_in_turn(sequences: list[TokenSequence], guesses: list[Guess], logits: Tensor) -> None:
    """Filter, choose and commit one after the other: a filter that looks back sees each token before the next is judged; logits as in `judge`, [.., vocab]."""
    parts = dict(zip(sequences, logits.split([len(guess.ids) + 1 for guess in guesses])))
    choices = {sequence: choices_of(sequence, guess, ahead=False) for sequence, guess in zip(sequences, guesses)}
    going, turn = list(sequences), 0
    filters = Filters(going)
    while going:
        if going != filters.sequences:
            filters = Filters(going)
        own = torch.stack([parts[sequence][turn] for sequence in going])
        recorder = TraceRecorder.of(going, own)
        scores, errors = filters.each(own, recorder)
        for index, error in errors.items():
            going[index].generation.fail(error)
        decisions = list(decided(scores, [choices[sequence][turn] for sequence in going]))
        if recorder is not None:
            recorder.chosen(scores, [id for id, _ in decisions])
        for sequence, (id, logprob) in zip(going, decisions):
            if not sequence.finished:
                with sequence.generation.contained():
                    sequence.commit(id, refuse_nan(logprob))
        going = [sequence for sequence, (id, _) in zip(going, decisions) if not sequence.finished and id == choices[sequence][turn].id]
        turn += 1


def decided(scores: Tensor, choices: Sequence[Choice]) -> Iterator[tuple[int, float]]:
    """Return the token of each choice, with its log-probability; scores is [choices, vocab], after every filter.

    A guess that is certain of itself is not looked at: the token is the one that greedy decoding or sampling would choose, and where it
    differs from the guess, it is as the rule of speculation would have it.
    """
    keys = [key(each.sequence.seed, each.position) if each.sequence.request.params.samples else None for each in choices]
    ids, logprobs = choose(scores, [own if choice.scores is None else None for own, choice in zip(keys, choices)])
    broken = logprobs.isnan().tolist()
    doubted = [i for i, choice in enumerate(choices) if choice.scores is not None and not broken[i]]
    if doubted:
        some = [choices[i] for i in doubted]
        p = scores[doubted].double().softmax(dim=-1)
        q = torch.stack([choice.scores for choice in some]).to(p).softmax(dim=-1)
        guessed = torch.tensor([choice.id for choice in some], device=p.device)
        judged = torch.tensor([uniform(each.sequence.seed, each.position, JUDGE) for each in some], dtype=p.dtype, device=p.device)
        ids[doubted] = speculate(p, q, guessed, judged, torch.tensor([keys[i] for i in doubted], device=p.device))
        logprobs[doubted] = p.gather(-1, ids[doubted][:, None]).squeeze(-1).log().to(logprobs)
    return iter(list(zip(ids.tolist(), logprobs.tolist())))


def trace_draft(sequence: TokenSequence, guess: Guess, position: int, accepted: int) -> None:
    """Trace what was guessed at a position, and how much of it came."""
    request, generation = sequence.request, sequence.generation
    if request.traced and guess.ids:
        for i, (id, p) in enumerate(zip(guess.ids, guess.probs)):
            generation.on_event(Provisional(request.index, position + i, id, p, sequence.choice))
        generation.trace(DraftTrace(tuple(guess.ids), accepted), position, sequence.choice)


ASSISTED = StrategySpec(
    "assisted", assisted, about=assisted, options=(Assistants,), least={"prompt_lookup_num_tokens": 4},
    meant=lambda params: bool(params.assistant_model is not None or params.assistant_early_exit or params.prompt_lookup_num_tokens),
    needs=("truncate", "all_positions", "fork"), check=check_assisted,
    paper="Leviathan et al. 2023, Fast inference from transformers via speculative decoding; Chen et al. 2023",
)  # fmt: skip
