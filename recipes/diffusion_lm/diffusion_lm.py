"""Teach a new model continuous diffusion (Diffusion-LM, Li et al. 2022): words' embeddings and their denoiser, from scratch, on records with a text.

seodang diffusion-lm --data texts.jsonl --eval_fraction 0.05
accelerate launch recipes/diffusion_lm/diffusion_lm.py --data texts.jsonl
"""

import sys
from dataclasses import dataclass, field
from functools import partial

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from seodang.data.errors import UserError
from seodang.infer.diffusion_lm.model import DiffusionLM, DiffusionLMConfig
from seodang.infer.diffusion_lm.sampling import Sampling, sample
from seodang.infer.diffusion_lm.words import text_of, train_words
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.training import Arguments, RunOptions
from seodang.recipes.run.before_after import picture_line, print_once
from seodang.recipes.run.of_diffusion_lm import TextOptions, origin, rows_of
from seodang.recipes.run.training import checkpoint_to_resume, complete_arguments, early_stopping, plan_lines, train_and_save
from seodang.train.diffusion_lm.training import diffusion_lm_trainer
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.stages.plan import plan

SHOWN_STEPS = 50  # of sampling while training


@dataclass
class DenoiserOptions:
    """How large the model is, which words it knows, and how many steps of noise."""

    min_count: int = field(default=1, metadata={"help": "Words that occur less often in the texts become [UNK]."})
    length: int = field(default=24, metadata={"help": "Positions of the model: the longest text with its end."})
    embedding_size: int = field(default=32, metadata={"help": "Size of a word's embedding, which is what noise is added to."})
    hidden_size: int = field(default=128, metadata={"help": "Size of the Transformer."})
    layers: int = field(default=4, metadata={"help": "Layers of the Transformer (BERT's)."})
    heads: int = field(default=4, metadata={"help": "Heads of its attention."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout in the Transformer."})
    diffusion_steps: int = field(default=2000, metadata={"help": "Steps of noise, by the sqrt schedule."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps."})

    def __post_init__(self):
        for name in ("min_count", "length", "embedding_size", "hidden_size", "layers", "heads", "diffusion_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.length < 2:
            raise UserError("length must be at least 2, a word and its end, got 1")
        if self.hidden_size % self.heads:
            raise UserError(f"hidden_size {self.hidden_size} is no multiple of heads {self.heads}: change one of them")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), got {self.dropout}")

    def model(self, tokenizer: PreTrainedTokenizerBase, args: TrainingArguments) -> DiffusionLM:
        """An untrained model, which hangs on the seed."""
        set_seed(args.seed)
        config = DiffusionLMConfig(
            vocab_size=len(tokenizer), embedding_size=self.embedding_size, hidden_size=self.hidden_size, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, intermediate_size=4 * self.hidden_size, dropout=self.dropout, max_position_embeddings=self.length,
            diffusion_steps=self.diffusion_steps, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, unk_token_id=tokenizer.unk_token_id,
        )  # fmt: skip
        return DiffusionLM(config).to(args.device)


@dataclass
class DiffusionLMArguments(Arguments):
    """transformers' arguments with defaults for a small model that is trained from scratch."""

    output_dir: str | None = field(default="runs/diffusion-lm", metadata={"help": "Folder of the checkpoints and the final model."})
    learning_rate: float = field(default=1e-3, metadata={"help": "The highest learning rate."})
    num_train_epochs: float = field(default=40, metadata={"help": "Times that all texts are gone through."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Rows a step and process."})


@command
def main(argv: list[str] | None = None) -> int:
    texts, options, run, args = parse(argv, TextOptions, DenoiserOptions, RunOptions, DiffusionLMArguments, prog="seodang diffusion-lm", description=__doc__)
    args = complete_arguments(args, options, run, evaluates=bool(texts.eval_data or texts.eval_fraction))
    examples, held = texts.examples(args.seed)
    tokenizer = train_words((example.text for example in examples), options.min_count)
    tokenizer.model_max_length = options.length
    rows, counts = rows_of(examples, tokenizer, options.length, texts.too_long)
    eval_rows, counts.held_out = rows_of(held, tokenizer, options.length, texts.too_long) if held else ([], None)
    model = options.model(tokenizer, args)
    source = origin(texts, options, run, args, rows=rows)
    resume = checkpoint_to_resume(args, run, source)
    shown = partial(show, tokenizer=tokenizer, count=run.eval_samples) if run.eval_samples else None
    trainer = diffusion_lm_trainer(model, tokenizer, rows, args, eval_rows=eval_rows, sample=shown, provenance=source, callbacks=early_stopping(run))
    told = f"{options.diffusion_steps:,} steps of the sqrt schedule, embeddings of {options.embedding_size} for {len(tokenizer):,} words"
    print_once(trainer, *plan_lines(trainer, counts, resume, stage=[f"diffusion       {told}"], cost=plan(trainer).lines()))
    if run.dry_run:
        return 0
    folder = train_and_save(trainer, resume)
    print_once(trainer, terminal_curve(folder), picture_line("loss curve", folder / CURVE), f"checkpoint      {folder}")
    return 0


def show(model: DiffusionLM, tokenizer: PreTrainedTokenizerBase, count: int) -> dict[str, float]:
    """Print a few texts that the model says by now, above the progress bar."""
    length = model.config.max_position_embeddings
    found = sample(model, [[None] * length] * count, Sampling(steps=min(SHOWN_STEPS, model.config.diffusion_steps)), seeds=range(count))
    for ids in found:
        tqdm.write(f"  {text_of(ids, tokenizer)[:120]}")
    return {}


if __name__ == "__main__":
    sys.exit(main())
