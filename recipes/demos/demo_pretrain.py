"""Train a small decoder from nothing, its tokenizer included, on the documentation that Python brings along, and let it write.

seodang demo-pretrain

The text is the language reference and the docstrings of the standard library, two megabytes under the PSF License Version 2. A twentieth of the
documents is held out: what each of their bytes costs, in bits, falls below what gzip makes of the same texts. What a model of two and a half million
weights has learned in minutes is the manner of that text, not its matter.
"""

import lzma
import random
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from seodang.data.errors import UserError
from seodang.data.text.documents import Part
from seodang.data.text.python_documentation import LICENCE, python_documentation
from seodang.data.text.rows import CausalRows, causal_rows
from seodang.data.text.store import TokenStore, write_store
from seodang.data.text.tokenizer_training import TokenizerSettings, train_tokenizer
from seodang.infer import SamplingParams
from seodang.infer.kernels.device import choose_device, choose_dtype
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.training import Arguments
from seodang.recipes.run.training import plan_lines
from seodang.recipes.tokenizer import lines as tokenizer_lines
from seodang.train.pretraining.architecture import Sizes, small_config, untrained
from seodang.train.pretraining.causal import PretrainTrainer, pretrain_trainer
from seodang.train.pretraining.samples import TextSampler
from seodang.train.run.callbacks import CURVE, read_log, terminal_curve
from seodang.train.run.crash_safe import Provenance
from seodang.train.stages.plan import Plan, plan

HELD_OUT = 20  # one document of so many
LENGTH = 256  # tokens of a row
FLOOR = 200  # steps that a slow machine makes all the same
BEGINNINGS = ("The ", "Return the ", "A class that", "If the file")
STRATEGIES = {
    "greedy": SamplingParams(max_new_tokens=48), "top-p": SamplingParams(max_new_tokens=48, temperature=0.8, top_p=0.95, seed=0),
    "contrastive": SamplingParams(max_new_tokens=48, penalty_alpha=0.6, top_k=4),
}  # fmt: skip


