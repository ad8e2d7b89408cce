"""Guesses that a smaller model drafts, token by token."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...data.literal import literal_text
from ..filters.pipeline import Filters, known_alone
from ..requests.generation import Generation
from ..requests.rng import choose
from ..requests.sequence import TokenSequence, new_slot, release, release_finished, shared_length
from ..requests.strategy import Forward, next_tokens
from ..runners.contract import Runner
from ..text.vocabulary import known_ids
from .speculation import Guess

PART = 256  # so much of a long prompt a draft reads at a time, while its sequence goes on without a guess: others wait for them both
DRAFT = 1  # which of a sequence's random numbers for a position is the draft's


class DraftSequence(TokenSequence):
    """A draft model's sequence: what the target sequence has, and the guesses that are to follow."""

    @classmethod
    def open_for(cls, target: TokenSequence, runner: Runner) -> DraftSequence:
        """Return a sequence without a past in the runner of the draft model."""
        generation = target.generation
        return cls(generation, runner, new_slot(generation, runner), list(generation.request.prompt_ids), target.text).begin(target)

    def begin(self, target: TokenSequence) -> DraftSequence:
        """Draft for this target from now on, and return itself."""
        self.target, self.choice = target, target.choice
        self.tokens = target.request.params.num_assistant_tokens
        self.guess = Guess()
        return self

    def fork_for(self, target: TokenSequence) -> DraftSequence:
        """Return a sequence with the same past for another answer of the request."""
        return type(self)(self.generation, self.runner, self.fork_slot(), list(self.ids), target.text).begin(target)

    @property
    def asks_likelihoods(self) -> bool:
        """Never: what the draft thinks is nobody's concern."""
        return False

    def context(self) -> list[int]:
        """What the target has, in the draft's ids."""
        return list(self.target.ids)

    def follow(self) -> None:
        """Take the target's tokens for one's own; what was guessed and did not come leaves the cache."""
        ids = self.context()
        same = shared_length(self.ids, ids)
        self.forget(max(self.seen - min(same, max(len(ids) - 1, 0)), 0))  # the newest is run again where need be: its logits are wanted
        self.ids, self._remembered = ids, min(self._remembered, same)
        self.states = {name: state.fork() for name, state in self.target.states.items()}
        self.constraints = [constraint.fork() for constraint in self.target.constraints]
        self.guess = Guess()

    def forget(self, count: int) -> None:
        """Take the newest `count` positions out of the cache: guesses that did not come."""
        self.rollback(count)

    def push(self, id: int, p: float, scores: Tensor | None) -> None:
        """Append a guess of probability p, drawn from scores, [vocab], where it was drawn."""
        self.ids.append(id)
        for state in (*self.states.values(), *self.constraints):
            state.accept(id)
        self.guess.ids.append(id)
        self.guess.probs.append(p)
        if scores is not None:
            self.guess.scores.append(scores)

    @property
    def room(self) -> int:
        """How many tokens are worth drafting now: a pass of the target gives one more than is guessed."""
        params, limit = self.request.params, self.runner.limit
        left = params.max_new_tokens - self.target.position - 1
        return min(self.tokens, left, left if limit is None else limit - len(self.ids) + 1)

    @property
    def ends(self) -> frozenset[int]:
        """What ends the answer."""
        return self.request.ends

    @property
    def going(self) -> bool:
        """Whether to draft on after the last guess, which is kept however unsure: to leave it out would favour some tokens."""
        sure = self.guess.probs[-1] >= self.request.params.assistant_confidence_threshold
        return sure and self.guess.ids[-1] not in self.ends and not self.target.finished

    def learn(self, agreed: int) -> None:
        """Draft two more tokens next time where all came true, else one less (transformers' heuristic)."""
        if self.guess.ids and self.request.params.num_assistant_tokens_schedule == "heuristic":
            self.tokens = self.tokens + 2 if agreed == len(self.guess.ids) else max(1, self.tokens - 1)


