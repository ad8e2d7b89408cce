"""Options for reading preferences, and holding some of them out, dialogue by dialogue."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from seodang.data.errors import UserError
from seodang.data.files.sources import read
from seodang.data.formats import Shapes
from seodang.data.preference_rows import PreferenceCounts
from seodang.recipes.options.record import FileOptions, check_held_out

Rows = list[dict[str, Any]]


@dataclass
class PreferenceOptions(FileOptions):
    """Where preferences come from and how they are read."""

    data: list[str] = field(metadata={"help": "Files, folders or hub names: prompt, chosen, rejected; prompt, responses, ranks; trees of replies."})
    eval_data: list[str] | None = field(default=None, metadata={"help": "Held-out sources of the same shapes."})
    eval_fraction: float = field(default=0.0, metadata={"help": "Without --eval_data: the share of records held out, by dialogue."})
    weights: list[float] | None = field(default=None, metadata={"help": "Share of each source in the mix."})
    shape: str | None = field(default=None, metadata={"help": "Record shape; recognised from the keys by default."})
    split: str = field(default="train", metadata={"help": "Which split of a hub dataset."})
    chat_template: str | None = field(default=None, metadata={"help": "A built-in template's name or a Jinja file, saved with the checkpoint."})
    literal: bool = field(default=True, metadata={"help": "Encode special-token text inside content as plain text."})
    unusable: str = field(default="drop", metadata={"help": "drop or error: records without a better and a worse answer."})

    def __post_init__(self):
        check_held_out(self.eval_fraction, self.eval_data)

    def rows(
        self, prepare: Callable[..., tuple[Rows, PreferenceCounts]], tokenizer: PreTrainedTokenizerBase, seed: int, max_length: int | None, shapes: Shapes
    ) -> tuple[Rows, Rows, PreferenceCounts]:
        """Rows to train on, held-out rows, and the counts of what became of the records; `prepare` makes rows of examples of the `shapes`."""
        return read_rows(self, prepare, tokenizer, seed, shapes, max_length=max_length, literal=self.literal, unusable=self.unusable)


def read_rows(
    options: Any, prepare: Callable[..., tuple[Rows, PreferenceCounts]], tokenizer: PreTrainedTokenizerBase, seed: int, shapes: Shapes, **how: Any
) -> tuple[Rows, Rows, PreferenceCounts]:
    """Read the sources that the options name, hold a part out where they say so, and make rows of both."""
    examples = read(options.data, weights=options.weights, shape=options.shape, split=options.split, shapes=shapes, **options.reading())
    held = read(options.eval_data, shape=options.shape, shapes=shapes, **options.reading()) if options.eval_data else []
    if options.eval_fraction:
        examples, held = hold_out_dialogues(examples, options.eval_fraction, seed)
    rows, counts = prepare(examples, tokenizer, **how)
    held_rows, counts.held_out = prepare(held, tokenizer, **how) if held else ([], None)
    return rows, held_rows, counts


def hold_out_dialogues(examples: Sequence[Any], fraction: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Hold a share of the examples out, those that begin with the same request together; the same for the same seed.

    Turns of one tree or dialogue, and records of one prompt, so never lie on both sides. Raises UserError where nothing would be left.
    """
    by_opening: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        by_opening.setdefault(_opening(example.prompt), []).append(number)
    wanted, chosen = max(1, round(len(examples) * fraction)), set()
    groups = list(by_opening.values())
    random.Random(seed).shuffle(groups)
    for group in groups:
        if len(chosen) >= wanted:
            break
        chosen |= set(group)
    if len(chosen) == len(examples):
        raise UserError(
            f"eval_fraction {fraction} leaves nothing to train on of {len(examples)} examples that begin in {len(groups)} ways: "
            "lower it, or give --eval_data"
        )
    return [e for i, e in enumerate(examples) if i not in chosen], [examples[i] for i in sorted(chosen)]


def _opening(prompt: Sequence[dict[str, Any]]) -> str:
    """What a dialogue begins with: its first request, whatever a system message says before."""
    first = next((message for message in prompt if message["role"] != "system"), prompt[0] if prompt else {})
    return json.dumps(first.get("content"), sort_keys=True, ensure_ascii=False)