@dataclass
class DemoOptions:
    """The options of `seodang demo-pretrain`."""

    architecture: str = field(default="llama", metadata={"help": "A decoder of transformers: llama, qwen3, gpt2."})
    hidden_size: int = field(default=192, metadata={"help": "Size of the hidden states."})
    layers: int = field(default=4, metadata={"help": "How many layers."})
    heads: int = field(default=6, metadata={"help": "Heads of attention."})
    vocab_size: int = field(default=4096, metadata={"help": "Tokens of the tokenizer."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights: auto, float32, bfloat16."})
    max_steps: int = field(default=700, metadata={"help": "Training steps of eight rows each."})
    minutes: float = field(default=4.5, metadata={"help": f"Takes fewer steps, {FLOOR} at least, where all would take longer than this."})
    learning_rate: float = field(default=3e-3, metadata={"help": "Peak learning rate."})
    seed: int = field(default=0, metadata={"help": "Of the weights, of what is held out and of the order."})
    output_dir: str = field(default="runs/demo-pretrain", metadata={"help": "Folder of the checkpoint and of the encoded text."})

    def __post_init__(self):
        for name in ("max_steps", "minutes"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")


@command
def main(argv: list[str] | None = None) -> int:
    (options,) = parse(argv, DemoOptions, prog="seodang demo-pretrain", description=__doc__)
    sizes = Sizes(options.hidden_size, options.layers, options.heads)
    console, began = Console(), time.perf_counter()
    texts = [Part(name, text) for name, text in python_documentation()]
    random.Random(options.seed).shuffle(texts)
    held, training = texts[: max(len(texts) // HELD_OUT, 1)], texts[max(len(texts) // HELD_OUT, 1) :]
    print(f"text            the documentation of Python {sys.version.split()[0]} in {len(texts):,} documents, {LICENCE}", flush=True)
    tokenizer = train_tokenizer([part.text for part in training], TokenizerSettings(vocab_size=options.vocab_size))
    rows, held_rows = (stored(Path(options.output_dir) / "text" / name, some, tokenizer) for name, some in (("train", training), ("heldout", held)))
    trainer = build(options, sizes, tokenizer, rows, held_rows)
    cost = within(options, trainer, plan(trainer))
    told = [*tokenizer_lines(tokenizer), f"held out        {len(held):,} documents, {held_rows.bytes:,} bytes", *rows.counts().lines()]
    print(*plan_lines(trainer, rows.store.counts, None, stage=told, cost=cost.lines()), sep="\n", flush=True)
    before = trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    folder = trainer.save_final()
    compressed = compressors(held, held_rows.bytes)
    sampler = TextSampler(tokenizer, BEGINNINGS, STRATEGIES)
    sampler(trainer.accelerator.unwrap_model(trainer.model))
    console.print(written(sampler), measured(folder, before["eval_bits_per_byte"], compressed), sep="\n")
    print(terminal_curve(folder), f"loss curve      {folder / CURVE}", *figures(folder, compressed), sep="\n")
    print(f"all of it took {time.perf_counter() - began:.0f} s; seodang generate {folder} 'The method ' --raw", folder, sep="\n")
    return 0


def stored(folder: Path, parts: Sequence[Part], tokenizer: PreTrainedTokenizerBase) -> CausalRows:
    """Rows of the documents, whose tokens lie in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_store(parts, tokenizer, folder)
    return causal_rows(TokenStore(folder), tokenizer, LENGTH)


def build(options: DemoOptions, sizes: Sizes, tokenizer: PreTrainedTokenizerBase, rows: CausalRows, held: CausalRows) -> PretrainTrainer:
    """A trainer of a model of random weights."""
    device = choose_device(options.device)
    config = small_config(options.architecture, sizes, tokenizer, LENGTH)
    model = untrained(config, options.seed, choose_dtype(options.dtype, device)[0], device)
    args = Arguments(
        options.output_dir, learning_rate=options.learning_rate, lr_scheduler_type="cosine", warmup_steps=0.05, weight_decay=0.1, adam_beta2=0.95,
        max_steps=options.max_steps, per_device_train_batch_size=8, logging_steps=20, save_strategy="no", eval_strategy="steps", seed=options.seed,
        use_cpu=device.type == "cpu",
    )  # fmt: skip
    return pretrain_trainer(model, tokenizer, rows, args, eval_rows=held, provenance=Provenance(data="the documentation of Python"))


def within(options: DemoOptions, trainer: PretrainTrainer, whole: Plan) -> Plan:
    """Cut the steps to those that the minutes allow, but not below the floor; evaluations come five times."""
    trainer.args.max_steps = whole.steps_within(options.minutes, FLOOR)
    trainer.args.eval_steps = max(trainer.args.max_steps // 5, 1)
    return whole.of_steps(trainer.args.max_steps)


# What came of it


def compressors(held: Sequence[Part], size: int) -> dict[str, float]:
    """Bits that compressors take for each byte of the held-out texts, which they see alone and in one file, an end of line between them."""
    whole = "\n".join(part.text for part in held).encode()
    return {"gzip -9": 8 * len(zlib.compress(whole, 9)) / size, "xz -9": 8 * len(lzma.compress(whole, preset=9)) / size}


def bits_logged(folder: Path) -> list[tuple[int, float]]:
    """The steps after which it was measured, with the bits a byte."""
    return sorted({entry["step"]: entry["eval_bits_per_byte"] for entry in read_log(folder / "log.jsonl") if "eval_bits_per_byte" in entry}.items())


def measured(folder: Path, before: float, compressed: dict[str, float]) -> Table:
    """Bits a byte over the steps, beside the compressors'."""
    drawn = Table("", "bits a byte", title="held-out documents, ends of documents counted")
    for name, bits in [("untrained", before), *((f"after {step:,} steps", bits) for step, bits in bits_logged(folder)), *compressed.items()]:
        drawn.add_row(name, f"{bits:.3f}")
    return drawn


def written(sampler: TextSampler) -> Table:
    """What the model wrote, by strategy."""
    drawn = Table("beginning", "strategy", "goes on", title="what it writes", show_lines=True)
    for beginning, texts in zip(sampler.beginnings, sampler.texts, strict=True):
        for name, text in texts.items():
            drawn.add_row(Text(beginning), name, Text(" ".join(text.split())))
    return drawn


def figures(folder: Path, compressed: dict[str, float]) -> Iterator[str]:
    """The figures in a line, for people and for scripts."""
    step, bits = bits_logged(folder)[-1]
    yield f"heldout bits_per_byte={bits:.3f} step={step} " + " ".join(f"{name.split()[0]}={value:.3f}" for name, value in compressed.items())


if __name__ == "__main__":
    sys.exit(main())
