"""Three encoder-decoders taught the same rows, an LSTM with the context vector alone, an LSTM with attention and a Transformer, and what is measured of each."""

import random
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from seodang.data.errors import UserError
from seodang.data.seq2seq.packing import Row, pack_alike
from seodang.data.seq2seq.records import source_target
from seodang.data.seq2seq.rows import Seq2SeqLabeller, seq2seq_rows
from seodang.data.seq2seq.written_forms import KINDS, MOST_DIGITS, written_forms
from seodang.data.text.syllable_tokenizer import syllable_tokenizer
from seodang.infer import LSTMConfig, SamplingParams, TransformerConfig, generate
from seodang.recipes.options.training import Arguments
from seodang.train import seq2seq_trainer
from seodang.train.encoder_decoder.seq2seq import Seq2SeqTrainer
from seodang.train.pretraining.architecture import of_tokenizer, untrained
from seodang.train.rollouts.eval_generation import AnswerSampler, HeldOut
from seodang.train.run.crash_safe import Provenance

READERS = {"context": "LSTM, context vector alone", "attention": "LSTM with attention", "transformer": "Transformer"}
TASKS = {task: 1.0 for task in KINDS["numbers"]}
BOTH_WAYS = "both ways"
PARTS = {  # of the tasks: a number is many tokens in words and few in digits, so a long source has a long answer on each of the two ways alone
    BOTH_WAYS: tuple(TASKS),
    "words to digits": tuple(task for task in TASKS if task.endswith("digits")),
    "digits to words": tuple(task for task in TASKS if task.startswith("digits")),
}
THIRDS = ("short", "middle", "long")
WAYS = {"greedy": {}, "beam 4": {"num_beams": 4}}
TRIED_STEPS = 30
CPU = torch.device("cpu")
Value = TypeVar("Value")


def told(default: Any, text: str) -> Any:
    """An option with its help."""
    return field(default=default, metadata={"help": text})


