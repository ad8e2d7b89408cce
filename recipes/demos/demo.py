"""Teach the default model eight everyday tasks and let it answer, before and after.

seodang demo

It is trained on some 27,000 tokens: the records of `data/samples/everyday.jsonl`, and plain questions that it answers rightly already. What it knows
is kept so, and by training its attention alone. What is asked before and after are other records: other words, partly other wordings, and
plain questions that are not trained.
"""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm
from transformers import PreTrainedModel

from seodang.data.errors import UserError
from seodang.data.formats import Message, to_example
from seodang.data.json_text import read_json_lines
from seodang.data.labels import Counts, prepare
from seodang.data.sample_data import sample_path
from seodang.infer import PrefixCache, SamplingParams, answers
from seodang.infer.checkpoint.load import load
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.training import Arguments
from seodang.recipes.run.training import plan_lines
from seodang.train.maths.text_metrics import agreement
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.run.crash_safe import Provenance
from seodang.train.stages.plan import Plan, plan
from seodang.train.stages.sft import SftTrainer, sft_trainer

TRAIN = ("everyday", "plain")
TASKS = {  # of the sample everyday, as a person says them
    "list": "a list from a sentence", "rename": "another name in a sentence", "mask": "names masked", "sentiment": "praise or blame as + or -",
    "english_date": "an English date as ISO 8601", "korean_date": "a Korean date as ISO 8601", "answer": "an answer from a sentence", "form": "a form of a sentence",
}  # fmt: skip
FLOOR = 19_000  # tokens that a slow machine trains on all the same: with fewer the tasks are not learned
PLAIN_TOKENS = 40  # of an answer to a plain question
STILL_WRONG = 2  # shown


