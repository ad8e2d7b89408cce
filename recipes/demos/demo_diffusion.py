"""Teach the default model to speak by masked diffusion, and let it say where cities are, step by step, beside a twin that speaks left to right.

seodang demo-diffusion

Both are trained by the same sentences, the records of `data/samples/cities.jsonl`, in the same order for as many steps; both are asked about
cities that neither has seen. The diffusion model answers in the order that it is surest in, and once more a token after the other. What of it helps
can be tried: --attention bidirectional, --attention block_causal --block_length 4, --shift 0, --weighting cart; --co_loss 0 --no_complementary is
three times as quick.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seodang.data.chat import set_chat_template
from seodang.data.errors import UserError
from seodang.data.formats import to_example
from seodang.data.json_text import read_json_lines
from seodang.data.labels import Row, prepare
from seodang.data.sample_data import sample_path
from seodang.infer import SamplingParams, generate
from seodang.infer.checkpoint.load import load
from seodang.infer.explain.diffusion_steps import history
from seodang.infer.explain.generation_trace import generation_trace
from seodang.infer.text.token_labels import TokenLabels
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.training import Arguments
from seodang.recipes.run.training import plan_lines
from seodang.train.diffusion.adapt import adapt, unused_tokens
from seodang.train.diffusion.canvas import Canvas, canvas_length, longest_canvas
from seodang.train.diffusion.objective import DenoisingObjective
from seodang.train.diffusion.trainer import diffusion_trainer
from seodang.train.rollouts.eval_generation import AnswerSampler, HeldOut, held_out_questions
from seodang.train.run.crash_safe import Provenance
from seodang.train.stages.plan import plan
from seodang.train.stages.sft import sft_trainer

NEW_MASK = "<|mask|>"  # where the tokenizer has no special token to spare
LEFT_TO_RIGHT = "sampling"


@dataclass
class DemoOptions:
    """The options of `seodang demo-diffusion`."""

    model: str = field(default="default", metadata={"help": "Folder, hub name or default (SmolLM2-135M-Instruct)."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights: auto, float32, bfloat16."})
    max_steps: int = field(default=189, metadata={"help": "Training steps of eight records each, of both models; 63 are an epoch."})
    learning_rate: float = field(default=7e-5, metadata={"help": "Peak learning rate; with more, what the model knew of cities is lost."})
    twin_learning_rate: float = field(default=1e-4, metadata={"help": "That of the twin."})
    attention: str = field(default="prompt_causal", metadata={"help": "bidirectional, prompt_causal or block_causal."})
    block_length: int | None = field(default=None, metadata={"help": "block_causal: how many tokens a block has."})
    shift: int = field(default=1, metadata={"help": "1 reads token i at position i - 1, 0 at its own."})
    weighting: str = field(default="one_over_t", metadata={"help": "one_over_t, cart or uniform."})
    schedule: str = field(default="linear", metadata={"help": "linear or cosine."})
    complementary: bool = field(default=True, metadata={"help": "Each record twice in a step, the second time with the other tokens masked."})
    co_loss: float = field(default=1.0, metadata={"help": "Weight of a loss from left to right beside it: the same weights then speak both ways."})
    canvas: int = field(default=16, metadata={"help": "Tokens of a canvas; longer answers have twice as many."})
    alg: str = field(default="entropy", metadata={"help": "The order in which positions become certain."})
    passes: int | None = field(default=None, metadata={"help": "Passes that fill in an answer; as many as it has positions by default."})
    heldout: int = field(default=200, metadata={"help": "Held-out cities that are asked about."})
    twin: bool = field(default=True, metadata={"help": "Train the twin that speaks left to right, too."})
    seed: int = field(default=0, metadata={"help": "Of the order of the records and of the masks."})
    output_dir: str = field(default="runs/demo-diffusion", metadata={"help": "Folder of the checkpoints."})

    def __post_init__(self):
        for name in ("max_steps", "heldout", "canvas"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")
        self.objective()

    def objective(self) -> DenoisingObjective:
        """What the diffusion model learns from; its canvases are as long in training as when it speaks."""
        names = ("weighting", "schedule", "complementary", "co_loss", "canvas")
        return DenoisingObjective(**{name: getattr(self, name) for name in names}, crop=False)


@dataclass(frozen=True)
class Speaker:
    """A trained model and what it answered: how it speaks, its answers, which are exact, which name the country, and seconds of CPU time."""

    name: str
    answers: list[str]
    exact: list[bool]
    country: list[bool]
    training: float
    answering: float


@command
def main(argv: list[str] | None = None) -> int:
    (options,) = parse(argv, DemoOptions, prog="seodang demo-diffusion", description=__doc__)
    console = Console()
    questions = held_out_questions([to_example(record) for record in read_json_lines(sample_path("cities_heldout"))])[: options.heldout]
    model, tokenizer = load(options.model, device=options.device, dtype=options.dtype)
    set_chat_template(tokenizer, "chatml")  # without a system message: shorter rows
    speakers, length = by_diffusion(options, model, tokenizer, questions, console)
    if options.twin:
        model, tokenizer = load(options.model, device=options.device, dtype=options.dtype)
        set_chat_template(tokenizer, "chatml")
        speakers.append(left_to_right(options, model, tokenizer, questions, length, console))
    console.print(comparison(speakers), *wrong(speakers[0], questions), sep="\n", highlight=False)
    print(*figures(speakers), Path(options.output_dir) / "diffusion", sep="\n")
    return 0


def by_diffusion(
    options: DemoOptions, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[HeldOut], console: Console
) -> tuple[list[Speaker], int]:
    """Train the model by diffusion, show how it answers the first question, and have it answer all; the length of its canvas too.

    With a co-loss the same weights answer from left to right as well.
    """
    objective = options.objective()
    mask = tokenizer.mask_token or next(iter(unused_tokens(tokenizer)[::-1]), NEW_MASK)
    says = adapt(
        model, tokenizer, mask_token=mask, shift=options.shift, attention=options.attention, block_length=options.block_length,
        autoregressive=objective.co_loss > 0,
    )  # fmt: skip
    canvas = Canvas.of(tokenizer, canvas_length(says, objective.canvas))
    rows, counts = sentences(tokenizer)
    rows = list(canvas.rows(rows))
    args = arguments(options, "diffusion", model, options.learning_rate)
    trainer = diffusion_trainer(model, tokenizer, rows, args, objective, canvas=canvas, provenance=origin(options, "diffusion"))
    console.print(*plan_lines(trainer, counts, None, cost=plan(trainer).lines()), sep="\n", highlight=False)
    spent = cpu_seconds(trainer.train)
    trainer.save_final()
    length = longest_canvas(rows)
    params = SamplingParams(max_new_tokens=length, steps=options.passes, alg=options.alg)
    in_order = SamplingParams(max_new_tokens=length, block_length=1)
    console.print("", *step_by_step(trainer.model, tokenizer, questions[0], params), "", sep="\n", soft_wrap=True, highlight=False, markup=False)
    ways = {"diffusion": params, "diffusion, a token after the other": in_order}
    if objective.co_loss:
        ways["the same weights, left to right"] = SamplingParams(max_new_tokens=length, strategy=LEFT_TO_RIGHT)
    return [answered(name, trainer.model, tokenizer, questions, way, spent) for name, way in ways.items()], length


def left_to_right(
    options: DemoOptions, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[HeldOut], length: int, console: Console
) -> Speaker:
    """Train the twin from left to right, and have it answer."""
    rows, _ = sentences(tokenizer)
    trainer = sft_trainer(model, tokenizer, rows, arguments(options, "left_to_right", model, options.twin_learning_rate), provenance=origin(options, "causal"))
    console.print("the twin, from left to right:", *plan(trainer).lines()[-1:], sep="\n", highlight=False)
    spent = cpu_seconds(trainer.train)
    trainer.save_final()
    return answered("its twin, left to right", trainer.model, tokenizer, questions, SamplingParams(max_new_tokens=length), spent)


def sentences(tokenizer: PreTrainedTokenizerBase) -> tuple[list[Row], Any]:
    """The sentences to train on, and their counts."""
    return prepare(map(to_example, read_json_lines(sample_path("cities"))), tokenizer, max_length=256)


def arguments(options: DemoOptions, name: str, model: PreTrainedModel, learning_rate: float) -> Arguments:
    """The same for both models, but for the learning rate."""
    return Arguments(
        str(Path(options.output_dir) / name), learning_rate=learning_rate, lr_scheduler_type="cosine", warmup_steps=0.05, weight_decay=0.0,
        max_steps=options.max_steps, per_device_train_batch_size=8, logging_steps=21, save_strategy="no", seed=options.seed,
        use_cpu=model.device.type == "cpu",
    )  # fmt: skip


def origin(options: DemoOptions, paradigm: str) -> Provenance:
    """What the manifests say of where the checkpoints come from."""
    return Provenance(base=options.model, data="samples", paradigm=paradigm)


def cpu_seconds(work: Any) -> float:
    """Do some work; return the seconds of CPU time it took, of all cores together."""
    before = time.process_time()
    work()
    return time.process_time() - before


# What they answer


def step_by_step(model, tokenizer: PreTrainedTokenizerBase, question: HeldOut, params: SamplingParams) -> Iterator[str | Text]:
    """The question, and the canvas after each step of its answer, a line each."""
    yield question.prompt[-1]["content"]
    results = generate(model, tokenizer, [question.prompt], params, trace=True)
    yield from history(generation_trace(results).steps_of(results[0]), TokenLabels(tokenizer))


def answered(
    name: str, model, tokenizer: PreTrainedTokenizerBase, questions: Sequence[HeldOut], params: SamplingParams, training: float
) -> Speaker:
    """Have a model answer all questions."""
    sampler = AnswerSampler(tokenizer, questions, params=params)
    spent = cpu_seconds(lambda: sampler(model))
    exact = [" ".join(answer.split()) == question.answer for answer, question in zip(sampler.answers, questions, strict=True)]
    country = [question.answer.rpartition(" in ")[2].rstrip(".") in answer for answer, question in zip(sampler.answers, questions, strict=True)]
    return Speaker(name, sampler.answers, exact, country, training, spent)


def share(right: Sequence[bool]) -> str:
    """A share of right answers with its standard error, in words."""
    p = sum(right) / len(right)
    return f"{p:.3f} ± {(p * (1 - p) / len(right)) ** 0.5:.3f}"


def comparison(speakers: Sequence[Speaker]) -> Table:
    """How they did, a line each."""
    drawn = Table("", "exact", "the country", "CPU s of training", "of answering", title=f"{len(speakers[0].exact)} cities that were not trained")
    for each in speakers:
        drawn.add_row(each.name, share(each.exact), share(each.country), f"{each.training:.0f}", f"{each.answering:.0f}")
    return drawn


def wrong(speaker: Speaker, questions: Sequence[HeldOut], shown: int = 6) -> list[str]:
    """Some answers that are wrong, with what was expected."""
    pairs = zip(speaker.answers, speaker.exact, questions, strict=True)
    return [f"  {answer!r} instead of {question.answer!r}" for answer, exact, question in pairs if not exact][:shown]


def figures(speakers: Sequence[Speaker]) -> Iterator[str]:
    """The figures in a line each, for people and for scripts."""
    for each in speakers:
        n = len(each.exact)
        yield f"{each.name}: n={n} exact={sum(each.exact) / n:.3f} country={sum(each.country) / n:.3f}"


if __name__ == "__main__":
    sys.exit(main())
