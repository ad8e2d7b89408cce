"""Options that only masked diffusion has, of commands that take models of either kind: checked alone, and against the model."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from seodang.data.errors import UserError
from seodang.infer.diffusion.masking import Draws
from seodang.infer.runners.architecture import transformers_model
from seodang.infer.runners.paradigm import diffusion_of
from seodang.train.diffusion.canvas import Canvas


def given(options: object, names: Sequence[str]) -> dict[str, Any]:
    """Those of the named options that have a value, by their names."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def drawing(asked: Mapping[str, Any]) -> Draws:
    """How masks are drawn by the options that are given. Raises UserError for a value out of range, the canvas' too."""
    if asked.get("canvas", 1) < 1:
        raise UserError(f"canvas must be at least 1, got {asked['canvas']}")
    return Draws(**{{"draws": "count"}.get(name, name): value for name, value in asked.items() if name != "canvas"})


def canvas_of(tokenizer: PreTrainedTokenizerBase, multiple: int | None) -> Canvas | None:
    """How answers are filled up, to a multiple of so many tokens; None where none is asked for."""
    return None if multiple is None else Canvas.of(tokenizer, multiple)


def refuse_of_diffusion(model: nn.Module, asked: Mapping[str, Any], why: str) -> None:
    """Raise UserError where options of diffusion are given and the model speaks from left to right alone."""
    config = transformers_model(model).config
    if asked and diffusion_of(config) is None:
        name, value = next(iter(asked.items()))
        raise UserError(f"--{name} {value} is of masked diffusion, but this {config.model_type} speaks from left to right, and {why}: leave it out")