@dataclass
class Settings:
    """How the three are taught: options. All but the learning rates, which hang on the kind, is the same for them."""

    max_steps: int = told(4000, "Training steps of each model: by default each row is seen once.")
    batch: int = told(32, "Rows a step.")
    rows: int = told(128_000, "Rows to train on.")
    digits: int = told(9, "Numbers have 2 digits to so many, as many of each; held out are some of 3 and more.")
    heldout: int = told(500, "Held-out numbers that are asked about, of each of the four tasks.")
    d_model: int = told(128, "Size of the hidden states of all three.")
    layers: int = told(2, "Layers of encoder and decoder each.")
    heads: int = told(4, "Heads of the Transformer's attention.")
    lstm_learning_rate: float = told(8e-3, "Peak learning rate of both LSTMs.")
    transformer_learning_rate: float = told(2e-3, "That of the Transformer.")
    seed: int = told(0, "Of the weights, the rows and their order.")

    def __post_init__(self):
        for name in ("max_steps", "batch", "rows", "heldout"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 3 <= self.digits <= MOST_DIGITS:
            raise UserError(f"digits must be between 3 and {MOST_DIGITS}, got {self.digits}")

    def learning_rate(self, kind: str) -> float:
        """The highest one."""
        return self.transformer_learning_rate if kind == "transformer" else self.lstm_learning_rate


def check_kinds(kinds: Iterable[str]) -> None:
    """Raise UserError for a model that there is not."""
    if wrong := [kind for kind in kinds if kind not in READERS]:
        raise UserError(f"there is no model {wrong[0]!r}: choose among {', '.join(READERS)}")


@dataclass(frozen=True)
class Lesson:
    """What is read: the batches, in their order, and the held-out questions with their sources' ids, and the task of each."""

    tokenizer: PreTrainedTokenizerBase
    batches: list[Row]
    questions: list[HeldOut]
    tasks: list[str]

    @property
    def longest(self) -> int:
        """The tokens of the longest answer that there is to give."""
        return max(chain.from_iterable(batch["target_lengths"] for batch in self.batches))

    @property
    def lengths(self) -> list[int]:
        """The tokens of each question's source."""
        return [len(question.prompt) for question in self.questions]

    @property
    def digits(self) -> list[int]:
        """The digits of each question's number, whichever side has them, a token each: a long source may have a short answer, and the other way round."""
        asked = zip(self.questions, self.tasks, strict=True)
        return [len(question.answer) if task.endswith("digits") else len(question.prompt) - 2 for question, task in asked]  # without the task and the end

    def of_part(self, part: str, values: Sequence[Value]) -> list[Value]:
        """Of values, one a question, those of the questions of a part of the tasks."""
        return [value for value, task in zip(values, self.tasks, strict=True) if task in PARTS[part]]


@dataclass(frozen=True)
class Share:
    """How many of so many are right."""

    right: int
    count: int

    @property
    def value(self) -> float:
        """The share."""
        return self.right / self.count

    @property
    def error(self) -> float:
        """Its standard error."""
        return (self.value * (1 - self.value) / self.count) ** 0.5

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


@dataclass
class Reader:
    """A model that was taught, and the seconds of CPU time that this took; by way of decoding its answers to all questions, and which are right."""

    kind: str
    trainer: Seq2SeqTrainer
    seconds: float
    answers: dict[str, list[str]] = field(default_factory=dict)
    right: dict[str, list[bool]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """In words."""
        return READERS[self.kind]

    @property
    def model(self) -> PreTrainedModel:
        """The model itself."""
        return self.trainer.model


def lesson_of(settings: Settings) -> Lesson:
    """Numbers and their words in English and Korean, both ways; what is held out of each task is in no seed's rows."""
    train, held = written_forms(settings.rows, settings.heldout, settings.seed, TASKS, range(2, settings.digits + 1))
    tokenizer = syllable_tokenizer(record[side] for record in train for side in ("source", "target"))
    labeller = Seq2SeqLabeller(tokenizer, lambda target: [tokenizer.bos_token_id])  # the decoder_start_token_id of all three
    (rows, _), (asked, _) = (seq2seq_rows(map(source_target, records), labeller) for records in (train, held))
    alike, batches = pack_alike(rows, settings.batch), []
    while len(batches) < settings.max_steps:  # each time through in another order
        batches += random.Random(f"{settings.seed} {len(batches)}").sample(alike, len(alike))
    questions = [HeldOut(row["input_ids"], record["target"]) for row, record in zip(asked, held, strict=True)]
    return Lesson(tokenizer, batches[: settings.max_steps], questions, [record["task"] for record in held])


def untrained_reader(kind: str, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model of random weights that hang on the seed; the Transformer's norms stand before its sublayers, which learns without a long warmup."""
    words = {**of_tokenizer(tokenizer), "decoder_start_token_id": tokenizer.bos_token_id, "d_model": settings.d_model, "dropout": 0.0}
    if kind == "transformer":
        config = TransformerConfig(**words, encoder_layers=settings.layers, num_heads=settings.heads, d_ff=4 * settings.d_model, norm_position="pre")
    else:
        config = LSTMConfig(**words, num_layers=settings.layers, attention="dot" if kind == "attention" else "none")
    return untrained(config, settings.seed, torch.float32, CPU, AutoModelForSeq2SeqLM)


def trainer_of(kind: str, settings: Settings, lesson: Lesson, folder: Path, callbacks: Sequence[TrainerCallback] = (), **more: Any) -> Seq2SeqTrainer:
    """The trainer of a model, each of whose steps is a batch of the lesson, in their order; `more` are further arguments of it."""
    how = {"logging_steps": max(settings.max_steps // 40, 1), **more}
    args = Arguments(
        str(folder / kind), learning_rate=settings.learning_rate(kind), lr_scheduler_type="cosine", warmup_steps=0.05, weight_decay=0.0, seed=settings.seed,
        max_steps=settings.max_steps, per_device_train_batch_size=1, train_sampling_strategy="sequential", save_strategy="no", use_cpu=True, **how,
    )  # fmt: skip
    model = untrained_reader(kind, settings, lesson.tokenizer)
    provenance = Provenance(data="numbers and their words", paradigm="seq2seq")
    return seq2seq_trainer(model, lesson.tokenizer, lesson.batches, args, provenance=provenance, callbacks=callbacks)


class StepClock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def step_seconds(kind: str, settings: Settings, lesson: Lesson) -> float:
    """What a step takes by the wall clock, the optimizer's part and the trainer's included: found by making some with a model that is thrown away."""
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        trial = replace(settings, max_steps=TRIED_STEPS)
        trainer_of(kind, trial, lesson, Path(folder), [clock], logging_strategy="no", report_to="none", disable_tqdm=True).train()
    return median(end - start for start, end in pairwise(clock.ends))


def taught(kind: str, trainer: Seq2SeqTrainer, lesson: Lesson) -> Reader:
    """Train it, save it, and have it answer all questions in every way."""
    began = time.process_time()
    trainer.train()
    reader = Reader(kind, trainer, time.process_time() - began)
    trainer.save_final()
    expected = [question.answer for question in lesson.questions]
    for way, settings in WAYS.items():
        sampler = AnswerSampler(lesson.tokenizer, lesson.questions, params=SamplingParams(max_new_tokens=lesson.longest + 1, **settings))
        sampler(reader.model.eval())
        reader.answers[way] = sampler.answers
        reader.right[way] = [answer.split() == wanted.split() for answer, wanted in zip(sampler.answers, expected, strict=True)]
    return reader


# What is measured


def thirds(lengths: Sequence[int]) -> dict[str, range]:
    """Short, middle and long: cut at the lengths below which a third and two thirds of them lie, ties with what is longer; one that has none is left out.

    >>> thirds([4, 5, 6, 6, 8, 9])
    {'short': range(4, 6), 'middle': range(6, 8), 'long': range(8, 10)}
    """
    ordered = sorted(lengths)
    cuts = [ordered[0], ordered[len(ordered) // 3], ordered[2 * len(ordered) // 3], ordered[-1] + 1]
    return {name: range(first, behind) for name, (first, behind) in zip(THIRDS, pairwise(cuts), strict=True) if first < behind}


def by_group(lengths: Sequence[int], right: Sequence[bool], groups: Mapping[str, range]) -> dict[str, Share]:
    """The shares that are right, by the group that the length of a source is in; a group of none is left out.

    >>> by_group([4, 7, 8, 9, 12], [True, False, True, True, False], {"short": range(4, 8), "long": range(8, 10)})["long"]
    Share(right=2, count=2)
    """
    found = {name: [each for length, each in zip(lengths, right, strict=True) if length in group] for name, group in groups.items()}
    return {name: Share(sum(some), len(some)) for name, some in found.items() if some}


def by_thirds(lesson: Lesson, right: Sequence[bool], part: str = BOTH_WAYS) -> dict[str, Share]:
    """The shares of a part of the tasks that are right, by how long its sources are among themselves."""
    lengths = lesson.of_part(part, lesson.lengths)
    return by_group(lengths, lesson.of_part(part, right), thirds(lengths))


def by_length(lengths: Sequence[int], right: Sequence[bool], least: int) -> dict[int, Share]:
    """The shares that are right by the length of a source, of lengths that `least` sources have."""
    groups = {str(length): range(length, length + 1) for length in sorted(set(lengths)) if lengths.count(length) >= least}
    return {int(name): share for name, share in by_group(lengths, right, groups).items()}


Times = dict[str, dict[int, float]]  # seconds a token by model and by tokens of a row


def token_seconds(trainers: Mapping[str, Seq2SeqTrainer], lengths: Iterable[int], tokens: int, repeats: int, threads: int = 1) -> Times:
    """Seconds that a forward and a backward pass take for each token, by model and length: the median of some passes, the models in turn.

    On one thread it is CPU time, which others on the machine change little; on several it is the wall clock's. A batch has about so many tokens, half of
    them in sources and half in targets, which are all of the length.
    """
    before, clock = torch.get_num_threads(), time.process_time if threads == 1 else time.perf_counter
    found: Times = {name: {} for name in trainers}
    torch.set_num_threads(threads)
    try:
        for length in lengths:
            rows = random_rows(length, max(tokens // (2 * length), 1), min(trainer.model.config.vocab_size for trainer in trainers.values()))
            taken = {name: [] for name in trainers}
            for number in range(repeats + 1):
                for name, trainer in trainers.items():
                    seconds = pass_seconds(trainer, rows, clock)
                    if number:  # the first pays for what is set up once
                        taken[name].append(seconds / (2 * length * len(rows)))
            for name, seconds in taken.items():
                found[name][length] = median(seconds)
    finally:
        torch.set_num_threads(before)
    return found


def random_rows(length: int, count: int, vocab_size: int) -> list[Row]:
    """Pairs whose sides have so many tokens each."""
    ids = torch.randint(vocab_size, (count, 2, length), generator=torch.Generator().manual_seed(0)).tolist()
    return [{"input_ids": source, "decoder_input_ids": target, "labels": target} for source, target in ids]


def pass_seconds(trainer: Seq2SeqTrainer, rows: Sequence[Row], clock: Callable[[], float]) -> float:
    """Seconds of a forward and a backward pass over a batch, laid out as in training; the gradients are dropped."""
    batch, model = trainer.data_collator(rows), trainer.model.train()
    began = clock()
    model(**batch).loss.backward()
    seconds = clock() - began
    model.zero_grad(set_to_none=True)
    model.eval()
    return seconds


def refusal(reader: Reader, lesson: Lesson) -> str:
    """What the engine says of a strategy that takes back what was read, asked of a model; empty where it takes it."""
    try:
        generate(reader.model, lesson.tokenizer, [lesson.questions[0].prompt], SamplingParams(max_new_tokens=1, prompt_lookup_num_tokens=3), on_error="raise")
    except UserError as error:
        return str(error)
    return ""


def parameters(model: Any) -> int:
    """How many weights a model has."""
    return sum(parameter.numel() for parameter in model.parameters())
