"""How likely an encoder-decoder finds targets: of records as training teaches them, a given beginning context and not scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from seodang.data.accounting import Accounting
from seodang.data.errors import UserError
from seodang.data.labels import IGNORE_INDEX
from seodang.data.seq2seq.languages import set_languages
from seodang.data.seq2seq.records import Exchange
from seodang.data.seq2seq.rows import Row, Seq2SeqCounts, Seq2SeqLabeller, told_languages
from seodang.infer.diffusion.likelihood import Bound
from seodang.infer.engine.scoring import Target, first_ids, score_targets, scoring_runner
from seodang.infer.runners.architecture import transformers_model
from seodang.recipes.run.of_diffusion import given
from seodang.recipes.run.score_lines import EXACT
from seodang.recipes.run.scorer import Encoded
from seodang.train.encoder_decoder.pairs import check_pairs_fit, pair_size

OF_ENCODER_DECODERS = ("source_lang", "target_lang", "source_prefix")
UNBOUNDED = 1 << 30  # positions of a side that nothing bounds


def refuse_of_encoder_decoders(model: nn.Module, options: Any) -> None:
    """Raise UserError where an option of encoder-decoders is given for a model that is none."""
    if asked := given(options, OF_ENCODER_DECODERS):
        name, value = next(iter(asked.items()))
        kind = transformers_model(model).config.model_type
        raise UserError(f"--{name} {value} is of encoder-decoders, but this {kind} reads no source: leave it out, or write it into the prompts")


class TargetScorer:
    """Scores targets by an encoder-decoder, by the options of `seodang score`; raises UserError for those that mean nothing here."""

    figures = EXACT

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, options: Any):
        asked = options.of_diffusion() | given(options, ("max_length", "pll_metric"))
        if asked or options.raw:
            name, value = next(iter(asked.items()), ("raw", True))
            raise UserError(f"--{name} {value} means nothing to an encoder-decoder, which reads whole sources and is scored exactly: leave it out")
        self.runner, self.tokenizer, self.options = scoring_runner(model), tokenizer, options

    def encoded(self, exchanges: Iterable[Exchange]) -> tuple[list[Encoded], list[Accounting]]:
        """The records in which there is something to score, and their counts; raises UserError for one that cannot be read, or where none is left."""
        exchanges, options, runner = list(exchanges), self.options, self.runner
        translated = any(exchange.translated for exchange in exchanges)
        set_languages(self.tokenizer, *told_languages(self.tokenizer, options.source_lang, options.target_lang, translated))
        labeller = Seq2SeqLabeller(
            self.tokenizer, partial(first_ids, runner.model), UNBOUNDED, runner.limit or UNBOUNDED,
            options.source_prefix or "", options.literal, "error", options.empty_answers, options.unusable,
        )  # fmt: skip
        counts, records = Seq2SeqCounts(remembers=None), []
        for exchange in exchanges:
            for row in labeller.rows(exchange, counts):
                if runner.source_limit is not None and len(row["input_ids"]) > runner.source_limit:
                    many = f"{len(row['input_ids']):,} tokens, more than the {runner.source_limit:,} positions of the encoder"
                    raise UserError(f"{exchange.where}: the source has {many}: shorten it")
                check_pairs_fit(runner.model, [(exchange.where, *pair_size(row, exchange.where))])
                records.append(Encoded(exchange.where, [judged(row)]))
        counts.refuse_empty()
        return records, [counts]

    def scores(self, targets: Sequence[Target], numbers: Sequence[int]) -> list[Bound]:
        """The score of each target, which is exact."""
        return [Bound(logprobs, None) for logprobs in score_targets(self.runner, targets)]


def judged(row: Row) -> Target:
    """What of a row is scored: what is learned of it."""
    first = next(place for place, label in enumerate(row["labels"]) if label != IGNORE_INDEX)
    return Target(row["input_ids"], row["decoder_input_ids"][: first + 1], row["labels"][first:])
