"""Fine-tune an encoder-decoder (T5, BART, Marian and their kin) on sources and targets: triplets, pairs, translations.

seodang seq2seq --model google-t5/t5-small --data pairs.jsonl --source_prefix 'translate English to German: ' --eval_fraction 0.05
accelerate launch recipes/seq2seq.py --model google-t5/t5-small --data pairs.jsonl
"""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice, takewhile
from typing import Any

from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from seodang.data.chat import set_chat_template
from seodang.data.errors import UserError
from seodang.data.files.sources import read
from seodang.data.labels import IGNORE_INDEX
from seodang.data.seq2seq.languages import forced_first, set_languages, starting_language
from seodang.data.seq2seq.packing import pack_seq2seq
from seodang.data.seq2seq.records import Exchange
from seodang.data.seq2seq.rows import DEFAULT_LENGTH, Row, Seq2SeqCounts, Seq2SeqLabeller, seq2seq_rows, told_languages
from seodang.infer import SamplingParams
from seodang.infer.checkpoint.load import load, load_tokenizer
from seodang.infer.encoders.embedding import unknown_lines
from seodang.infer.engine.checkpoint_settings import from_generation_config
from seodang.infer.engine.scoring import first_ids
from seodang.infer.runners.encoder_decoder import position_limit
from seodang.recipes.diffusion import untrained_like
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.seq2seq import EncoderDecoderOptions, EvaluationOptions, Seq2SeqArguments, Seq2SeqOptions
from seodang.recipes.options.tasks import task_lines
from seodang.recipes.options.training import RunOptions, hold_out
from seodang.recipes.run.before_after import picture_line, print_once
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.training import (
    checkpoint_to_resume,
    complete_arguments,
    early_stopping,
    held_out_line,
    plan_lines,
    refuse_metric,
    train_and_save,
)
from seodang.train import seq2seq_trainer
from seodang.train.maths.text_metrics import TEXT_METRICS, text_metrics
from seodang.train.rollouts.eval_generation import AnswerSampler, HeldOut
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.stages.plan import plan


@command
def main(argv: list[str] | None = None) -> int:
    classes = Seq2SeqOptions, EncoderDecoderOptions, EvaluationOptions, RunOptions, Seq2SeqArguments
    data, options, evaluation, run, args = parse(argv, *classes, prog="seodang seq2seq", description=__doc__)
    args = complete_arguments(args, options, run, evaluates=bool(data.eval_data or data.eval_fraction))
    options.checked()
    train, held = read_exchanges(data, args.seed)
    model, tokenizer = open_model(options, data, args, translated=any(each.translated for each in (*train, *held)))
    labeller = labeller_of(model, tokenizer, data)
    rows, eval_rows, counts = rows_of(train, held, labeller)
    packed = pack_seq2seq(rows, labeller.max_source_length, labeller.max_target_length) if data.packing else rows
    origin = origin_of(data, options, run, evaluation, args, rows=rows, paradigm="seq2seq")
    resume = checkpoint_to_resume(args, run, origin)
    params = speaking(model, evaluation)
    questions = list(islice(questions_of(held, labeller, params.max_new_tokens), run.eval_samples))
    refuse_metric(args, ("loss", "token_accuracy", *(TEXT_METRICS if questions else ())))
    trainer = seq2seq_trainer(
        model, tokenizer, packed, args, eval_rows=eval_rows or None, lora=options.lora(), provenance=origin, callbacks=early_stopping(run),
        sample=AnswerSampler(tokenizer, questions, show=partial(show, tokenizer), params=params, measure=text_metrics) if questions else None,
    )  # fmt: skip
    told = [*unknown_lines(sides_of([*rows, *eval_rows]), tokenizer), *stage_lines(labeller, rows, packed, eval_rows, questions, params)]
    print_once(trainer, *plan_lines(trainer, counts, resume, stage=told, cost=plan(trainer).lines()))
    if run.dry_run:
        return 0
    folder = train_and_save(trainer, resume)
    print_once(trainer, terminal_curve(folder), picture_line("loss curve", folder / CURVE), f"checkpoint      {folder}")
    return 0


def read_exchanges(data: Seq2SeqOptions, seed: int) -> tuple[list[Exchange], list[Exchange]]:
    """The records to train on, and those held out."""
    reading = data.reading()
    train = list(read(data.data, weights=data.weights, split=data.split, **reading))
    task_lines(reading["shapes"])
    held = list(read(data.eval_data, **data.reading())) if data.eval_data else []
    return hold_out(train, data.eval_fraction, seed) if data.eval_fraction else (train, held)


