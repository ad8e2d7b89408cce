"""KTO: learning from single answers, each judged good or bad; chosen and rejected answers are taken apart into such.

seodang kto --data judged.jsonl --eval_fraction 0.1 --config recipes/kto.yaml
accelerate launch recipes/kto.py --data judged.jsonl --eval_fraction 0.1
"""

import sys
from dataclasses import dataclass, field

from trl import KTOConfig

from seodang.data.chat import set_chat_template
from seodang.data.preference_rows import prepare_unpaired
from seodang.data.preferences import PREFERENCE_SHAPES, UNPAIRED_SHAPES
from seodang.infer.checkpoint.load import load
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.preference import PreferenceOptions
from seodang.recipes.options.training import Arguments, ModelOptions, RunOptions
from seodang.recipes.planning.options import PlanningOptions
from seodang.recipes.run.before_after import answer_rows, before_and_after, picture_line, print_once
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.training import (
    checkpoint_to_resume,
    complete_arguments,
    early_stopping,
    held_out_line,
    only_planned,
    train_and_save,
)
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.stages.kto import kto_trainer, weight_advice
from seodang.train.stages.plan import steps_of

SHOWN_TOKENS = 64  # tokens of an answer that is shown


@dataclass
class KtoArguments(Arguments, KTOConfig):
    """trl's KTOConfig with the defaults of our other stages: the weights' own dtype, nothing computed twice."""

    output_dir: str | None = field(default="runs/kto", metadata={"help": "Folder of the checkpoints and the final model."})
    learning_rate: float = field(default=5e-7, metadata={"help": "The highest learning rate; with LoRA ten times as much does well."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Times through the data."})
    train_sampling_strategy: str = field(default="sequential", metadata={"help": "sequential: the rows are shuffled once, by the seed."})


@command
def main(argv: list[str] | None = None) -> int:
    classes = PreferenceOptions, ModelOptions, RunOptions, PlanningOptions, KtoArguments
    data, model, run, planning, args = parse(argv, *classes, prog="seodang kto", description=__doc__)
    planning.begin(run)
    args = complete_arguments(args, model, run, evaluates=bool(data.eval_data or data.eval_fraction))
    model.refuse_adapter()
    tokenizer = model.decoder_tokenizer()
    set_chat_template(tokenizer, data.chat_template)
    rows, held, counts = data.rows(prepare_unpaired, tokenizer, args.seed, args.max_length, {**UNPAIRED_SHAPES, **PREFERENCE_SHAPES})
    origin = origin_of(data, model, run, args, rows=rows)
    resume = checkpoint_to_resume(args, run, origin)
    policy, _ = load(model.model, device=str(args.device), dtype=model.dtype, **model.loading())
    trainer = kto_trainer(policy, tokenizer, rows, args, eval_rows=held or None, lora=model.lora(), provenance=origin, callbacks=early_stopping(run))
    if (code := only_planned(trainer, run, planning, counts, resume, stage=stage_lines(args, rows, held))) is not None:
        return code
    shown = list({tuple(row["prompt_ids"]): row for row in held}.values())[: run.eval_samples]
    before = answer_rows(trainer, shown, SHOWN_TOKENS)
    folder = train_and_save(trainer, resume)
    result = trainer.evaluate() if held else {}
    print_once(trainer, terminal_curve(folder), *before_and_after(tokenizer, shown, before, answer_rows(trainer, shown, SHOWN_TOKENS)))
    print_once(trainer, *result_lines(result), picture_line("loss curve", folder / CURVE), f"checkpoint      {folder}")
    return 0


def stage_lines(args: KtoArguments, rows: list[dict], held: list[dict]) -> list[str]:
    """What the stage trains on and measures, in lines."""
    good, advice = sum(row["label"] for row in rows), weight_advice(rows, args)
    return [
        f"training        {good:,} good and {len(rows) - good:,} bad answers in {steps_of(args, len(rows)):,} steps",
        *([f"weights         {advice}"] if advice else []),
        *held_out_line(f"{len(held):,} answers", held),
    ]


def result_lines(result: dict[str, float]) -> list[str]:
    """The held-out figures, in lines."""
    if not result:
        return []
    pairs = f", of pairs to one prompt {result['eval_pair_accuracy']:.1%}" if "eval_pair_accuracy" in result else ""
    margin = f", margin {result['eval_margin']:.4f}" if "eval_margin" in result else ""
    return [f"accuracy        {result['eval_accuracy']:.1%} of held-out answers on their side of the reference{pairs}{margin}"]


if __name__ == "__main__":
    sys.exit(main())