class ModelDrafts:
    """Guesses for sequences from a model with their vocabulary, drawn from its distribution after the request's own filters.

    All sequences draft together. A request for several answers shows the model its prompt once.
    """

    def __init__(self, runner: Runner, vocab: int):
        self.runner, self.vocab = runner, vocab
        self._drafts: dict[TokenSequence, DraftSequence] = {}

    def guess(self, sequences: Sequence[TokenSequence]) -> Generator[Forward, Tensor, list[Guess]]:
        """Return what may follow each sequence; nothing, as long as its draft is still reading the prompt."""
        yield from self._open([sequence for sequence in sequences if sequence not in self._drafts])
        drafts = [self._drafts[sequence] for sequence in sequences if sequence in self._drafts]
        for draft in drafts:
            draft.follow()
        room = {draft: draft.room for draft in drafts}
        able = [draft for draft in drafts if draft.ids and room[draft] > 0]
        if reading := [draft for draft in able if self.reads_by_parts(draft)]:
            yield self.parts(reading)
            self._let_go(sequences)
        yield from self._draft([draft for draft in able if draft not in reading and not draft.target.finished], room, sequences)
        return [self._in_target_ids(self._drafts[sequence]) if sequence in self._drafts else Guess() for sequence in sequences]

    def _draft(
        self, going: list[DraftSequence], room: Mapping[DraftSequence, int], sequences: Sequence[TokenSequence]
    ) -> Generator[Forward, Tensor, None]:
        """Draft for these, each as long as it is sure and has room: a pass a token. Between two passes those of all `sequences` that are over are let go."""
        while going:
            going = self._go_on(going, (yield next_tokens(going)), room)
            self._let_go(sequences)

    def _go_on(self, going: list[DraftSequence], logits: Tensor, room: Mapping[DraftSequence, int]) -> list[DraftSequence]:
        """Draft one token a sequence by logits, [sequences, vocab]; return the sequences that are to have another."""
        return [draft for draft in self._extend(going, logits) if len(draft.guess.ids) < room[draft] and draft.going]

    def reads_by_parts(self, draft: DraftSequence) -> bool:
        """Whether the draft has more to read than one pass takes."""
        return self.runner.capabilities.parts and len(draft.unseen) > PART

    def parts(self, drafts: list[DraftSequence]) -> Forward:
        """The pass that reads a part of what each draft has to read."""
        return Forward(drafts, [draft.unseen[:PART] for draft in drafts], [0] * len(drafts))

    def learn(self, sequence: TokenSequence, guess: Guess, came: Sequence[int]) -> None:
        """Take note of the tokens that came after a guess."""
        if sequence in self._drafts:
            self._drafts[sequence].learn(shared_length(guess.ids, list(came)))

    def release(self, sequences: Sequence[TokenSequence]) -> None:
        """Give back the draft model's slots of these sequences."""
        release([self._drafts.pop(sequence) for sequence in sequences if sequence in self._drafts])

    def _let_go(self, sequences: Sequence[TokenSequence]) -> None:
        """Give back the slots of sequences that were cancelled since they were guessed for, and those of their drafts."""
        self.release([sequence for sequence in sequences if sequence.finished])
        release_finished(sequences)

    def _extend(self, drafts: list[DraftSequence], logits: Tensor) -> list[DraftSequence]:
        """Draft one token a sequence by logits, [sequences, vocab]; return the sequences that got one.

        Where filters fail or the draft's scores are no distribution, nothing is guessed: whether the answer ever gets there is for its own sequence to find out.
        """
        scores, errors = Filters(drafts).each(fitted(logits, self.vocab))
        drawn = [draft.request.params.samples for draft in drafts]
        ids, logprobs = choose(scores, [draft.key(DRAFT) if each else None for draft, each in zip(drafts, drawn)])
        probs = logprobs.exp().tolist()
        able = [i for i, p in enumerate(probs) if i not in errors and not math.isnan(p)]
        for i in able:
            drafts[i].push(int(ids[i]), probs[i], scores[i] if drawn[i] else None)
        return [drafts[i] for i in able]

    def _open(self, sequences: Sequence[TokenSequence]) -> Generator[Forward, Tensor, None]:
        """Have a draft for each sequence; the further answers of a request fork that of the first when it has read the prompt."""
        first = {draft.generation: draft for draft in reversed(self._drafts.values())}
        by_request: dict[Generation, list[TokenSequence]] = {}
        for sequence in sequences:
            by_request.setdefault(sequence.generation, []).append(sequence)
        for generation, others in by_request.items():
            if generation not in first:
                sequence = others.pop(0)
                first[generation] = self._drafts[sequence] = self._open_one(sequence)
            draft = first[generation]
            if self.reads_by_parts(draft):
                continue
            if others and draft.unseen and (self.runner.limit is None or len(draft.ids) <= self.runner.limit):
                yield next_tokens([draft])
            self._drafts.update({other: draft.fork_for(other) for other in others})

    def _open_one(self, sequence: TokenSequence) -> DraftSequence:
        return DraftSequence.open_for(sequence, self.runner)

    def _in_target_ids(self, draft: DraftSequence) -> Guess:
        """The guess in the target's ids."""
        return draft.guess


