"""Log-probability and perplexity of given answers, as JSON Lines.

seodang score MODEL --data answers.jsonl > scores.jsonl
seodang score MODEL --data pairs.jsonl --output scores.jsonl

The answer of a record is its last assistant turn, end-of-turn token included; of a plain text, all but its first token. Perplexity is
exp(-logprob / tokens). Of a preference both sides are scored, chosen and rejected, or each of its ranked answers, the best first; the margin is
by how many nats the better one is likelier, of several pairs the mean. The last line has the totals: with preferences also the pairs, in what share of
them chosen is likelier than rejected, and the mean margin.

Of an encoder-decoder the target is scored behind its source, its end token included; a record's prefix, with which it begins, is given and not scored.
Of a diffusion model elbo is a bound on it, estimated by draws of masks, elbo_se its error; of an encoder pll is the pseudo-log-likelihood.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from seodang.data.accounting import EMPTY, Accounting, check_unusable
from seodang.data.errors import UserError
from seodang.data.files.sources import read
from seodang.data.formats import SHAPES, Dialogue, Text
from seodang.data.preferences import PREFERENCE_SHAPES, RankedPreference
from seodang.data.seq2seq.records import seq2seq_shapes
from seodang.infer.engine.checkpoint_settings import known_config
from seodang.infer.runners.architecture import transformers_model
from seodang.infer.runners.paradigm import is_encoder
from seodang.recipes.options.decoding import SpeakingModel, option
from seodang.recipes.options.outputs import empty, open_output
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.record import FileOptions
from seodang.recipes.run.of_diffusion import drawing, given
from seodang.recipes.run.pseudo_scorer import PseudoScorer, refuse_of_encoders
from seodang.recipes.run.score_lines import Totals
from seodang.recipes.run.scorer import Encoded, Ids, Scorer
from seodang.recipes.run.target_scorer import TargetScorer, refuse_of_encoder_decoders

RECORDS_A_CALL = 256  # scored together and then written


@dataclass
class Score(FileOptions):
    """What is scored and what is written of it."""

    data: list[str] = field(metadata={"help": "Files, folders or hub names of records to teach (triplets, prompt-completion, ...) or of preferences."})
    shape: str | None = option("Record shape; recognised from the keys by default.")
    split: str = option("Which split of a hub dataset.", "train")
    max_length: int | None = option("Longer records lose context on the left, never the answer; without, one too long for the model is refused.")
    literal: bool = option("Encode special-token text inside content as plain text.", True)
    empty_answers: str = option("error or drop; of preferences they are left out.", "error")
    unusable: str = option("drop or error: records in which nothing can be scored.", "drop")
    output: str | None = option("Write the lines to this file and the totals to the terminal too.")
    raw: bool = option("Score the completion as a continuation of the prompt's text, without the chat template.", False)
    tokens: bool = option("Add each token's log-probability.", False)
    draws: int | None = option("Diffusion: masks that the bound is estimated with, 32; all there are where these are no more.")
    estimator: str | None = option("Diffusion: counts (exact numbers of masks, as LLaDA) or times (1/t, which varies more).")
    seed: int | None = option("Diffusion: what the masks are drawn from, 0.")
    canvas: int | None = option("Diffusion: fill answers up with end-of-text to a multiple of this, as in training. By default nothing is added.")
    source_lang: str | None = option("Encoder-decoders: language of the sources, the checkpoint's code, and the key in a translation.")
    target_lang: str | None = option("Encoder-decoders: language of the targets, likewise.")
    source_prefix: str | None = option("Encoder-decoders: a text before every source, as in training.")
    pll_metric: str | None = option("Encoders: original, or within_word_l2r. The latter masks what follows a token in its word as well.")

    def __post_init__(self) -> None:
        check_unusable(self.unusable)
        drawing(self.of_diffusion())
        if self.empty_answers not in ("error", "drop"):
            raise UserError(f"empty_answers must be error or drop, got {self.empty_answers!r}")
        if self.max_length is not None and self.raw:
            raise UserError(f"max_length {self.max_length} does not go with raw, whose prompts are not cut: leave it out")
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"max_length must be at least 2, got {self.max_length}")

    def of_diffusion(self) -> dict[str, Any]:
        """The options that were given of those that only diffusion has."""
        return given(self, ("draws", "estimator", "seed", "canvas"))


@dataclass
class ScoringModel(SpeakingModel):
    """Which model scores, and where it is loaded."""

    takes_encoders: ClassVar[bool] = True


@command
def main(argv: list[str] | None = None) -> int:
    model_options, options = parse(argv, ScoringModel, Score, prog="seodang score", positional=("model",), description=__doc__)
    config = known_config(model_options.model)
    reads_sources = config is not None and config.is_encoder_decoder
    shapes = seq2seq_shapes(options.source_lang, options.target_lang) if reads_sources else {**PREFERENCE_SHAPES, **SHAPES}
    examples = read(options.data, shape=options.shape, split=options.split, shapes=shapes, **options.reading())
    for example in () if reads_sources else examples:
        refuse_unscorable(example, options.raw)
    with ExitStack() as files:
        output = files.enter_context(open_output(options.output)) if options.output else None
        model, tokenizer = model_options.open()
        model_options.tell(model)
        if reads_sources:
            scorer: Scorer | PseudoScorer | TargetScorer = TargetScorer(model, tokenizer, options)
            records, counts = scorer.encoded(examples)
        elif is_encoder(transformers_model(model).config):
            refuse_of_encoder_decoders(model, options)
            scorer = PseudoScorer(model, tokenizer, options)
            records, counts = scorer.encoded(examples)
        else:
            refuse_of_encoder_decoders(model, options)
            refuse_of_encoders(model, options.pll_metric)
            scorer = Scorer(model, tokenizer, options.of_diffusion())
            records, counts = encode_records(tokenizer, examples, options)
            records = [replace(record, pairs=[scorer.checked(*pair, record.where) for pair in record.pairs]) for record in records]  # before any is scored
        if lost := [line for each in counts for line in each.lost_lines()]:
            print(*lost, sep="\n", file=sys.stderr)
        if output:
            empty(output)
        totals = write_scores(scorer, records, Totals(counts, scorer.figures), options.tokens, output or sys.stdout)
    if options.output:
        print(json.dumps(totals, ensure_ascii=False))
    return 0


def refuse_unscorable(example: Dialogue | Text | RankedPreference, raw: bool) -> None:
    """Raise UserError for a dialogue that does not end in an answer, and with `raw` for what is not a plain prompt and its completion."""
    if isinstance(example, Dialogue):
        *prompt, answer = example.messages or [{"role": ""}]
        if answer["role"] != "assistant" or not prompt:
            raise UserError(f"{example.where}: the last message must be an assistant's answer to something")
        plain = len(prompt) == 1 and all(isinstance(message["content"], str) for message in example.messages)
    if raw and not (isinstance(example, Text) or isinstance(example, Dialogue) and plain):
        raise UserError(f"{example.where}: --raw takes one prompt and one completion, both texts")


def encode_records(tokenizer, examples: Iterable[Dialogue | Text | RankedPreference], options: Score) -> tuple[list[Encoded], list[Accounting]]:
    """The answers of the records that have some, as training would teach them, and the counts of those to teach and of preferences.

    Raises UserError where no record can be scored.
    """
    from seodang.data.labels import IGNORE_INDEX, Counts, Labeller
    from seodang.data.preference_rows import PreferenceCounts, PreferenceTokenizer

    labeller = Labeller(tokenizer, options.max_length or sys.maxsize, "last", options.literal, options.empty_answers, options.unusable)
    brancher = PreferenceTokenizer(tokenizer, options.max_length, options.literal, options.unusable)
    taught, ranked = Counts(remembers=None), PreferenceCounts(remembers=None)
    records = []
    for example in examples:
        if isinstance(example, RankedPreference):
            for row in brancher.rows(example, ranked):
                order = sorted(range(len(row["ranks"])), key=row["ranks"].__getitem__)
                pairs = [(row["prompt_ids"], row["branches"][place]) for place in order]
                records.append(Encoded(example.where, pairs, [row["ranks"][place] for place in order]))
        elif isinstance(example, Text) or options.raw:
            records += [Encoded(example.where, [pair]) for pair in continuation(tokenizer, example, options, taught)]
        else:
            for row in labeller.rows(example, taught):
                start = next(at for at, label in enumerate(row["labels"]) if label != IGNORE_INDEX)
                records.append(Encoded(example.where, [(row["input_ids"][:start], row["input_ids"][start:])]))
    counts = [each for each in (taught, ranked) if each.records]
    if not records:
        counts[0].refuse_empty()
    return records, counts


def continuation(tokenizer, example: Dialogue | Text, options: Score, counts: Accounting) -> list[tuple[Ids, Ids]]:
    """The ids of a text's first token and of the rest, or of a prompt's text and of its completion; none where there is nothing to score."""
    from seodang.infer.engine.prompts import encode
    from seodang.infer.engine.scoring import pair_ids

    found, why = [], EMPTY
    if isinstance(example, Text):
        ids, why = encode(tokenizer, example.text, example.where) if example.text else [], "nothing behind the first token"
        found = [(ids[:1], ids[1:])] if ids[1:] else []
    elif completion := example.messages[1]["content"]:
        found = [pair_ids(tokenizer, example.messages[0]["content"], completion, None, example.where)]
    elif options.empty_answers == "error":
        raise UserError(f"{example.where}: the answer is empty: fill it in, or leave such answers out with --empty_answers drop")
    try:
        counts.count_record([{"ids": pair} for pair in found], Counter([] if found else [why]), options.unusable, where=example.where)
    except UserError as error:
        raise UserError(f"{example.where}: {error}") from None
    return found


def write_scores(scorer: Scorer | PseudoScorer | TargetScorer, records: Sequence[Encoded], totals: Totals, with_tokens: bool, output) -> dict[str, Any]:
    """Write one line a record and one with the totals, which is returned."""
    from rich.console import Console
    from rich.progress import track

    starts = range(0, len(records), RECORDS_A_CALL)
    for start in track(starts, "scoring", console=Console(file=sys.stderr), disable=len(starts) < 2):
        some = list(enumerate(records))[start : start + RECORDS_A_CALL]
        pairs, numbers = zip(*((pair, number) for number, record in some for pair in record.pairs))
        scores = iter(scorer.scores(pairs, numbers))
        for _, record in some:
            line = totals.line([next(scores) for _ in record.pairs], record.ranks, with_tokens)
            output.write(json.dumps({"record": record.where, **line}, ensure_ascii=False) + "\n")
    found = totals.line_of_all()
    output.write(json.dumps(found, ensure_ascii=False) + "\n")
    return found


if __name__ == "__main__":
    sys.exit(main())
