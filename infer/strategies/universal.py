"""Guesses from a model with another tokenizer: it drafts text, which is then read in the target's ids."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...data.literal import literal_text
from ..filters.pipeline import known_alone
from ..requests.sequence import TokenSequence
from ..runners.contract import Runner
from ..text.vocabulary import known_ids
from .drafts import DraftSequence, ModelDrafts
from .speculation import Guess

TAIL = 8  # newest tokens that a draft is read together with, so that it is split as it would be behind them
UNFINISHED = "\ufffd"  # where a text ends within a character


class Translation:
    """Ids of the target's tokenizer to those of the draft's, and drafts back."""

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