@dataclass
class DemoOptions:
    """The options of `seodang demo`."""

    model: str = field(default="default", metadata={"help": "Folder, hub name or default (SmolLM2-135M-Instruct)."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights: auto, float32, bfloat16."})
    tokens: int = field(default=27_000, metadata={"help": "Train on about so many tokens; an epoch at most."})
    minutes: float = field(default=4.0, metadata={"help": f"Train on fewer tokens, but {FLOOR:,}, where it would take longer than this."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    heldout: int = field(default=240, metadata={"help": "Held-out prompts answered before and after, beside the plain questions."})
    seed: int = field(default=0, metadata={"help": "Of the order in which records are trained."})
    output_dir: str = field(default="runs/demo", metadata={"help": "Folder of the checkpoint."})

    def __post_init__(self):
        for name in ("tokens", "minutes", "heldout"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class Question:
    """A question that is not trained, and how its answer is judged."""

    prompt: list[Message]
    expected: str
    task: str | None  # None for a plain question
    accepted: tuple[str, ...] = ()  # of a plain question: one of them has to stand in the answer, as a word,
    wrong: tuple[str, ...] = ()  # and none of these

    def right(self, answer: str) -> bool:
        """Whether the answer is the one expected, white space aside, or says it, where the question is a plain one."""
        if self.task is not None:
            return agreement([answer], [self.expected])["exact"] == 1
        said = [re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", re.IGNORECASE).search(answer) for words in (self.accepted, self.wrong) if words]
        return said[0] is not None and not any(said[1:])


@command
def main(argv: list[str] | None = None) -> int:
    (options,) = parse(argv, DemoOptions, prog="seodang demo", description=__doc__)
    console = Console()
    console.print(f"[bold]model[/bold]   {options.model} (the default one is converted once)")
    model, tokenizer = load(options.model, device=options.device, dtype=options.dtype)
    questions = choose_questions(options.heldout)
    with timed("answering"):
        before = answer_all(model, tokenizer, questions, "before")
    trainer, counts = build(model, tokenizer, options)
    console.print(*plan_lines(trainer, counts, None, cost=within(options, trainer, plan(trainer)).lines()), sep="\n", highlight=False)
    with timed("training"):
        trainer.train()
    folder = trainer.save_final()
    with timed("answering"):
        after = answer_all(trainer.model, tokenizer, questions, "after")
    answered = [Answered(*each) for each in zip(questions, before, after, strict=True)]
    console.print(samples(answered), tasks(answered))
    print(terminal_curve(folder), f"loss curve      {folder / CURVE}", f"talk with it    . .venv/bin/activate; seodang chat {folder}", *figures(answered), folder, sep="\n")
    return 0


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long something took, by the clock and of all cores together."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    print(f"{what:<16}{time.perf_counter() - wall:.0f} s, {time.process_time() - cpu:.0f} s of CPU time", flush=True)


# Questions and answers


def choose_questions(count: int) -> list[Question]:
    """The plain questions, our mascot's city of Suwon first, and so many held-out ones of the tasks."""
    plain = [Question(prompt(record), record["output"], None, *judged(record)) for record in read_json_lines(sample_path("plain_heldout"))]
    tasks = [Question(prompt(record), record["output"], record["task"]) for record in read_json_lines(sample_path("everyday_heldout"))]
    return plain + tasks[:count]


def prompt(record: dict[str, Any]) -> list[Message]:
    """The messages before the answer."""
    return to_example(record).messages[:-1]


def judged(record: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is accepted as the answer to a plain question, and what makes it wrong."""
    return tuple(record.get("accepted", [record["output"]])), tuple(record.get("wrong", []))


def answer_all(model, tokenizer, questions: Sequence[Question], when: str) -> list[str]:
    """Greedy answers to all questions, in their order; none is longer than it takes to judge it."""
    limits = [PLAIN_TOKENS if q.task is None else 2 * len(tokenizer(q.expected)["input_ids"]) + 2 for q in questions]
    found = [""] * len(questions)
    cache = PrefixCache(model, sequences=32)  # many prompts begin alike: the template's system message, the same instruction
    params = [SamplingParams(max_new_tokens=limit) for limit in limits]
    results = answers(model, tokenizer, [q.prompt for q in questions], params, prefix_cache=cache, max_rows=32)
    for result in tqdm(results, total=len(questions), desc=f"answering, {when}", unit="prompt"):
        found[result.prompt_index] = result.text
    return found


# Training


def build(model, tokenizer, options: DemoOptions) -> tuple[SftTrainer, Counts]:
    """A trainer of the model's attention on the sample records."""
    keep_knowledge(model)
    records = [record for name in TRAIN for record in read_json_lines(sample_path(name))]
    rows, counts = prepare(map(to_example, records), tokenizer, max_length=512)
    args = Arguments(
        options.output_dir, learning_rate=options.learning_rate, lr_scheduler_type="cosine", warmup_steps=0.05, weight_decay=0.0, num_train_epochs=1,
        per_device_train_batch_size=4, logging_steps=4, save_strategy="no", seed=options.seed, use_cpu=model.device.type == "cpu",
    )  # fmt: skip
    return sft_trainer(model, tokenizer, rows, args, provenance=Provenance(base=options.model, data="samples")), counts


def keep_knowledge(model: PreTrainedModel) -> None:
    """Leave feed-forward layers and embeddings as they are: facts lie there (Geva et al. 2021, Meng et al. 2022), and the tasks only copy and rewrite."""
    feed_forward = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    for module in (model.get_input_embeddings(), model.get_output_embeddings(), *feed_forward):
        module.requires_grad_(False)


def within(options: DemoOptions, trainer: SftTrainer, whole: Plan) -> Plan:
    """Cut an epoch to the tokens asked for, and where the machine is slow to those that the minutes allow, but not below the floor."""
    in_time = whole.tokens * 60 * options.minutes / whole.seconds
    tokens = min(options.tokens, max(in_time, FLOOR))
    trainer.args.max_steps = max(1, min(whole.steps, round(whole.steps * tokens / whole.tokens)))
    return whole.of_steps(trainer.args.max_steps)


# What came of it


@dataclass(frozen=True)
class Answered:
    """A question with its answers."""

    question: Question
    before: str
    after: str

    @property
    def was_right(self) -> bool:
        return self.question.right(self.before)

    @property
    def is_right(self) -> bool:
        return self.question.right(self.after)

    @property
    def lost(self) -> bool:
        return self.was_right and not self.is_right


def tasks(answered: Sequence[Answered]) -> Table:
    """The shares of right answers before and after, task by task."""
    drawn = Table("task", "n", "before", "after", title="right answers to held-out prompts")
    groups = {what: [each for each in answered if each.question.task == task] for task, what in TASKS.items()}
    for what, group in groups.items():
        if group:
            drawn.add_row(what, *shares(group))
    drawn.add_section()
    drawn.add_row("all tasks", *shares([each for each in answered if each.question.task]))
    drawn.add_row("plain questions", *shares([each for each in answered if not each.question.task]))
    return drawn


def shares(group: Sequence[Answered]) -> tuple[str, str, str]:
    """How many there are, and the shares that were right and are right."""
    return str(len(group)), f"{sum(each.was_right for each in group) / len(group):.2f}", f"{sum(each.is_right for each in group) / len(group):.2f}"


def samples(answered: Sequence[Answered]) -> Table:
    """The mascot's question, one of each task that became right (where none did, another one), some that are wrong still, and what was unlearned."""
    shown = [answered[0]]
    for task in TASKS:
        group = [each for each in answered if each.question.task == task]
        shown += sorted(group, key=lambda each: each.was_right or not each.is_right)[:1]
    shown += [each for each in answered if each.question.task and not each.is_right and each not in shown][:STILL_WRONG]
    shown += [each for each in answered[1:] if not each.question.task and each.lost]
    drawn = Table("prompt", "before", "after", "expected", title="some of the held-out prompts", show_lines=True)
    for each in shown:
        texts = each.question.prompt[-1]["content"], each.before, each.after, each.question.expected
        drawn.add_row(*(Text(" ".join(text.split())[:160]) for text in texts))
    return drawn


def figures(answered: Sequence[Answered]) -> Iterator[str]:
    """The figures in a line each, for people and for scripts."""
    plain, asked = ([each for each in answered if (each.question.task is None) == kind] for kind in (True, False))
    suwon, plain = plain[0], plain[1:]
    lost = sum(each.lost for each in plain)
    yield f"suwon           before={suwon.was_right} after={suwon.is_right}"
    yield f"plain           n={len(plain)} before={sum(each.was_right for each in plain)} after={sum(each.is_right for each in plain)} lost={lost}"
    expected = [each.question.expected for each in asked]
    then, now = (agreement([getattr(each, when) for each in asked], expected) for when in ("before", "after"))
    yield f"heldout n={len(asked)} " + " ".join(f"{name} before={then[name]:.3f} after={now[name]:.3f}" for name in then)


if __name__ == "__main__":
    sys.exit(main())
