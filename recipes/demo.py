"""Fine-tune the default model on real triplets and let it answer, before and after.

seodang demo
"""

import sys
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from seodang.data.errors import UserError
from seodang.data.labels import Counts, prepare
from seodang.data.sample_data import sample_path
from seodang.data.sources import read
from seodang.infer import SamplingParams, answers
from seodang.infer.checkpoint.load import load
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.training import Arguments
from seodang.recipes.run.training import plan_lines
from seodang.train.rollouts.eval_generation import HeldOut, agreement, held_out_questions
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.run.crash_safe import Provenance
from seodang.train.stages.plan import plan
from seodang.train.stages.sft import SftTrainer, sft_trainer

TRAIN = ("geography", "korean_english")
HELD_OUT = ("geography_heldout", "korean_english_heldout")


@dataclass
class DemoOptions:
    """The options of `seodang demo`."""

    model: str = field(default="default", metadata={"help": "Folder, hub name or default (SmolLM2-135M-Instruct)."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights: auto, float32, bfloat16."})
    minutes: float = field(default=2.5, metadata={"help": "Train no longer than about this; an epoch at most."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    heldout: int = field(default=240, metadata={"help": "Held-out prompts answered before and after."})
    output_dir: str = field(default="runs/demo", metadata={"help": "Folder of the checkpoint."})

    def __post_init__(self):
        if self.heldout < 1 or self.minutes <= 0:
            raise UserError(f"heldout and minutes must be above 0, got {self.heldout} and {self.minutes}")


@command
def main(argv: list[str] | None = None) -> int:
    (options,) = parse(argv, DemoOptions, prog="seodang demo", description=__doc__)
    console = Console()
    console.print(f"[bold]model[/bold]   {options.model} (the default one is converted once)")
    model, tokenizer = load(options.model, device=options.device, dtype=options.dtype)
    questions = choose_questions(options.heldout)
    before = answer_all(model, tokenizer, questions, "before")
    trainer, counts = build(model, tokenizer, options)
    console.print(*plan_lines(trainer, counts, None, cost=plan(trainer).lines()), sep="\n")
    trainer.train()
    folder = trainer.save_final()
    after = answer_all(trainer.model, tokenizer, questions, "after")
    console.print(table(questions, before, after))
    print(terminal_curve(folder))
    print(f"loss curve      {folder / CURVE}")
    print(f"heldout {scores(questions, before, after)}")
    print(folder)
    return 0


def scores(questions: list[HeldOut], before: list[str], after: list[str]) -> str:
    """How many answers there are, and the shares that equal and that contain the expected one, before and after."""
    expected = [q.answer for q in questions]
    then, now = agreement(before, expected), agreement(after, expected)
    return f"n={len(questions)} " + " ".join(f"{name} before={then[name]:.3f} after={now[name]:.3f}" for name in then)


def choose_questions(count: int) -> list[HeldOut]:
    """Held-out questions, each file in its share; our mascot, the city of Suwon, comes first."""
    files = [held_out_questions(list(read(str(sample_path(name))))) for name in HELD_OUT]
    total = sum(map(len, files))
    count = min(count, total)
    shares = [round(count * len(file) / total) for file in files]
    return [question for file, share in zip(files, shares, strict=True) for question in file[:share]]


def answer_all(model, tokenizer, questions: list[HeldOut], when: str) -> list[str]:
    """Greedy answers to all questions, in their order."""
    params = SamplingParams(max_new_tokens=32)
    found = [""] * len(questions)
    results = answers(model, tokenizer, [q.prompt for q in questions], params)
    for result in tqdm(results, total=len(questions), desc=f"answering, {when}", unit="prompt"):
        found[result.prompt_index] = result.text
    return found


def build(model, tokenizer, options: DemoOptions) -> tuple[SftTrainer, Counts]:
    """A trainer on the sample triplets, with as many steps as fit into the time."""
    rows, counts = prepare(read([str(sample_path(name)) for name in TRAIN]), tokenizer, max_length=512)
    args = Arguments(
        options.output_dir, learning_rate=options.learning_rate, lr_scheduler_type="cosine", warmup_steps=0.05, weight_decay=0.0, num_train_epochs=1,
        per_device_train_batch_size=16, logging_steps=2, save_strategy="no", use_cpu=model.device.type == "cpu",
    )  # fmt: skip
    trainer = sft_trainer(model, tokenizer, rows, args, provenance=Provenance(base=options.model, data="samples"))
    cost = plan(trainer)
    trainer.args.max_steps = max(1, min(cost.steps, round(cost.steps * options.minutes * 60 / cost.seconds)))
    return trainer, counts


def table(questions: list[HeldOut], before: list[str], after: list[str], shown: int = 8) -> Table:
    """Some questions of every kind, with the answers of both and the expected one."""
    drawn = Table("prompt", "before", "after", "expected", title="held-out prompts", show_lines=True)
    step = max(len(questions) // shown, 1)
    for i in range(0, len(questions), step)[:shown]:
        texts = questions[i].prompt[-1]["content"], before[i], after[i], questions[i].answer
        drawn.add_row(*(Text(" ".join(text.split())[:160]) for text in texts))
    return drawn


if __name__ == "__main__":
    sys.exit(main())
