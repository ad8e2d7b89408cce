"""Beam search for answers that contain given words (Post and Vilar, 2018; Hu et al., 2019)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ...data.errors import UserError
from ..constraints.forced_words import WORDS, WORDS_IDS, ForcedWords, words_of
from ..requests.generation import Generation
from ..requests.options import CONFIG, Command, option, settings
from ..requests.params import RequestParams
from ..requests.sequence import TokenSequence
from ..requests.strategy import Host, Strategy
from .beam import ENDED, SHARED_BY_BEAMS, BeamCandidate, Beams, Search, beams, check_beams, searched
from .hypotheses import Continuation
from .spec import StrategySpec

STATE = "force_words"


def constrained_beam(generation: Generation, host: Host) -> Strategy:
    """Search the likeliest answer that contains all of `force_words_ids`, of which an entry may leave a choice.

    Follows transformers 4.55, but for four things. The words must stand in the answer: the prompt does not count. Every answer has
    them: where too few hypotheses are left that can still take them all, some make room for ones that can; and if filters or time leave
    fewer answers than asked for, UserError says so. Words may overlap, and a token that breaks off a word may begin it anew.
    A token that a filter dropped is never forced.
    """
    return searched(generation, host, lambda sequence, group: WordSearch(sequence, generation.request.params.num_beams))


class WordSearch(Search):
    """A beam search in which hypotheses compete with those that have equally much of the words."""

    counts_ended = True

    def __init__(self, sequence: TokenSequence, width: int):
        super().__init__(sequence, width)
        self.least = self.request.params.num_return_sequences
        words = sequence.states[STATE] = ForcedWords(words_of(self.request.params))
        for id in sequence.new_ids:
            words.accept(id)

    def keep(self, child: BeamCandidate) -> None:
        """Take a finished child in among the hypotheses, if it has all the words."""
        if not child.sequence.states[STATE].missing:
            super().keep(child)

    def choose(self, children: list[BeamCandidate], logprobs: Tensor) -> list[BeamCandidate]:
        """Add for each sequence the tokens that bring it nearer to its words, let the banks choose in turn, and see that answers with all words remain.

        logprobs is [sequences, vocab], after every filter, here and below.
        """
        advancing = self.advancing(children, logprobs)
        chosen = in_turn(children + advancing)[: self.width] if advancing else children
        if self.ways(chosen) < self.least:
            chosen = self.with_ways(chosen, children + advancing + self.others(logprobs))
        for rank, child in enumerate(chosen):
            child.rank = rank
        return chosen

    def advancing(self, children: list[BeamCandidate], logprobs: Tensor) -> list[BeamCandidate]:
        """Each sequence continued by the next tokens of its words, where that is not among the children; logprobs is [sequences, vocab]."""
        wanted = [(parent, id) for parent, sequence in enumerate(self.sequences) for id in sequence.states[STATE].next_ids()]
        return self.continued(wanted, children, logprobs)

    def others(self, logprobs: Tensor) -> list[BeamCandidate]:
        """The likeliest continuations of each sequence by itself; logprobs is [sequences, vocab]."""
        ids = logprobs.topk(min(self.count + self.least, logprobs.shape[1])).indices.tolist()
        return self.continued([(parent, id) for parent, own in enumerate(ids) for id in own], [], logprobs)

    def continued(self, wanted: list[tuple[int, int]], children: list[BeamCandidate], logprobs: Tensor) -> list[BeamCandidate]:
        """Commit tokens, (sequence, id), that are not among the children already; those that were dropped or end the answer are left out."""
        there = {child.origin[:2] for child in children}
        wanted = [each for each in wanted if each not in there]
        if not wanted:
            return []
        sequences, ids = torch.tensor(wanted, device=logprobs.device).T
        found = zip(wanted, logprobs[sequences, ids].tolist())
        candidates = [Continuation(sequence, id, logprob, self.sums[sequence] + logprob) for (sequence, id), logprob in found if logprob > -torch.inf]
        return [child for candidate in candidates if (child := self.child(0, candidate)).sequence.finish_reason not in ENDED]

    def ways(self, children: list[BeamCandidate]) -> int:
        """How many answers with all the words are there or will surely come of these children."""
        slack = [slack_of(child) for child in children]
        return len(self.ended.sequences) + sum(self.least if each > 0 else each == 0 for each in slack)

    def with_ways(self, chosen: list[BeamCandidate], pool: list[BeamCandidate]) -> list[BeamCandidate]:
        """Put the best children that can still take all the words in the places of the last that cannot, as many as are needed."""
        chosen, there = list(chosen), {child.origin[:2] for child in chosen}
        able = sorted((child for child in pool if slack_of(child) >= 0), key=lambda child: -child.total)
        for child in able:
            unable = [place for place, each in enumerate(chosen) if slack_of(each) < 0]
            if self.ways(chosen) >= self.least or not unable and len(chosen) == self.width:
                break
            if child.origin[:2] not in there:
                there.add(child.origin[:2])
                if len(chosen) == self.width:
                    del chosen[unable[-1]]
                chosen.append(child)
        return chosen


def slack_of(child: BeamCandidate) -> int:
    """How many tokens more than the missing words need the hypothesis may still take."""
    return child.sequence.request.params.max_new_tokens - child.sequence.position - child.sequence.states[STATE].still


def in_turn(children: list[BeamCandidate]) -> list[BeamCandidate]:
    """Order children by turns: the best of each bank, the highest bank first, then the second best of each, and so on."""
    banks = {child: child.sequence.states[STATE].bank for child in children}
    turns: Counter[int] = Counter()
    placed = []
    for child in sorted(children, key=lambda child: (-banks[child], -child.total)):
        placed.append((turns[banks[child]], child))
        turns[banks[child]] += 1
    return [child for _, child in sorted(placed, key=lambda each: each[0])]


def check_constrained(params: RequestParams) -> None:
    """Raise UserError for no words, or for more answers than beams."""
    check_beams(params)
    if not params.force_words and not params.force_words_ids:
        raise UserError("strategy 'constrained_beam' has no words to force: give force_words or force_words_ids")


@settings
class ForcedWordsOptions:
    force_words: Sequence[str | Sequence[str]] = option(
        (), "Texts that must come somewhere.", WORDS, example=("so",), command=Command(list[str])
    )
    force_words_ids: Sequence[Sequence] = option(
        (), "Sequences of ids, or lists of such to choose from, that must come somewhere.", WORDS_IDS, example=((5,),), same_in=(CONFIG,),
        command=False,
    )  # fmt: skip


CONSTRAINED_BEAM = StrategySpec(
    "constrained_beam", constrained_beam, about=constrained_beam, options=(Beams, ForcedWordsOptions),
    least={"num_beams": 2, "force_words_ids": ((5,),)}, meant=lambda params: bool(params.force_words or params.force_words_ids),
    needs=("fork",), check=check_constrained, width=beams, samples=False, sees_logprobs=True, streams=SHARED_BY_BEAMS,
    paper="Hokamp & Liu 2017, Lexically constrained decoding; Post & Vilar 2018",
)  # fmt: skip
