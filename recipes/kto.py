"""KTO: learning from single answers, each judged good or bad; chosen and rejected answers are taken apart into such.

seodang kto --data judged.jsonl --eval_fraction 0.1 --config recipes/kto.yaml
accelerate launch recipes/kto.py --data judged.jsonl --eval_fraction 0.1
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import EarlyStoppingCallback
from trl import KTOConfig

from seodang.data.chat import set_chat_template
from seodang.data.preference_rows import PreferenceCounts, prepare_unpaired
from seodang.data.preferences import UNPAIRED_SHAPES, PREFERENCE_SHAPES
from seodang.data.sources import read
from seodang.infer.checkpoint.load import load, load_tokenizer
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.preference import PreferenceOptions, split_dialogues
from seodang.recipes.options.training import Arguments, ModelOptions, RunOptions
from seodang.recipes.run.before_after import picture, say, side_by_side, tell
from seodang.recipes.run.identity import origin_of, refuse_other_run
from seodang.recipes.sft import settle
from seodang.train.run.checkpoints import find_resume
from seodang.train.run.logs import CURVE, terminal_curve
from seodang.train.stages.kto import KtoTrainer, kto_trainer, weight_advice

SAID = 64  # tokens of an answer that is shown


@dataclass
class KtoArguments(Arguments, KTOConfig):
    """trl's KTOConfig with the defaults of our other stages: the weights' own dtype, nothing computed twice."""

    output_dir: str | None = field(default="runs/kto", metadata={"help": "Folder of the checkpoints and the final model."})
    learning_rate: float = field(default=5e-7, metadata={"help": "The highest learning rate; with LoRA ten times as much does well."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Times through the data."})
    train_sampling_strategy: str = field(default="sequential", metadata={"help": "sequential: the rows are shuffled once, by the seed."})


@command
def main(argv: list[str] | None = None) -> int:
    data, model, run, args = parse(argv, PreferenceOptions, ModelOptions, RunOptions, KtoArguments, prog="seodang kto", description=__doc__)
    args = settle(args, model, run, evaluates=bool(data.eval_data or data.eval_fraction))
    model.refuse_adapter()
    tokenizer = load_tokenizer(model.model)
    set_chat_template(tokenizer, data.chat_template)
    rows, held, counts = load_rows(data, tokenizer, args)
    origin = origin_of(data, model, run, args, rows=rows)
    resume = find_resume(Path(args.output_dir), run.resume)
    refuse_other_run(resume, origin, run.allow_changes)
    policy, _ = load(model.model, device=str(args.device), dtype=model.dtype, **model.loading())
    stop = [EarlyStoppingCallback(run.early_stopping_patience)] if run.early_stopping_patience else []
    trainer = kto_trainer(policy, tokenizer, rows, args, eval_rows=held or None, lora=model.lora(), provenance=origin, callbacks=stop)
    tell(trainer, *overview(trainer, counts, rows, held, resume))
    if run.dry_run:
        return 0
    shown = list({tuple(row["prompt_ids"]): row for row in held}.values())[: run.eval_samples]
    before = say(trainer, shown, SAID)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    folder = trainer.save_final()
    result = trainer.evaluate() if held else {}
    tell(trainer, terminal_curve(folder), *side_by_side(tokenizer, shown, before, say(trainer, shown, SAID)))
    tell(trainer, *verdict(result, trainer), picture("loss curve", folder / CURVE), f"checkpoint      {folder}")
    return 0


def load_rows(data: PreferenceOptions, tokenizer, args: KtoArguments) -> tuple[list[dict], list[dict], PreferenceCounts]:
    """Rows to train on, held-out rows, and the counts of what became of the records."""
    shapes = {**UNPAIRED_SHAPES, **PREFERENCE_SHAPES}
    examples = read(data.data, weights=data.weights, shape=data.shape, split=data.split, shapes=shapes)
    held = read(data.eval_data, shape=data.shape, shapes=shapes) if data.eval_data else []
    if data.eval_fraction:
        examples, held = split_dialogues(examples, data.eval_fraction, args.seed)
    how = {"max_length": args.max_length, "literal": data.literal, "unusable": data.unusable}
    rows, counts = prepare_unpaired(examples, tokenizer, **how)
    held_rows, counts.held_out = prepare_unpaired(held, tokenizer, **how) if held else ([], None)
    return rows, held_rows, counts


def overview(trainer: KtoTrainer, counts: PreferenceCounts, rows: list[dict], held: list[dict], resume: Path | None) -> list[str]:
    """What the run will do, in lines."""
    args = trainer.args
    batches = -(-len(rows) // (args.per_device_train_batch_size * args.world_size))
    steps = args.max_steps if args.max_steps > 0 else int(-(-batches // args.gradient_accumulation_steps) * args.num_train_epochs + 0.999)
    weights = next(trainer.model.parameters()).dtype
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    good = sum(row["label"] for row in rows)
    advice = weight_advice(rows, args)
    return [
        *counts.lines(),
        f"training        {good:,} good and {len(rows) - good:,} bad answers in {steps:,} steps",
        *([f"weights         {advice}"] if advice else []),
        *([f"held out        {len(held):,} answers"] if held else []),
        f"model           {trained:,} weights to train, {str(weights).removeprefix('torch.')} on {args.device}",
        *([f"resume          from {resume}"] if resume else []),
    ]


def verdict(result: dict[str, float], trainer: KtoTrainer) -> list[str]:
    """The held-out figures, in lines."""
    if not result:
        return []
    pairs = f", of pairs to one prompt {result['eval_pair_accuracy']:.1%}" if "eval_pair_accuracy" in result else ""
    margin = f", margin {result['eval_margin']:.4f}" if "eval_margin" in result else ""
    return [f"accuracy        {result['eval_accuracy']:.1%} of held-out answers on their side of the reference{pairs}{margin}"]


if __name__ == "__main__":
    sys.exit(main())
