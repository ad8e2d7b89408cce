"""Guesses from a model with another tokenizer: it drafts text, which is then read in the target's ids."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ...data.literal import literal_text
from ..filters.pipeline import known_alone
from ..requests.request import TokenSequence
from ..text.vocabulary import known_ids
from .drafts import DraftRow, ModelDrafts
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
    return tokenizer(text, add_special_tokens=False)["input_ids"]


class UniversalRow(DraftRow):
    """A draft model's sequence in ids of its own: the filters, which are made for the target's, do not touch it."""

    def context(self) -> list[int]:
        return self.translation.there(self.target.ids)

    def twin(self, target: TokenSequence) -> UniversalRow:
        other = UniversalRow(self.request, self.runner, self.fork_slot(), list(self.ids), target.text, self.seen)
        other.translation = self.translation
        return other.begin(target)

    @property
    def position(self) -> int:
        return self.target.position

    @property
    def unseen(self) -> list[int]:
        return self.ids[self.seen :]

    @property
    def ends(self) -> frozenset[int]:
        return frozenset({self.translation.draft.eos_token_id} - {None})


class UniversalDrafts(ModelDrafts):
    """Guesses for sequences from a model with another tokenizer; its likeliest tokens, certain of themselves."""

    def __init__(self, runner, vocab: int, translation: Translation):
        super().__init__(runner, vocab)
        self.translation = translation

    def _beside(self, sequence: TokenSequence) -> UniversalRow:
        slot = sequence.request.opened(self.runner, self.runner.allocate())
        draft = UniversalRow(sequence.request, self.runner, slot, self.translation.there(sequence.request.prompt_ids), sequence.text)
        draft.translation = self.translation
        return draft.begin(sequence)

    def _extend(self, drafts: list[DraftRow], logits) -> list[DraftRow]:
        logits = known_alone(logits.float(), known_ids(self.translation.draft, logits.shape[-1]))
        probs, ids = logits.softmax(dim=-1).max(dim=-1)
        for draft, id, p in zip(drafts, ids.tolist(), probs.tolist()):
            draft.ids.append(id)
            draft.guess.ids.append(id)
            draft.guess.probs.append(p)
        return drafts

    def _told(self, draft: UniversalRow) -> Guess:
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
