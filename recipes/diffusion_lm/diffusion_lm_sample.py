"""Let a Diffusion-LM speak: freely, around given words, at a length, or where a classifier or a wanted word draws it.

seodang diffusion-lm-sample runs/diffusion-lm --samples 8 --seed 1
seodang diffusion-lm-sample runs/diffusion-lm "The _ was _ ." "_ _ sold _ _" --show_steps 12
seodang diffusion-lm-sample runs/diffusion-lm --words 7 --word_at 3:garden --classifier runs/diffusion-lm-control --label praise
"""

import json
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from seodang.data.errors import UserError
from seodang.infer.diffusion_lm.checkpoint import load_classifier, load_diffusion_lm
from seodang.infer.diffusion_lm.guidance import Control, Guidance, all_of, label_control, word_control
from seodang.infer.diffusion_lm.model import DiffusionLM
from seodang.infer.diffusion_lm.sampling import Denoised, Sampling, denoise
from seodang.infer.diffusion_lm.words import BLANK, Canvas, canvas_of, filled, text_of, word_id
from seodang.infer.requests.rng import hashed
from seodang.recipes.options.outputs import empty, open_output
from seodang.recipes.options.parser import command, parse

PICTURED = 40  # steps in a picture


@dataclass
class Texts:
    """What is said, and where it goes."""

    model: str = field(metadata={"help": "Folder of a Diffusion-LM, as diffusion-lm writes it."})
    templates: list[str] = field(default_factory=list, metadata={"help": f"Texts with {BLANK} where a word is to be found; without, all words are."})
    samples: int = field(default=4, metadata={"help": "Texts for each template."})
    words: int | None = field(default=None, metadata={"help": "How many words and signs each text has. As many as the model likes by default."})
    word_at: list[str] | None = field(default=None, metadata={"help": "Wanted words by guidance, PLACE:WORD, as 3:garden; the first place is 1."})
    output: str | None = field(default=None, metadata={"help": "Write the texts to this JSON Lines file instead of printing them."})
    show_steps: int | None = field(default=None, metadata={"help": "Print the nearest words at so many steps from noise to text. Needs --samples 1."})
    html: str | None = field(default=None, metadata={"help": "Write the steps of the one text to this page."})
    png: str | None = field(default=None, metadata={"help": "Write the steps of the one text as a picture."})
    seed: int = field(default=0, metadata={"help": "Each text has a seed of its own that hangs on this and its place."})
    batch_size: int = field(default=64, metadata={"help": "Texts that are denoised together."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps."})

    def __post_init__(self):
        for name in ("samples", "words", "show_steps", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.words is not None and self.templates:
            raise UserError(f"words {self.words} is the length of a text without given words, but a template has a length of its own: drop one of them")
        for name in ("show_steps", "html", "png"):
            if getattr(self, name) is not None and self.samples * max(len(self.templates), 1) != 1:
                raise UserError(f"{name} shows the steps of one text: give --samples 1 and one template at most")
        if self.show_steps is not None and self.output is not None:
            raise UserError("show_steps prints the steps of a text, and output writes texts into a file: leave one of them out")

    def canvases(self, model: DiffusionLM, tokenizer: PreTrainedTokenizerBase) -> list[Canvas]:
        """What is given of each text, in the order in which they are told. Raises UserError for what the model cannot take."""
        length = model.config.max_position_embeddings
        if not self.templates:
            free: Canvas = [None] * (length if self.words is None else self.words)
            return [free if self.words is None else filled(free, length, tokenizer)] * self.samples
        return [filled(canvas_of(template, tokenizer), length, tokenizer) for template in self.templates for _ in range(self.samples)]

    def barred(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """What is no word, where each position is to hold one."""
        return [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] if self.templates or self.words is not None else []

    def wanted(self, tokenizer: PreTrainedTokenizerBase, canvases: Sequence[Canvas]) -> list[tuple[int, int]]:
        """The wanted words as positions, from 0, and ids. Raises UserError for what is no PLACE:WORD, a place that is given or beyond a text, and an unknown word."""
        found = []
        for each in self.word_at or ():
            place, colon, word = each.partition(":")
            if not colon or not place.isdecimal() or not word:
                raise UserError(f"word_at takes PLACE:WORD, as 3:garden, got {each!r}")
            if not all(1 <= int(place) <= len(canvas) and canvas[int(place) - 1] is None for canvas in canvases):
                raise UserError(f"word_at {each}: place {place} is not open in each of the texts; the first place is 1")
            found.append((int(place) - 1, word_id(word, tokenizer)))
        return found


@dataclass
class Steps:
    """How noise becomes words."""

    steps: int | None = field(default=None, metadata={"help": "Steps taken of those that the model was trained with; 200, or all where there are fewer."})
    eta: float = field(default=1.0, metadata={"help": "1 samples ancestrally, 0 is DDIM without noise."})
    clamp_from: int = field(default=0, metadata={"help": "From this step of the training's on to 0, predicted latents are clamped to words; 0 never."})
    updates: int = field(default=3, metadata={"help": "Guidance: Adagrad updates behind each step."})
    rate: float = field(default=0.1, metadata={"help": "Guidance: how far an update moves a latent."})
    fluency: float = field(default=0.01, metadata={"help": "Guidance: weight of what the model itself expects, beside the condition."})
    classifier: str | None = field(default=None, metadata={"help": "Folder of a classifier on the model's latents, as diffusion-lm-control writes it."})
    label: str | None = field(default=None, metadata={"help": "The class that the classifier is to find in the texts."})

    def __post_init__(self):
        if (self.classifier is None) is not (self.label is None):
            raise UserError("classifier and label go together: a classifier's folder, and one of its labels")
        self.sampling()

    def sampling(self) -> Sampling:
        """The settings; raises UserError for one out of range."""
        return Sampling(self.steps, self.eta, self.clamp_from, Guidance(self.updates, self.rate, self.fluency))

    def control(self, model: DiffusionLM, wanted: Sequence[tuple[int, int]]) -> Control | None:
        """What the texts are drawn to, if to anything."""
        controls = [word_control(model, wanted)] if wanted else []
        if self.classifier is not None:
            controls.append(label_control(load_classifier(self.classifier, str(model.device)), self.label, model))
        return all_of(controls)


@command
def main(argv: list[str] | None = None) -> int:
    texts, steps = parse(argv, Texts, Steps, prog="seodang diffusion-lm-sample", positional=("model", "templates"), description=__doc__)
    model, tokenizer = load_diffusion_lm(texts.model, texts.device)
    settings, canvases = steps.sampling(), texts.canvases(model, tokenizer)
    settings.checked(model.config.diffusion_steps)
    barred = texts.barred(tokenizer)
    control = steps.control(model, texts.wanted(tokenizer, canvases))
    seeds = [hashed(texts.seed, place) >> 1 for place in range(len(canvases))]
    with ExitStack() as stack:
        output = stack.enter_context(open_output(texts.output)) if texts.output is not None else sys.stdout
        for start in range(0, len(canvases), texts.batch_size):
            some = slice(start, start + texts.batch_size)
            history = denoise(model, canvases[some], settings, seeds=seeds[some], control=control, barred=barred)
            history = deque(history, None if texts.show_steps or texts.html or texts.png else 1)
            if texts.output is not None and not start:
                empty(output)
            show_steps(texts, history, canvases[0], tokenizer)
            for place, ids in enumerate(history[-1].words, start=start):
                text = text_of(ids, tokenizer)
                print(text if texts.output is None else json.dumps(told(texts, place, text), ensure_ascii=False), file=output, flush=True)
    return 0


def told(texts: Texts, place: int, text: str) -> dict[str, Any]:
    """A line of the output's."""
    template = {"template": texts.templates[place // texts.samples]} if texts.templates else {}
    return {**template, "sample": place % texts.samples, "text": text}


def show_steps(texts: Texts, history: Sequence[Denoised], canvas: Canvas, tokenizer: PreTrainedTokenizerBase) -> None:
    """Print the steps of the one text, and write its pictures, where that is asked for."""
    if not (texts.show_steps or texts.html or texts.png):
        return
    from rich.console import Console

    from seodang.infer.explain.diffusion_picture import draw
    from seodang.infer.explain.nearest_words import as_result, as_steps, lines, shown_steps
    from seodang.infer.explain.page import to_html
    from seodang.infer.text.token_labels import TokenLabels

    names, title = TokenLabels(tokenizer), texts.templates[0] if texts.templates else "a text out of noise"
    if texts.show_steps:
        console = Console()
        for line in lines(history, 0, names, texts.show_steps):
            console.print(line, soft_wrap=True)
    pictured = as_steps([history[step] for step in shown_steps(len(history), PICTURED)], 0, [id is not None for id in canvas])
    if texts.png:
        draw(pictured, names, Path(texts.png), title)
    if texts.html:
        result = as_result(pictured, text_of(history[-1].words[0], tokenizer), tokenizer, texts.seed)
        Path(texts.html).write_text(to_html([result], tokenizer, [], title), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
