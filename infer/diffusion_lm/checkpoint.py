"""Open a checkpoint of Diffusion-LM, or a classifier on its latents; others are refused by what they are."""

from __future__ import annotations

import os
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ..checkpoint.damage import read_json
from ..checkpoint.load import load, resolve
from ..runners.paradigm import CLASSIFIER, CONTINUOUS, KEY, refuse_continuous
from .model import DiffusionLM, LatentClassifier


def load_diffusion_lm(path: str | os.PathLike, device: str = "auto") -> tuple[DiffusionLM, PreTrainedTokenizerBase]:
    """Return the model in float32, in evaluation mode on its device, and its tokenizer; raises UserError for a checkpoint of another kind."""
    kind, place, config = _kind(path)
    if kind == CLASSIFIER:
        refuse_continuous(kind, place)
    if kind != CONTINUOUS:
        way = "masked diffusion" if config.get(KEY) else "text from left to right"
        raise UserError(f"{place} is a {kind} of {way}, and no Diffusion-LM: use `seodang generate`, or train one by `seodang diffusion-lm`")
    return load(place, device=device, dtype="float32", model_class=DiffusionLM)


def load_classifier(path: str | os.PathLike, device: str = "auto") -> LatentClassifier:
    """Return a classifier on latents, in float32 and in evaluation mode; raises UserError for a checkpoint of another kind."""
    kind, place, _ = _kind(path)
    if kind != CLASSIFIER:
        raise UserError(f"{place} is a {kind}, and no classifier on latents: train one by `seodang diffusion-lm-control`")
    return load(place, device=device, dtype="float32", model_class=LatentClassifier)[0]


def _kind(path: str | os.PathLike) -> tuple[str, str, dict]:
    """The model type of a checkpoint's folder, the folder, and its config."""
    place = resolve(path)
    config = Path(place) / "config.json"
    if not config.is_file():
        raise UserError(f"{place} holds no config.json: name the folder of a Diffusion-LM, as `seodang diffusion-lm` writes it")
    told = read_json(config)
    return told.get("model_type") or "model of no known type", place, told
