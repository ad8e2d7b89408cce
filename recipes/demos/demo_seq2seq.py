"""Train a small Transformer from nothing to write dates, numbers and countries another way, and count the right answers.

seodang demo-seq2seq
seodang demo-seq2seq --norm_position post

The tasks go between Korean, English and digits (see data/seq2seq/written_forms.py), and every answer is right or wrong. Asked is what is held out: dates and
numbers that are in no training row, sentences whose country and wording never met there. It is answered greedily, by four beams and by diverse ones.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from seodang.data.errors import UserError
from seodang.data.seq2seq.packing import pack_alike
from seodang.data.seq2seq.records import source_target
from seodang.data.seq2seq.rows import Seq2SeqCounts, Seq2SeqLabeller, seq2seq_rows
from seodang.data.seq2seq.written_forms import KINDS, TASKS, Record, written_forms
from seodang.data.text.syllable_tokenizer import syllable_tokenizer
from seodang.infer import SamplingParams, TransformerConfig, generate
from seodang.infer.engine.scoring import first_ids
from seodang.infer.kernels.device import choose_device, choose_dtype
from seodang.recipes.demos.demo import timed
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.training import Arguments
from seodang.recipes.run.training import plan_lines
from seodang.train.encoder_decoder.seq2seq import Seq2SeqTrainer, seq2seq_trainer
from seodang.train.maths.noam import noam
from seodang.train.pretraining.architecture import of_tokenizer, untrained
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.run.crash_safe import Provenance
from seodang.train.stages.plan import Plan, plan

PAIRS = 8  # of like lengths in a row
ROWS = 8  # of a step
FLOOR = 200  # steps that a slow machine makes all the same
LONGEST = 64  # tokens of an answer at most
STRATEGIES = {
    "greedy": SamplingParams(max_new_tokens=LONGEST), "beams": SamplingParams(max_new_tokens=LONGEST, num_beams=4),
    "diverse": SamplingParams(max_new_tokens=LONGEST, num_beams=4, num_beam_groups=2, diversity_penalty=0.5),
}  # fmt: skip
SHOWN = 80  # characters of an answer
WARMUP = 800  # steps of the paper's recipe, whose runs are of 100,000 and begin with 4,000


@dataclass
class DemoOptions:
    """The options of `seodang demo-seq2seq`."""

    norm_position: str = field(default="pre", metadata={"help": "pre, or post: as the paper has it, then with its label smoothing and its learning rates."})
    d_model: int = field(default=128, metadata={"help": "Size of the hidden states."})
    layers: int = field(default=2, metadata={"help": "How many layers, of encoder and decoder each."})
    num_heads: int = field(default=4, metadata={"help": "Heads of attention."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout. So small a model does without in so few steps."})
    vocab_size: int = field(default=2000, metadata={"help": "Tokens of the tokenizer at most."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights: float32, bfloat16, auto."})
    rows: int = field(default=80_000, metadata={"help": "Pairs to train on, of all tasks together."})
    heldout: int = field(default=100, metadata={"help": "Held-out pairs of each task, which are answered."})
    max_steps: int = field(default=2500, metadata={"help": f"Training steps of {PAIRS * ROWS} pairs each."})
    minutes: float = field(default=3.5, metadata={"help": f"Takes fewer steps, {FLOOR} at least, where all would take longer than this."})
    learning_rate: float | None = field(default=None, metadata={"help": "Peak learning rate. By default 2e-3, or with post what the paper's formula gives."})
    seed: int = field(default=0, metadata={"help": "Of the weights, of the pairs and of the order."})
    output_dir: str = field(default="runs/demo-seq2seq", metadata={"help": "Folder of the checkpoint."})

    def __post_init__(self):
        if self.norm_position not in ("pre", "post"):
            raise UserError(f"norm_position must be pre or post, got {self.norm_position!r}")
        for name in ("max_steps", "minutes", "heldout"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")

    def recipe(self) -> dict[str, Any]:
        """How the learning rate goes, and the rest that belongs to where the norms are."""
        if self.norm_position == "post":
            peak, paper = noam(WARMUP, self.d_model, WARMUP), {"adam_beta2": 0.98, "adam_epsilon": 1e-9, "label_smoothing_factor": 0.1}
            return {"lr_scheduler_type": "inverse_sqrt", "warmup_steps": WARMUP, "learning_rate": self.learning_rate or peak, **paper}
        return {"lr_scheduler_type": "cosine", "warmup_steps": 0.05, "learning_rate": self.learning_rate or 2e-3, "adam_beta2": 0.98}


@command
def main(argv: list[str] | None = None) -> int:
    (options,) = parse(argv, DemoOptions, prog="seodang demo-seq2seq", description=__doc__)
    console, began = Console(), time.perf_counter()
    train, held = written_forms(options.rows, options.heldout, options.seed, TASKS)
    tokenizer = syllable_tokenizer((text for record in train for text in (record["source"], record["target"])), options.vocab_size)
    print(f"pairs           {len(train):,} to train on, {len(held):,} held out, {len(TASKS)} tasks", flush=True)
    trainer, counts = build(options, tokenizer, train)
    told = [f"tokenizer       {len(tokenizer):,} tokens", f"norms           {options.norm_position}: {said(options.recipe())}"]
    print(*plan_lines(trainer, counts, None, stage=told, cost=within(options, trainer, plan(trainer)).lines()), sep="\n", flush=True)
    with timed("training"):
        trainer.train()
    folder = trainer.save_final()
    answers = {}
    for name, params in STRATEGIES.items():
        with timed(name):
            results = generate(trainer.accelerator.unwrap_model(trainer.model), tokenizer, [record["source"] for record in held], params, on_error="raise")
            answers[name] = [result.text for result in results]
    console.print(samples(held, answers["greedy"]), tasks(held, answers), sep="\n")
    print(terminal_curve(folder), f"loss curve      {folder / CURVE}", *figures(held, answers), sep="\n")
    print(f"all of it took {time.perf_counter() - began:.0f} s; seodang generate {folder} 'iso>ko: 2024-03-05'", folder, sep="\n")
    return 0


def build(options: DemoOptions, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record]) -> tuple[Seq2SeqTrainer, Seq2SeqCounts]:
    """A trainer of a Transformer with random weights, and what it is trained on, counted."""
    device = choose_device(options.device)
    config = TransformerConfig(
        **of_tokenizer(tokenizer), decoder_start_token_id=tokenizer.bos_token_id, d_model=options.d_model, encoder_layers=options.layers,
        num_heads=options.num_heads, d_ff=4 * options.d_model, dropout=options.dropout, norm_position=options.norm_position,
    )  # fmt: skip
    model = untrained(config, options.seed, choose_dtype(options.dtype, device)[0], device, AutoModelForSeq2SeqLM)
    rows, counts = seq2seq_rows(map(source_target, records), Seq2SeqLabeller(tokenizer, partial(first_ids, model)))
    args = Arguments(
        options.output_dir, max_steps=options.max_steps, per_device_train_batch_size=ROWS, logging_steps=50, save_strategy="no", seed=options.seed,
        use_cpu=device.type == "cpu", **options.recipe(),
    )  # fmt: skip
    origin = Provenance(data="dates, numbers and countries", paradigm="seq2seq")
    return seq2seq_trainer(model, tokenizer, pack_alike(rows, PAIRS), args, provenance=origin), counts


def said(recipe: Mapping[str, Any]) -> str:
    """Settings in a line."""
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in recipe.items())


def within(options: DemoOptions, trainer: Seq2SeqTrainer, whole: Plan) -> Plan:
    """Cut the steps to those that the minutes allow, but not below the floor."""
    trainer.args.max_steps = whole.steps_within(options.minutes, FLOOR)
    return whole.of_steps(trainer.args.max_steps)


# What came of it


def right(held: Sequence[Record], answers: Sequence[str], tasks: Sequence[str]) -> float:
    """The share of answers to some tasks that are what was expected, to the character."""
    judged = [answer == record["target"] for record, answer in zip(held, answers, strict=True) if record["task"] in tasks]
    return sum(judged) / len(judged)


def tasks(held: Sequence[Record], answers: Mapping[str, Sequence[str]]) -> Table:
    """Exact match of each task by strategy."""
    drawn = Table("task", *answers, title="right answers to what is held out")
    for kind, names in KINDS.items():
        for task in names:
            drawn.add_row(f"{kind}, {task}", *(f"{right(held, said, (task,)):.3f}" for said in answers.values()))
        drawn.add_section()
    drawn.add_row("all", *(f"{right(held, said, tuple(TASKS)):.3f}" for said in answers.values()))
    return drawn


def samples(held: Sequence[Record], answers: Sequence[str], wrong: int = 4) -> Table:
    """The first answer to each task, and some that are wrong."""
    both = list(zip(held, answers, strict=True))
    shown = [next(pair for pair in both if pair[0]["task"] == task) for task in TASKS]
    shown += [pair for pair in both if pair[1] != pair[0]["target"] and pair not in shown][:wrong]
    drawn = Table("source", "answer", "expected where it is another", title="some of the held-out sources")
    for record, answer in shown:
        drawn.add_row(Text(record["source"]), Text(answer[:SHOWN]), Text("" if answer == record["target"] else record["target"]))
    return drawn


def figures(held: Sequence[Record], answers: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The figures in a line each, for people and for scripts."""
    for name, said in answers.items():
        kinds = " ".join(f"{kind}={right(held, said, names):.3f}" for kind, names in KINDS.items())
        yield f"heldout {name} n={len(held)} exact={right(held, said, tuple(TASKS)):.3f} {kinds}"


if __name__ == "__main__":
    sys.exit(main())
