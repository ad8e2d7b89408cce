"""Supervised fine-tuning on instructions, prompt-completion pairs, dialogues or text.

seodang sft --config recipes/sft.yaml --learning_rate 1e-5
accelerate launch recipes/sft.py --config recipes/sft.yaml --learning_rate 1e-5
"""

import sys
from collections.abc import Callable, Iterable
from itertools import islice

from tqdm import tqdm
from transformers import TrainingArguments

from seodang.data.chat import set_chat_template
from seodang.data.errors import UserError
from seodang.data.files.sources import read
from seodang.data.formats import SHAPES, Dialogue, Shapes
from seodang.data.labels import Counts, Row, prepare, stream_rows
from seodang.data.packing import pack, pack_window
from seodang.infer.checkpoint.load import load
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.tasks import read_to_tasks, task_lines
from seodang.recipes.options.training import Arguments, DataOptions, ModelOptions, RunOptions, hold_out
from seodang.recipes.planning.fit import fit
from seodang.recipes.planning.options import PlanningOptions
from seodang.recipes.preparing.rows import lie_on_disk, rows_on_disk
from seodang.recipes.run.before_after import picture_line, print_once
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.training import (
    checkpoint_to_resume,
    complete_arguments,
    early_stopping,
    held_out_line,
    only_planned,
    train_and_save,
)
from seodang.train.maths.logprobs import CHUNK
from seodang.train.rollouts.eval_generation import AnswerSampler, HeldOut, answerable, held_out_questions
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.run.crash_safe import Provenance
from seodang.train.stages.plan import plan
from seodang.train.stages.sft import SftTrainer, StreamedRows, sft_trainer

PLANNED_FROM = 256  # records of a stream that the plan is made from


@command
def main(argv: list[str] | None = None) -> int:
    classes = DataOptions, ModelOptions, RunOptions, PlanningOptions, Arguments
    data, model, run, planning, args = parse(argv, *classes, prog="seodang sft", description=__doc__)
    planning.begin(run, chooses=True)
    args = complete_arguments(args, model, run, evaluates=bool(data.eval_data or data.eval_fraction))
    tokenizer = model.decoder_tokenizer()
    set_chat_template(tokenizer, data.chat_template)
    rows, eval_rows, questions, counts = load_rows(data, tokenizer, args)
    origin = origin_of(data, model, run, args, rows=rows)
    resume = checkpoint_to_resume(args, run, origin)
    trainer_of = lambda: build(model, tokenizer, rows, eval_rows, questions, args, run, origin, planning.chunk)
    fit(planning, run, args, rows, trainer_of)
    trainer = trainer_of()
    if (code := only_planned(trainer, run, planning, counts, resume, stage=stage_lines(data, counts), cost=lambda: plan(trainer).lines())) is not None:
        return code
    folder = train_and_save(trainer, resume)
    print_once(trainer, terminal_curve(folder), picture_line("loss curve", folder / CURVE), f"checkpoint      {folder}")
    return 0


def stage_lines(data: DataOptions, counts: Counts) -> list[str]:
    """Where rows lie on disk, what the counts are of, where that is not all records, and what is held out, in lines."""
    held = counts.held_out
    return [
        *counts.made,
        *([f"streamed        the counts are those of its first {PLANNED_FROM} records"] if data.streaming else []),
        *([] if held is None else held_out_line(f"{held.records:,} read, {held.kept:,} kept in {held.rows:,} rows", [held])),
    ]


def load_rows(data: DataOptions, tokenizer, args: TrainingArguments, reshaped: Callable[[Iterable[Row]], Iterable[Row]] | None = None):
    """Rows to train on, held-out rows and questions, and the counts of what became of the records; `reshaped` makes other rows of these, before packing."""
    shapes, reshape = data.shapes(SHAPES), reshaped or iter
    held = list(read(data.eval_data, shape=data.shape, shapes=data.shapes(SHAPES), **data.reading())) if data.eval_data else []
    if data.streaming:
        rows, counts = stream(data, tokenizer, args, shapes, reshape)
        counts.told = task_lines(shapes)
    elif lie_on_disk(data):
        made = rows_on_disk(data, tokenizer, shapes, packing=data.packing and reshaped is None, eval_fraction=data.eval_fraction, seed=args.seed)
        rows, held, counts = made.rows, made.held or held, made.rows.counts
        counts.made = made.lines
        if reshaped:
            rows = [*reshaped(rows)]
            rows = pack(rows, data.max_length) if data.packing else rows
    else:
        examples = list(read(data.data, weights=data.weights, shape=data.shape, split=data.split, shapes=shapes, **data.reading()))
        if data.eval_fraction:
            examples, held = hold_out(examples, data.eval_fraction, args.seed)
        rows, counts = prepare(examples, tokenizer, **data.labelling())
        rows = list(reshape(rows))
        rows = pack(rows, data.max_length) if data.packing else rows
        counts.told = task_lines(shapes)
    eval_rows, counts.held_out = prepare(held, tokenizer, **data.labelling()) if held else ([], None)
    eval_rows = list(reshape(eval_rows))
    questions = held_out_questions([example for example in held if isinstance(example, Dialogue)])
    return rows, eval_rows, questions, counts


def stream(
    data: DataOptions, tokenizer, args: TrainingArguments, shapes: Shapes, reshaped: Callable[[Iterable[Row]], Iterable[Row]] = iter
) -> tuple[StreamedRows, Counts]:
    """Rows read while training; the counts are those of the first records. Raises UserError without `max_steps`."""
    if args.max_steps <= 0:
        raise UserError("streaming has no known end: set --max_steps")
    examples = read(data.data, weights=data.weights, shape=data.shape, split=data.split, streaming=True, shapes=shapes, **data.reading())
    beginning = iter(examples)
    _, counts = prepare(islice(beginning, PLANNED_FROM), tokenizer, **data.labelling())
    read_to_tasks(shapes, beginning, PLANNED_FROM)

    def rows():
        labelled = reshaped(stream_rows(examples, tokenizer, **data.labelling()))
        return pack_window(labelled, data.max_length) if data.packing else labelled

    return StreamedRows(rows, args.train_batch_size * args.world_size, data.max_length), counts


def build(
    options: ModelOptions,
    tokenizer,
    rows: list[Row] | StreamedRows,
    eval_rows: list[Row],
    questions: list[HeldOut],
    args: TrainingArguments,
    run: RunOptions,
    origin: Provenance,
    loss_chunk: int = CHUNK,
) -> SftTrainer:
    """Load the model and set up its trainer."""
    model, _ = load(options.model, device=str(args.device), dtype=options.dtype, **options.loading())
    questions = list(islice(answerable(questions, tokenizer, model), run.eval_samples))
    sample = AnswerSampler(tokenizer, questions, show=show) if questions else None
    return sft_trainer(
        model, tokenizer, rows, args, eval_rows=eval_rows or None, lora=options.lora(), sample=sample, provenance=origin, callbacks=early_stopping(run),
        loss_chunk=loss_chunk,
    )  # fmt: skip


def show(question: HeldOut, answer: str) -> None:
    """Print one held-out prompt with its answer, above the progress bar."""
    tqdm.write(f"  {question.prompt[-1]['content'][:90]!r} -> {answer[:90]!r} (expected {question.answer[:60]!r})")


if __name__ == "__main__":
    sys.exit(main())