def open_model(
    options: EncoderDecoderOptions, data: Seq2SeqOptions, args: TrainingArguments, translated: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, or one by its config with random weights, and its tokenizer, set to the languages: so they are saved, and hold in generation.

    Raises UserError for languages that neither the tokenizer nor records of translations (`translated`) know.
    """
    if options.scratch:
        model, tokenizer = untrained_like(options, args, AutoModelForSeq2SeqLM), load_tokenizer(options.model)
    else:
        model, tokenizer = load(options.model, device=str(args.device), dtype=options.dtype, **options.loading())
    if data.chat_template is not None:
        set_chat_template(tokenizer, data.chat_template)
    source_lang, target_lang = told_languages(tokenizer, data.source_lang, data.target_lang, translated)
    set_languages(tokenizer, source_lang, target_lang)
    settings = model.generation_config
    if (forced := forced_first(tokenizer, settings, target_lang)) is not None:
        settings.forced_bos_token_id = forced
    if (start := starting_language(tokenizer)) is not None:
        settings.decoder_start_token_id = start
    return model, tokenizer


def labeller_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Seq2SeqOptions) -> Seq2SeqLabeller:
    """What makes rows of records for this model. Raises UserError for lengths beyond its positions."""
    lengths = {}
    for name, side in (("max_source_length", "encoder"), ("max_target_length", "decoder")):
        asked, most = getattr(data, name), position_limit(model, side)
        if asked is not None and most is not None and asked > most:
            raise UserError(f"{name} {asked} is more than the {most} positions of the {side}: lower it")
        lengths[name] = asked or most or DEFAULT_LENGTH
    return Seq2SeqLabeller(tokenizer, partial(first_ids, model), **lengths, **data.labelling())


def rows_of(train: Sequence[Exchange], held: Sequence[Exchange], labeller: Seq2SeqLabeller) -> tuple[list[Row], list[Row], Seq2SeqCounts]:
    """Rows to train on, held-out rows, and the counts of both."""
    rows, counts = seq2seq_rows(train, labeller)
    eval_rows, counts.held_out = seq2seq_rows(held, labeller) if held else ([], None)
    return rows, eval_rows, counts


def questions_of(held: Sequence[Exchange], labeller: Seq2SeqLabeller, most: int) -> Iterator[HeldOut]:
    """Held-out sources as the encoder reads them in training, with the answers that they should get; none whose beginning fills `most` tokens."""
    for exchange in held:
        for row in labeller.rows(exchange, Seq2SeqCounts()):
            if exchange.prefix and len(list(takewhile(lambda label: label == IGNORE_INDEX, row["labels"]))) >= most:
                continue
            yield HeldOut(row["input_ids"], exchange.target, prefix=exchange.prefix)


def speaking(model: PreTrainedModel, evaluation: EvaluationOptions) -> SamplingParams:
    """The settings of held-out answers: the checkpoint's own (its forced tokens, its penalties), likeliest tokens, as many as the decoder has room for."""
    limit = position_limit(model, "decoder")
    most = evaluation.eval_new_tokens if limit is None else min(evaluation.eval_new_tokens, limit - 1)
    return from_generation_config(model.generation_config, temperature=0.0, num_beams=evaluation.eval_num_beams, max_new_tokens=most)


def sides_of(rows: Sequence[Row]) -> list[list[int]]:
    """The ids of all sources, and what is learned of all targets."""
    return [*(row["input_ids"] for row in rows), *([id for id in row["labels"] if id != IGNORE_INDEX] for row in rows)]


def stage_lines(
    labeller: Seq2SeqLabeller, rows: Sequence[Row], packed: Sequence[Row], eval_rows: Sequence[Row], questions: Sequence[HeldOut], params: SamplingParams
) -> list[str]:
    """How long the sides may be, what is packed, what is held out and answered, in lines."""
    how = f"{params.num_beams} beams" if params.num_beams > 1 else "greedily"
    answered = f", {len(questions):,} of them answered {how} at each evaluation" if questions else ""
    return [
        f"lengths         sources up to {labeller.max_source_length}, targets up to {labeller.max_target_length} tokens",
        *([f"packing         {len(packed):,} rows of {len(rows) / len(packed):.1f} records each (--packing false: a row each)"] if packed is not rows else []),
        *held_out_line(f"{len(eval_rows):,} records{answered}", eval_rows),
    ]


def show(tokenizer: PreTrainedTokenizerBase, question: HeldOut, answer: str) -> None:
    """Print one held-out source with its answer, above the progress bar."""
    source: Any = tokenizer.decode(question.prompt, skip_special_tokens=True)
    tqdm.write(f"  {source[:90]!r} -> {answer[:90]!r} (expected {question.answer[:60]!r})")


if __name__ == "__main__":
    sys.exit(main())
