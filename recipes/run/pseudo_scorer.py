"""How likely an encoder finds texts: pseudo-log-likelihoods of records, read as texts without a chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from seodang.data.accounting import EMPTY, Accounting
from seodang.data.errors import UserError
from seodang.data.formats import Dialogue, Text
from seodang.data.preference_rows import ALONE, TIE, preference_pairs
from seodang.data.preferences import RankedPreference
from seodang.infer.diffusion.likelihood import Bound
from seodang.infer.encoders.encoder import Encoder
from seodang.infer.encoders.pseudo_likelihood import METRICS, Judged, check_metric, judged_behind, judged_text, pseudo_logprobs
from seodang.infer.runners.architecture import transformers_model
from seodang.recipes.run.of_diffusion import given
from seodang.recipes.run.score_lines import PSEUDO
from seodang.recipes.run.scorer import Encoded

Example = Dialogue | Text | RankedPreference


def refuse_of_encoders(model: nn.Module, pll_metric: str | None) -> None:
    """Raise UserError where the option of encoders is given for a model that is none."""
    if pll_metric is not None:
        kind = transformers_model(model).config.model_type
        raise UserError(f"--pll_metric {pll_metric} is of encoders, but this {kind} has a log-likelihood of its own: leave it out")


class PseudoScorer:
    """Scores texts by an encoder, by the options of `seodang score`; raises UserError for those that mean nothing here."""

    figures = PSEUDO

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, options: Any):
        if asked := options.of_diffusion() | given(options, ("max_length",)):
            name, value = next(iter(asked.items()))
            raise UserError(f"--{name} {value} means nothing to an encoder, which judges a text as a whole and exactly: leave it out")
        self.encoder, self.options = Encoder(model, tokenizer), options
        self.metric = options.pll_metric or METRICS[0]
        check_metric(self.metric, tokenizer)

    def encoded(self, examples: Iterable[Example]) -> tuple[list[Encoded], list[Accounting]]:
        """The records in which there is something to score, and their counts; raises UserError for one that cannot be read, or where none is left."""
        counts, records = Accounting(remembers=None), []
        for example in examples:
            before, answers, ranks = texts_of(example)
            if isinstance(example, Dialogue) and not answers[0].strip() and self.options.empty_answers == "error":
                raise UserError(f"{example.where}: the completion is empty: fill it in, or leave such records out with --empty_answers drop")
            kept = [place for place, answer in enumerate(answers) if answer.strip()]
            reasons = Counter({EMPTY: len(answers) - len(kept)} if len(kept) < len(answers) else {})
            if isinstance(example, RankedPreference):
                ranks = [ranks[place] for place in kept]
                if flaw := example.flaw or (ALONE if len(kept) < 2 else "" if preference_pairs(ranks) else TIE):
                    reasons[flaw], kept = 1, []
            judged = [self._judged(before, answers[place], example.where) for place in kept]
            try:
                rows = [{"ids": each.reading.ids, "judged": list(each.places)} for each in judged]
                counts.count_record(rows, reasons, self.options.unusable, where=example.where, taken=example.taken)
            except UserError as error:
                raise UserError(f"{example.where}: {error}") from None
            if judged:
                records.append(Encoded(example.where, judged, ranks))
        counts.refuse_empty()
        return records, [counts]

    def _judged(self, before: str, text: str, where: str) -> Judged:
        return judged_behind(self.encoder, before, text, where) if before.strip() else judged_text(self.encoder, text, where)

    def scores(self, judged: Sequence[Judged], numbers: Sequence[int]) -> list[Bound]:
        """The score of each text, which is exact."""
        return [Bound(logprobs, None) for logprobs in pseudo_logprobs(self.encoder, judged, self.metric)]


def texts_of(example: Example) -> tuple[str, list[str], list[float] | None]:
    """What stands before, the texts that are judged behind it, and their ranks, the best first; raises UserError for a dialogue of several turns."""
    if isinstance(example, Text):
        return "", [example.text], None
    ranks: list[float] | None = None
    if isinstance(example, RankedPreference):
        order = sorted(range(len(example.ranks)), key=example.ranks.__getitem__)
        prompt, answers, ranks = example.prompt, [example.answers[place] for place in order], [example.ranks[place] for place in order]
    else:
        *prompt, answer = example.messages
        answers = [answer]
    said = [message.get("content") for message in (*prompt, *answers)]
    if len(prompt) > 1 or not all(isinstance(text, str) for text in said):
        raise UserError(f"{example.where}: an encoder judges texts and knows no chat template: give one prompt and its completions, all texts, or a text")
    return said[0] if prompt else "", said[len(prompt) :], ranks
