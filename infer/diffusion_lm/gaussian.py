"""Gaussian diffusion in closed form: what noise makes of a latent, and the way back (Ho et al. 2020; Song et al. 2021, "DDIM"; Li et al. 2022).

`abar` is the share of a latent's square that is left at a step: abar[0] = 1 without noise, abar[T] nearly 0. Where it is given as a tensor it must
broadcast against the latents.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...data.errors import UserError

OFFSET = 1e-4  # s of the sqrt schedule: how fast noise rises at the first steps
MOST = 0.999  # of what is left, that one step may take


class Normal(NamedTuple):
    """A Gaussian with independent coordinates: its mean, and the variance of each."""

    mean: Tensor
    variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """The point of the distribution that standard normal noise stands for."""
        return self.mean + self.variance.sqrt() * noise


def sqrt_schedule(steps: int, offset: float = OFFSET) -> Tensor:
    """Return abar of the sqrt schedule, [steps + 1] in float64: 1 - sqrt(t / T + s) over its value at 0, no step taking more than `MOST` of it.

    Noise rises fast at first, so that words near each other are told apart under noise too (Li et al. 2022, appendix A).
    """
    if steps < 1:
        raise UserError(f"diffusion_steps must be at least 1, got {steps}")
    left = 1 - (torch.arange(steps + 1, dtype=torch.float64) / steps + offset).sqrt()
    kept = (left[1:] / left[:-1]).clamp_min(1 - MOST)
    kept[left[1:] <= 0] = 1 - MOST
    return torch.cat([torch.ones(1, dtype=torch.float64), kept.cumprod(dim=0)])


def start_variance(abar: Tensor) -> float:
    """The variance of a word's latent around its embedding, that of the first step: abar is [steps + 1]."""
    return float(1 - abar[1])


def noised(clean: Tensor, abar: Tensor | float) -> Normal:
    """q(x_t | x_0): what is left of a clean latent at a step."""
    abar = torch.as_tensor(abar, dtype=clean.dtype, device=clean.device)
    return Normal(abar.sqrt() * clean, 1 - abar)


def posterior(clean: Tensor, latent: Tensor, abar_before: Tensor | float, abar: Tensor | float) -> Normal:
    """q(x_s | x_t, x_0), s before t: where a latent with more noise came from, given the clean one. Steps between may be left out."""
    before, now = (torch.as_tensor(each, dtype=clean.dtype, device=clean.device) for each in (abar_before, abar))
    alpha = now / before
    of_clean, of_latent = before.sqrt() * (1 - alpha) / (1 - now), alpha.sqrt() * (1 - before) / (1 - now)
    return Normal(of_clean * clean + of_latent * latent, (1 - alpha) * (1 - before) / (1 - now))


def ddim(clean: Tensor, latent: Tensor, abar_before: Tensor | float, abar: Tensor | float, eta: float) -> Normal:
    """The step from x_t to x_s by a prediction of x_0 with `eta` of the posterior's deviation: 1 is the posterior itself, 0 has no noise."""
    before, now = (torch.as_tensor(each, dtype=clean.dtype, device=clean.device) for each in (abar_before, abar))
    variance = eta**2 * (1 - now / before) * (1 - before) / (1 - now)
    noise = (latent - now.sqrt() * clean) / (1 - now).sqrt()
    return Normal(before.sqrt() * clean + (1 - before - variance).clamp_min(0).sqrt() * noise, variance)


def path(diffusion_steps: int, steps: int) -> list[int]:
    """The steps that sampling goes through, from T down to 0, evenly spaced: `steps` + 1 of them.

    >>> path(2000, 4)
    [2000, 1500, 1000, 500, 0]
    """
    if not 1 <= steps <= diffusion_steps:
        raise UserError(f"steps must be from 1 to {diffusion_steps}, those that the model was trained with, got {steps}")
    return [round(diffusion_steps * (steps - done) / steps) for done in range(steps + 1)]
