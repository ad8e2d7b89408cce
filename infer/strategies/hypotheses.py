"""The finished hypotheses of a beam search."""

from __future__ import annotations

from ..requests.sequence import TokenSequence


class BeamHypotheses:
    """Keeps the best finished hypotheses, best first, and judges whether a search can still improve them.

    A score is the sum of log-probabilities over length^length_penalty (Wu et al., 2016); the length counts the generated tokens, an
    end token included, without a given beginning of the answer.
    """

    def __init__(self, sequence: TokenSequence, capacity: int):
        """`sequence` is where the search begins."""
        params = sequence.request.params
        self.capacity = capacity
        self.sequences: list[TokenSequence] = []
        self.begin = sequence.position
        self.penalty, self.early_stopping = params.length_penalty, params.early_stopping
        self.longest = params.max_new_tokens - self.begin

    @property
    def full(self) -> bool:
        """Whether there are as many as are kept."""
        return len(self.sequences) == self.capacity

    def add(self, sequence: TokenSequence, total: float) -> None:
        """Take a hypothesis in, if it is among the best; of equal ones the elder stays."""
        sequence.score = self.score(total, sequence.position - self.begin)
        self.sequences = sorted([*self.sequences, sequence], key=lambda each: -each.score)[: self.capacity]

    def score(self, total: float, length: int) -> float:
        """The score of a hypothesis of so many tokens with this sum."""
        return total / length**self.penalty

    def is_done(self, best: float, position: int) -> bool:
        """Whether no live hypothesis, of which the best has this sum at this position, is expected to come in, as transformers judges it.

        With `early_stopping` that is so once there are enough; without, where the best would not come in if it ended here; and "never"
        asks, with a positive length_penalty, whether it would if it ended at the greatest length without a loss.
        """
        if not self.full or self.early_stopping is True:
            return self.full
        hopeful = self.early_stopping == "never" and self.penalty > 0
        return self.score(best, self.longest if hopeful else position - self.begin) <= self.sequences[-1].score