def fitted(logits: Tensor, vocab: int) -> Tensor:
    """Cut or fill up with -inf to the target's vocabulary, [n, vocab]: where the tokenizer is the same, the two differ by padding alone."""
    width = logits.shape[-1]
    return logits[:, :vocab] if width >= vocab else F.pad(logits, (0, vocab - width), value=-torch.inf)


TAIL = 8  # newest tokens that a draft is read together with, so that it is split as it would be behind them
UNFINISHED = "\ufffd"  # where a text ends within a character


class Translation:
    """Ids of the target's tokenizer to those of the draft's, and drafts back: what is matched is text.

    So drafts may come from a model of another vocabulary (Timor et al. 2025, "Accelerating LLM inference with lossless speculative decoding
    algorithms for heterogeneous vocabularies").
    """

    def __init__(self, target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase):
        self.target, self.draft = target, draft

    def there(self, ids: list[int]) -> list[int]:
        """Return the draft model's ids of a text."""
        return encoded(self.draft, literal_text(self.target, ids).rstrip(UNFINISHED))

    def back(self, past: list[int], drafted: list[int], guess: list[int]) -> list[int]:
        """Return a draft in the target's ids, as they would go on behind `past`; `guess` follows `drafted` in the draft's ids."""
        window = drafted[-TAIL:]
        before, after = literal_text(self.draft, window), literal_text(self.draft, window + guess)
        text = (after[len(before) :] if after.startswith(before) else literal_text(self.draft, guess)).rstrip(UNFINISHED)
        tail = past[-TAIL:]
        ids = encoded(self.target, literal_text(self.target, tail) + text)
        # where the tail would now be split in another way, what was said stays as it is and the text is read by itself
        return ids[len(tail) :] if ids[: len(tail)] == tail else encoded(self.target, text)


def encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return a text's ids, without the tokens that stand around a whole one."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


class TranslatedDraft(DraftSequence):
    """A draft model's sequence in ids of its own: the filters, which are made for the target's, do not touch it."""

    translation: Translation

    def context(self) -> list[int]:
        """What the target has, in the draft's ids."""
        return self.translation.there(self.target.ids)

    def fork_for(self, target: TokenSequence) -> TranslatedDraft:
        """Return a sequence with the same past for another answer of the request."""
        other = TranslatedDraft(self.generation, self.runner, self.fork_slot(), list(self.ids), target.text)
        other.translation = self.translation
        return other.begin(target)

    @property
    def position(self) -> int:
        """How many tokens the target's answer has."""
        return self.target.position

    @property
    def reads_prompt(self) -> bool:
        """Whether the next pass begins with it: where it ends in the draft's ids is not known."""
        return not self.seen

    @property
    def unseen(self) -> list[int]:
        """The ids that the next pass must bring."""
        return self.ids[self.seen :]

    @property
    def ends(self) -> frozenset[int]:
        """What ends a text in the draft's ids."""
        return frozenset({self.translation.draft.eos_token_id} - {None})


class UniversalDrafts(ModelDrafts):
    """Guesses for sequences from a model with another tokenizer; its likeliest tokens, certain of themselves."""

    def __init__(self, runner: Runner, vocab: int, translation: Translation):
        super().__init__(runner, vocab)
        self.translation = translation

    def _open_one(self, sequence: TokenSequence) -> TranslatedDraft:
        slot = sequence.generation.hold_slot(self.runner, self.runner.allocate())
        draft = TranslatedDraft(sequence.generation, self.runner, slot, self.translation.there(sequence.request.prompt_ids), sequence.text)
        draft.translation = self.translation
        return draft.begin(sequence)

    def _extend(self, drafts: list[DraftSequence], logits: Tensor) -> list[DraftSequence]:
        logits = known_alone(logits.float(), known_ids(self.translation.draft, logits.shape[-1]))
        probs, ids = logits.softmax(dim=-1).max(dim=-1)
        for draft, id, p in zip(drafts, ids.tolist(), probs.tolist()):
            draft.ids.append(id)
            draft.guess.ids.append(id)
            draft.guess.probs.append(p)
        return drafts

    def _in_target_ids(self, draft: TranslatedDraft) -> Guess:
        drafted = draft.guess.ids
        if not drafted:
            return Guess()
        ended = drafted[-1] in draft.ends
        before, new = draft.ids[: len(draft.ids) - len(drafted)], drafted[: len(drafted) - ended]
        ids = self.translation.back(draft.target.ids, before, new) if new else []
        end = self.translation.target.eos_token_id
        if ended and end in draft.request.end_ids:
            ids = [*ids, end]
        return Guess(ids, probs=[min(draft.guess.probs)] * len(ids))
