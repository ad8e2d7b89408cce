"""Teach an encoder which texts belong together: pairs, with the other texts of a batch, and hard negatives, as what does not.

seodang contrastive --data pairs.jsonl --eval_fraction 0.1
seodang contrastive --data pairs.jsonl --model runs/mlm --pooling mean --temperature 0.05

What is written is a folder of sentence-transformers, which `seodang embed` and `seodang serve` read too.
"""

import sys
from collections.abc import Sequence

from seodang.data.errors import UserError
from seodang.data.similarity.pairs import PairCounts, Row, TextPair, hold_out_by_anchor, pair_columns, pair_rows, text_pairs
from seodang.infer.checkpoint.load import is_adapter, resolve
from seodang.infer.encoders.embedding import SentenceEncoder, load_trunk, readout_in
from seodang.infer.encoders.sentence_folder import is_sentence_folder
from seodang.recipes.options.contrastive import ContrastiveArguments, ContrastiveOptions, EncoderOptions, PairOptions
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.training import RunOptions
from seodang.recipes.run.before_after import picture_line, print_once
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.training import checkpoint_to_resume, complete_arguments, early_stopping, held_out_line, plan_lines, train_and_save
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.stages.contrastive import contrastive_trainer
from seodang.train.stages.plan import plan


@command
def main(argv: list[str] | None = None) -> int:
    classes = (PairOptions, EncoderOptions, ContrastiveOptions, RunOptions, ContrastiveArguments)
    data, options, learning, run, args = parse(argv, *classes, prog="seodang contrastive", description=__doc__)
    args = complete_arguments(args, options, run, evaluates=bool(data.eval_data or data.eval_fraction))
    run.refuse_samples("an encoder writes no answers")
    encoder = open_encoder(options, data, str(args.device))
    rows, eval_rows, counts = read_rows(data, encoder, args.seed)
    origin = origin_of(data, options, learning, run, args, rows=rows, paradigm="embedding")
    resume = checkpoint_to_resume(args, run, origin)
    trainer = contrastive_trainer(
        encoder.model, encoder.tokenizer, rows, args, readout=encoder.readout, eval_rows=eval_rows or None, temperature=learning.temperature,
        symmetric=learning.symmetric, min_score=data.min_score, provenance=origin, callbacks=early_stopping(run),
    )  # fmt: skip
    stage = [negatives_line(args), *held_out_line(f"{len(eval_rows):,} pairs", eval_rows)]
    print_once(trainer, *plan_lines(trainer, counts, resume, stage=stage, cost=plan(trainer).lines()))
    if run.dry_run:
        return 0
    before = trainer.figures(eval_rows) if eval_rows and resume is None else {}
    folder = train_and_save(trainer, resume)
    after = trainer.figures(eval_rows) if eval_rows else {}
    print_once(trainer, terminal_curve(folder), *result_lines(before, after), picture_line("loss curve", folder / CURVE), f"encoder         {folder}")
    return 0


def open_encoder(options: EncoderOptions, data: PairOptions, device: str) -> SentenceEncoder:
    """The encoder that is trained; where its folder does not say how vectors are made, they have length 1. Raises UserError for an adapter."""
    place = resolve(options.model)
    if is_adapter(place):
        raise UserError(f"{options.model} is an adapter: merge it first, `seodang export {options.model} FOLDER`, and start from that folder")
    normalise = True if options.normalise is None and not is_sentence_folder(place) else options.normalise
    readout = readout_in(place, options.pooling, normalise, data.max_length)
    return SentenceEncoder(*load_trunk(options.model, device=device, dtype=options.dtype), readout)


def read_rows(data: PairOptions, encoder: SentenceEncoder, seed: int) -> tuple[list[Row], list[Row], PairCounts]:
    """Rows to train on, held-out rows, and the counts of both."""
    columns, encoding = pair_columns(data.columns), data.reading()["encoding"]

    def read(sources: Sequence[str]) -> list[TextPair]:
        return list(text_pairs(sources, columns, encoding, data.split))

    pairs, held = read(data.data), read(data.eval_data) if data.eval_data else []
    if data.eval_fraction:
        pairs, held = hold_out_by_anchor(pairs, data.eval_fraction, seed)
    rows, counts = pair_rows(pairs, encoder.encoder, data.unusable, data.min_score)
    eval_rows, counts.held_out = pair_rows(held, encoder.encoder, data.unusable, data.min_score, learned=False) if held else ([], None)
    return rows, eval_rows, counts


def negatives_line(args: ContrastiveArguments) -> str:
    """How many texts a pair is told apart from."""
    count = args.per_device_train_batch_size
    more = " (those of other micro-batches and processes are none)" if args.gradient_accumulation_steps > 1 or args.world_size > 1 else ""
    return f"negatives       of each pair the texts of the {count - 1} others of its batch{more}, less those that belong to it"


def result_lines(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """The held-out figures, before where they were taken and after, a line each."""
    return [f"{name:<16}{f'{before[name]:.4f} -> ' if name in before else ''}{value:.4f} held out" for name, value in after.items()]


if __name__ == "__main__":
    sys.exit(main())
