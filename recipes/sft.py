"""Supervised fine-tuning on instructions, prompt-completion pairs, dialogues or text.

seodang sft --config recipes/sft.yaml --learning_rate 1e-5
accelerate launch recipes/sft.py --config recipes/sft.yaml --learning_rate 1e-5
"""

import random
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

from tqdm import tqdm
from transformers import EarlyStoppingCallback, TrainingArguments

from seodang.data.chat import set_chat_template
from seodang.data.errors import UserError
from seodang.data.formats import Dialogue
from seodang.data.labels import Counts, Row, prepare, stream_rows
from seodang.data.packing import pack, pack_window
from seodang.data.sources import read
from seodang.infer.checkpoint.load import load, load_tokenizer
from seodang.infer.kernels.device import choose_dtype
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.training import Arguments, DataOptions, ModelOptions, RunOptions
from seodang.recipes.run.before_after import picture, tell
from seodang.recipes.run.identity import origin_of, refuse_other_run
from seodang.train.rollouts.eval_generation import AnswerSampler, HeldOut, answerable, held_out
from seodang.train.run.checkpoints import find_resume
from seodang.train.run.crash_safe import Provenance
from seodang.train.run.logs import CURVE, terminal_curve
from seodang.train.run.plan import plan
from seodang.train.run.stream import StreamedRows
from seodang.train.run.trainer import SftTrainer
from seodang.train.stages.sft import sft_trainer

PLANNED_FROM = 256  # records of a stream that the plan is made from


@command
def main(argv: list[str] | None = None) -> int:
    data, model, run, args = parse(argv, DataOptions, ModelOptions, RunOptions, Arguments, prog="seodang sft", description=__doc__)
    args = settle(args, model, run, evaluates=bool(data.eval_data or data.eval_fraction))
    tokenizer = load_tokenizer(model.model)
    set_chat_template(tokenizer, data.chat_template)
    rows, eval_rows, questions, counts = load_rows(data, tokenizer, args)
    origin = origin_of(data, model, run, args, rows=rows)
    resume = find_resume(Path(args.output_dir), run.resume)
    refuse_other_run(resume, origin, run.allow_changes)
    trainer = build(model, tokenizer, rows, eval_rows, questions, args, run, origin)
    tell(trainer, *overview(trainer, counts, resume))
    if run.dry_run:
        return 0
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    folder = trainer.save_final()
    tell(trainer, terminal_curve(folder), picture("loss curve", folder / CURVE), f"checkpoint      {folder}")
    return 0


def load_rows(data: DataOptions, tokenizer, args: TrainingArguments):
    """Rows to train on, held-out rows and questions, and the counts of what became of the records."""
    held = list(read(data.eval_data, shape=data.shape)) if data.eval_data else []
    if data.streaming:
        rows, counts = stream(data, tokenizer, args)
    else:
        examples = list(read(data.data, weights=data.weights, shape=data.shape, split=data.split))
        if data.eval_fraction:
            examples, held = split(examples, data.eval_fraction, args.seed)
        rows, counts = prepare(examples, tokenizer, **data.labelling())
        rows = pack(rows, data.max_length) if data.packing else rows
    eval_rows, counts.held_out = prepare(held, tokenizer, **data.labelling()) if held else ([], None)
    questions = held_out([example for example in held if isinstance(example, Dialogue)])
    return rows, eval_rows, questions, counts


def stream(data: DataOptions, tokenizer, args: TrainingArguments) -> tuple[StreamedRows, Counts]:
    """Rows read while training; the counts are those of the first records."""
    if args.max_steps <= 0:
        raise UserError("streaming has no known end: set --max_steps")
    examples = read(data.data, weights=data.weights, shape=data.shape, split=data.split, streaming=True)
    _, counts = prepare(islice(examples, PLANNED_FROM), tokenizer, **data.labelling())

    def rows():
        labelled = stream_rows(examples, tokenizer, **data.labelling())
        return pack_window(labelled, data.max_length) if data.packing else labelled

    return StreamedRows(rows, args.train_batch_size * args.world_size, data.max_length), counts


def split(examples: list, fraction: float, seed: int) -> tuple[list, list]:
    """Hold a share of the records out, at random but the same for the same seed."""
    count = max(1, round(len(examples) * fraction))
    if count >= len(examples):
        raise UserError(f"eval_fraction {fraction} leaves nothing of {len(examples)} records to train on: lower it")
    chosen = set(random.Random(seed).sample(range(len(examples)), count))
    return [e for i, e in enumerate(examples) if i not in chosen], [examples[i] for i in sorted(chosen)]


def settle(args: TrainingArguments, model: ModelOptions, run: RunOptions, evaluates: bool) -> TrainingArguments:
    """Fill in what the user left open: the device, and with held-out data an evaluation before every save, the best one kept."""
    if model.device == "cpu" and not args.use_cpu:
        args = replace(args, use_cpu=True)
    if run.early_stopping_patience and not evaluates:
        raise UserError("early_stopping_patience needs held-out data: give --eval_data or --eval_fraction")
    if evaluates and args.eval_strategy == "no":
        args.eval_strategy, args.eval_steps = args.save_strategy.value, args.save_steps
    if evaluates and not args.metric_for_best_model:
        args.metric_for_best_model, args.greater_is_better = "eval_loss", False
    args.load_best_model_at_end |= bool(run.early_stopping_patience)
    return args


def build(
    options: ModelOptions,
    tokenizer,
    rows: list[Row] | StreamedRows,
    eval_rows: list[Row],
    questions: list[HeldOut],
    args: TrainingArguments,
    run: RunOptions,
    origin: Provenance,
) -> SftTrainer:
    """Load the model and set up its trainer."""
    model, _ = load(options.model, device=str(args.device), dtype=options.dtype, **options.loading())
    questions = list(islice(answerable(questions, tokenizer, model), run.eval_samples))
    sample = AnswerSampler(tokenizer, questions, show=show) if questions else None
    stop = [EarlyStoppingCallback(run.early_stopping_patience)] if run.early_stopping_patience else []
    return sft_trainer(
        model, tokenizer, rows, args, eval_rows=eval_rows or None, lora=options.lora(), sample=sample, provenance=origin, callbacks=stop
    )


def show(question: HeldOut, answer: str) -> None:
    """Print one held-out prompt with its answer, above the progress bar."""
    tqdm.write(f"  {question.prompt[-1]['content'][:90]!r} -> {answer[:90]!r} (expected {question.answer[:60]!r})")


def overview(trainer: SftTrainer, counts: Counts, resume: Path | None) -> list[str]:
    """What the run will do, in lines."""
    dtype, reason = choose_dtype("auto", trainer.args.device)
    weights = next(trainer.model.parameters()).dtype
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return [
        *counts.lines(),
        f"model           {trained:,} weights to train, {str(weights).removeprefix('torch.')} on {trainer.args.device}"
        + (f" ({reason})" if weights == dtype else ""),
        *plan(trainer).lines(),
        *([f"resume          from {resume}"] if resume else []),
    ]


if __name__ == "__main__":
    sys.exit(main())
