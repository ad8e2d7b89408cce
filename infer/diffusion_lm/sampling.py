"""Noise to words: the loop of Diffusion-LM, for canvases on which some words may be given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...data.errors import UserError
from .gaussian import Normal, ddim, noised, path
from .guidance import Control, Guidance, guided
from .model import DiffusionLM
from .words import Canvas

STEPS = 200  # unless others are asked for, or the model has fewer


@dataclass(frozen=True)
class Sampling:
    """How noise becomes words.

    `steps` are those taken of the model's; `eta` is 1 for ancestral sampling, 0 for DDIM without noise, or between. At steps up to `clamp_from`, counted as in training
    (0 is the text), the predicted latents are replaced by the nearest embeddings: 0 never does so, the model's own number of steps always.
    """

    steps: int | None = None
    eta: float = 1.0
    clamp_from: int = 0
    guidance: Guidance = field(default_factory=Guidance)

    def checked(self, diffusion_steps: int) -> list[int]:
        """The steps that are gone through, from noise to text. Raises UserError for a value out of range."""
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta must be in [0, 1], got {self.eta}")
        if not 0 <= self.clamp_from <= diffusion_steps:
            raise UserError(f"clamp_from must be from 0 to {diffusion_steps}, the steps that the model was trained with, got {self.clamp_from}")
        return path(diffusion_steps, min(STEPS, diffusion_steps) if self.steps is None else self.steps)


@dataclass(frozen=True)
class Denoised:
    """The canvases behind a step of sampling: the number of the training's step that they have come to, 0 at the end.

    `words` are those nearest to the noisy latents, `predicted` those that the clean ones are taken for, `logprobs` how likely these are by rounding; lists
    of rows, each as long as its canvas. At the end `words` are the text.
    """

    step: int
    words: list[list[int]]
    predicted: list[list[int]]
    logprobs: list[list[float]]


class RowNoise:
    """Standard normal noise of each row by its own seed, so that no row depends on those beside it."""

    def __init__(self, seeds: Sequence[int], lengths: Sequence[int], like: Tensor):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.lengths, self.like = lengths, like

    def __call__(self) -> Tensor:
        """The next noise, of the shape of `like`; 0 behind a row's end."""
        noise = torch.zeros(self.like.shape, dtype=torch.float64)
        for row, (generator, length) in enumerate(zip(self.generators, self.lengths, strict=True)):
            noise[row, :length] = torch.randn(length, self.like.shape[-1], generator=generator, dtype=torch.float64)
        return noise.to(self.like)


def sample(model: DiffusionLM, canvases: Sequence[Canvas], settings: Sampling | None = None, **options: Any) -> list[list[int]]:
    """Fill in canvases, see `denoise`; return the ids of each row."""
    *_, last = denoise(model, canvases, settings, **options)
    return last.words


def denoise(
    model: DiffusionLM,
    canvases: Sequence[Canvas],
    settings: Sampling | None = None,
    *,
    seeds: Sequence[int],
    control: Control | None = None,
    barred: Sequence[int] = (),
) -> Iterator[Denoised]:
    """Yield the canvases after each step, from noise to words; positions with an id keep it, those with None are found.

    Canvases may differ in length: a row sees nothing beyond its own. One seed a row. With `control` the latents follow its gradients, see
    `guided`. No word that is `barred` is found, the end where a text's length is given, say. Raises UserError for settings out of range, and for canvases that the model cannot take, before any pass.
    """
    settings = settings or Sampling()
    steps = settings.checked(model.config.diffusion_steps)
    check_canvases(model, canvases)
    return _denoise(model, canvases, settings, steps, seeds, control, barred)


def check_canvases(model: DiffusionLM, canvases: Sequence[Canvas]) -> None:
    """Raise UserError for a canvas that is empty or longer than the model, and for an id beyond its vocabulary."""
    longest, vocab = model.config.max_position_embeddings, model.config.vocab_size
    for number, canvas in enumerate(canvases, start=1):
        if not 1 <= len(canvas) <= longest:
            raise UserError(f"canvas {number} has {len(canvas)} positions, the model takes 1 to {longest}: shorten it")
        if beyond := [id for id in canvas if id is not None and not 0 <= id < vocab]:
            raise UserError(f"canvas {number} holds the id {beyond[0]}, beyond the model's vocabulary of {vocab}")


@torch.no_grad()
def _denoise(
    model: DiffusionLM, canvases: Sequence[Canvas], settings: Sampling, steps: list[int], seeds: Sequence[int], control: Control | None, barred: Sequence[int]
) -> Iterator[Denoised]:
    abar, lengths = model.abar, list(map(len, canvases))
    ids, mask = padded(canvases, model)
    given, free = ids >= 0, (ids < 0) & mask.bool()
    clean = model.word_embeddings(ids.clamp_min(0))
    noise = RowNoise(seeds, lengths, clean)
    latents = noised(clean * given[..., None], abar[-1]).sample(noise())
    for now, then in pairwise(steps):
        found = model(latents, torch.full((len(ids),), now, device=ids.device), mask).clean
        predicted = model.rounding(found, barred).log_softmax(dim=-1).max(dim=-1)
        if now <= settings.clamp_from:
            found = model.word_embeddings(model.nearest(found, barred))
        found = torch.where(given[..., None], clean, found)
        step = ddim(found, latents, abar[then], abar[now], settings.eta)
        latents = step.sample(noise())
        if control is not None and then > 0:
            at = torch.full((len(ids),), then, device=ids.device)
            scale = ddim(found, latents, abar[then], abar[now], 1.0).variance  # without noise there would be no way to move at all
            latents = guided(latents, Normal(step.mean, scale), lambda moved, at=at: control(moved, at, mask), free, settings.guidance)
        words = model.rounding(latents, barred).argmax(dim=-1) if then == 0 else model.nearest(latents, barred)
        yield Denoised(
            then, cut(torch.where(given, ids, words), lengths), cut(torch.where(given, ids, predicted.indices), lengths),
            cut(predicted.values.masked_fill(given, 0.0), lengths),
        )  # fmt: skip


def padded(canvases: Sequence[Canvas], model: DiffusionLM) -> tuple[Tensor, Tensor]:
    """The ids of canvases, [rows, longest], -1 where a word is to be found, and which positions are a row's own."""
    longest = max(map(len, canvases))
    ids = [[-1 if id is None else id for id in canvas] + [-1] * (longest - len(canvas)) for canvas in canvases]
    mask = [[1] * len(canvas) + [0] * (longest - len(canvas)) for canvas in canvases]
    return torch.tensor(ids, device=model.device), torch.tensor(mask, device=model.device)


def cut(values: Tensor, lengths: Sequence[int]) -> list[list]:
    """Rows without what is beyond their lengths."""
    return [row[:length] for row, length in zip(values.tolist(), lengths, strict=True)]
