"""Train a classifier on the noised latents of a Diffusion-LM, by whose gradients `seodang diffusion-lm-sample` is controlled, on records with a text and a label.

seodang diffusion-lm-control --model runs/diffusion-lm --data texts.jsonl --columns label=kind --eval_fraction 0.05
"""

import sys
from collections import Counter
from dataclasses import dataclass, field

from transformers import set_seed

from seodang.data.errors import UserError
from seodang.infer.diffusion_lm.checkpoint import load_diffusion_lm
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.training import Arguments, RunOptions
from seodang.recipes.run.before_after import picture_line, print_once
from seodang.recipes.run.of_diffusion_lm import TextOptions, origin, rows_of
from seodang.recipes.run.training import checkpoint_to_resume, complete_arguments, early_stopping, plan_lines, train_and_save
from seodang.train.diffusion_lm.classifier import latent_classifier_trainer, new_classifier
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.stages.plan import plan


@dataclass
class ClassifierOptions:
    """Whose latents are classified, and how large the classifier is."""

    model: str = field(metadata={"help": "Folder of the Diffusion-LM, as diffusion-lm writes it."})
    hidden_size: int = field(default=64, metadata={"help": "Size of the classifier's Transformer."})
    layers: int = field(default=2, metadata={"help": "Layers of it."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps."})

    def __post_init__(self):
        if self.layers < 1:
            raise UserError(f"layers must be at least 1, got {self.layers}")
        if self.hidden_size < 32 or self.hidden_size % 32:
            raise UserError(f"hidden_size must be a multiple of 32, the size of an attention head, got {self.hidden_size}")


@dataclass
class ClassifierArguments(Arguments):
    """transformers' arguments with defaults for a small classifier that is trained from scratch."""

    output_dir: str | None = field(default="runs/diffusion-lm-control", metadata={"help": "Folder of the checkpoints and the final classifier."})
    learning_rate: float = field(default=1e-3, metadata={"help": "The highest learning rate."})
    num_train_epochs: float = field(default=10, metadata={"help": "Times that all texts are gone through."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Rows a step and process."})


@command
def main(argv: list[str] | None = None) -> int:
    texts, options, run, args = parse(
        argv, TextOptions, ClassifierOptions, RunOptions, ClassifierArguments, prog="seodang diffusion-lm-control", description=__doc__
    )
    run.refuse_samples("a classifier writes no texts")
    args = complete_arguments(args, options, run, evaluates=bool(texts.eval_data or texts.eval_fraction))
    model, tokenizer = load_diffusion_lm(options.model, str(args.device))
    examples, held = texts.examples(args.seed, "labelled")
    length = model.config.max_position_embeddings
    rows, counts = rows_of(examples, tokenizer, length, texts.too_long)
    eval_rows, counts.held_out = rows_of(held, tokenizer, length, texts.too_long) if held else ([], None)
    set_seed(args.seed)
    classifier = new_classifier(model, [row["label"] for row in rows], options.hidden_size, options.layers)
    known, shares = classifier.config.label2id, Counter(row["label"] for row in rows)
    for row in [*rows, *eval_rows]:
        if row["label"] not in known:
            raise UserError(f"{row['where']}: the label {row['label']!r} is held out but not trained on, which has {', '.join(known)}")
        row["label"] = known[row["label"]]
    source = origin(texts, options, run, args, rows=rows, base=options.model)
    resume = checkpoint_to_resume(args, run, source)
    trainer = latent_classifier_trainer(classifier, tokenizer, rows, args, eval_rows=eval_rows, provenance=source, callbacks=early_stopping(run))
    told = ", ".join(f"{label} ({shares[label]:,})" for label in known)
    print_once(trainer, *plan_lines(trainer, counts, resume, stage=[f"labels          {told}"], cost=plan(trainer).lines()))
    if run.dry_run:
        return 0
    folder = train_and_save(trainer, resume)
    print_once(trainer, terminal_curve(folder), picture_line("loss curve", folder / CURVE), f"classifier      {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
