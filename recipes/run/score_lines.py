"""What `seodang score` writes: of each record a line, and of all of them one; of bounds, with their errors."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from seodang.data.accounting import Accounting
from seodang.data.preference_rows import preference_pairs
from seodang.infer.diffusion.likelihood import Bound, error_of
from seodang.train.maths.denoising import ratio_with_error

EXACT, BOUND, PSEUDO = "exact", "bound", "pseudo"  # what scores are: log-probabilities, bounds on them, pseudo-log-likelihoods


@dataclass
class Totals:
    """What the last line is made of, and by which names; of bounds their standard errors are told."""

    counts: Sequence[Accounting]
    figures: str = EXACT
    values: list[float] = field(default_factory=list)  # of each answer
    tokens: list[int] = field(default_factory=list)
    errors: list[float | None] = field(default_factory=list)  # of each record's answers together
    margins: list[float] = field(default_factory=list)  # of each pair
    margin_errors: list[float | None] = field(default_factory=list)  # of each record's pairs together

    def line(self, scores: Sequence[Bound], ranks: Sequence[float] | None, with_tokens: bool) -> dict[str, Any]:
        """What is written of one record, whose scores are counted."""
        self.values += [score.value for score in scores]
        self.tokens += [len(score.shares) for score in scores]
        self.errors.append(error_of([(1.0, score) for score in scores]))
        answers = [self._answer(score, with_tokens) for score in scores]
        if ranks is None:
            return answers[0]
        margin = self._margin(scores, preference_pairs(ranks))
        if len(answers) == 2:
            return {"chosen": answers[0], "rejected": answers[1], **margin}
        return {"answers": [{"rank": rank, **each} for rank, each in zip(ranks, answers, strict=True)], **margin}

    @property
    def bounds(self) -> bool:
        """Whether the scores are bounds."""
        return self.figures == BOUND

    def _answer(self, score: Bound, with_tokens: bool) -> dict[str, Any]:
        """An answer's log-probability in nats or the bound on it, the tokens it sums over, and with `with_tokens` each token's own part."""
        told = self._figures(score.value, score.error, len(score.shares))
        return {**told, "logprobs": score.shares.tolist()} if with_tokens else told

    def _figures(self, value: float, error: float | None, tokens: int) -> dict[str, Any]:
        if self.figures == PSEUDO:
            return {"pll": value, "tokens": tokens, "pll_per_token": value / tokens, "pseudo_perplexity": perplexity(value, tokens)}
        if not self.bounds:
            return {"logprob": value, "tokens": tokens, "perplexity": perplexity(value, tokens)}
        a_token = {"elbo_per_token": value / tokens, "elbo_per_token_se": None if error is None else error / tokens}
        return {"elbo": value, "elbo_se": error, "tokens": tokens, **a_token, "perplexity_bound": perplexity(value, tokens)}

    def _margin(self, scores: Sequence[Bound], pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """By how many nats the better answer is likelier than the worse one, the mean over a record's pairs."""
        found = [scores[better].value - scores[worse].value for better, worse in pairs]
        self.margins += found
        leads = Counter(better for better, _ in pairs)
        leads.subtract(worse for _, worse in pairs)
        error = error_of([(leads[place], score) for place, score in enumerate(scores)])
        self.margin_errors.append(error)
        told = {"margin": math.fsum(found) / len(found)}
        return {**told, "margin_se": None if error is None else error / len(found)} if self.bounds else told

    def line_of_all(self) -> dict[str, Any]:
        """The last line: what became of the records, all answers together, and all pairs."""
        dropped = sum((each.dropped for each in self.counts), Counter())
        told = {"records": sum(each.records for each in self.counts), **({"dropped": dict(dropped)} if dropped else {})}
        told |= {"answers": len(self.values), **self._figures(math.fsum(self.values), _together(self.errors), sum(self.tokens))}
        if self.bounds:
            told["elbo_per_token_sampling_se"] = ratio_with_error(self.values, self.tokens)[1]
        if self.margins:
            pairs, error = len(self.margins), _together(self.margin_errors)
            told |= {"pairs": pairs, "chosen_above": sum(margin > 0 for margin in self.margins) / pairs, "margin": math.fsum(self.margins) / pairs}
            told |= {"margin_se": None if error is None else error / pairs} if self.bounds else {}
        return told


def _together(errors: Sequence[float | None]) -> float | None:
    """The error of a sum of independent numbers; None where that of one is not known."""
    return None if None in errors else math.hypot(*errors)


def perplexity(logprob: float, tokens: int) -> float:
    """exp(-logprob / tokens), held below infinity."""
    return math.exp(min(-logprob / tokens, 700.0))
