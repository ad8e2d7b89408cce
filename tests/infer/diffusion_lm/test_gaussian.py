"""The Gaussian formulas against composition step by step, Bayes by enumeration, and a data distribution whose denoiser is known."""

from itertools import pairwise

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer.diffusion_lm.gaussian import MOST, OFFSET, ddim, noised, path, posterior, sqrt_schedule, start_variance

F64 = torch.float64


def test_the_sqrt_schedule_is_the_papers():
    abar = sqrt_schedule(2000)
    assert abar.dtype == F64 and len(abar) == 2001 and abar[0] == 1
    for step in (1, 10, 500, 1998):
        expected = (1 - (step / 2000 + OFFSET) ** 0.5) / (1 - OFFSET**0.5)
        assert float(abar[step]) == pytest.approx(expected, rel=1e-12)
    assert float(abar[2000] / abar[1999]) == pytest.approx(1 - MOST)  # 1 - sqrt(1 + s) is below 0: capped, as in the paper's code
    assert bool((abar[1:] < abar[:-1]).all()) and abar[-1] > 0
    assert start_variance(abar) == pytest.approx(1 - (1 - 0.0006**0.5) / 0.99)


def test_noise_added_step_by_step_has_the_moments_of_the_closed_form():
    abar, clean = sqrt_schedule(50), torch.tensor([2.0, -1.0], dtype=F64)
    mean, variance = clean, torch.zeros(2, dtype=F64)
    for step in range(1, 51):
        alpha = abar[step] / abar[step - 1]  # x_t = sqrt(alpha) x_{t-1} + sqrt(1 - alpha) noise
        mean, variance = alpha.sqrt() * mean, alpha * variance + 1 - alpha
        closed = noised(clean, abar[step])
        assert torch.allclose(mean, closed.mean, atol=1e-12) and torch.allclose(variance, closed.variance.expand(2), atol=1e-12)


@pytest.mark.parametrize(("before", "now"), [(3, 4), (2, 9), (1, 2)])
def test_the_posterior_is_bayes_by_enumeration(before, now):
    abar, clean, latent = sqrt_schedule(10), 0.7, -0.4
    grid = torch.linspace(-12, 12, 240_001, dtype=F64)
    alpha = abar[now] / abar[before]
    log_weights = -((grid - abar[before].sqrt() * clean) ** 2) / (2 * (1 - abar[before])) - (latent - alpha.sqrt() * grid) ** 2 / (2 * (1 - alpha))
    weights = log_weights.softmax(dim=0)  # p(x_s | x_0) p(x_t | x_s)
    mean = (weights * grid).sum()
    variance = (weights * (grid - mean) ** 2).sum()
    found = posterior(torch.tensor(clean, dtype=F64), torch.tensor(latent, dtype=F64), abar[before], abar[now])
    assert float(found.mean) == pytest.approx(float(mean), abs=1e-9) and float(found.variance) == pytest.approx(float(variance), abs=1e-9)


def test_the_posterior_of_one_step_by_hand():
    found = posterior(torch.tensor(1.0, dtype=F64), torch.tensor(2.0, dtype=F64), 0.8, 0.4)  # alpha 1/2
    assert float(found.variance) == pytest.approx(0.5 * 0.2 / 0.6)
    assert float(found.mean) == pytest.approx(0.8**0.5 * 0.5 / 0.6 * 1 + 0.5**0.5 * 0.2 / 0.6 * 2)


@pytest.mark.parametrize(("before", "now"), [(0, 1), (0, 10), (4, 5), (2, 9)])
def test_ddim_with_eta_one_is_the_posterior_and_with_eta_zero_has_no_noise(before, now):
    abar = sqrt_schedule(10)
    clean, latent = torch.tensor([0.3, 2.0, -1.0], dtype=F64), torch.tensor([-0.5, 1.0, 0.1], dtype=F64)
    ancestral, exact = ddim(clean, latent, abar[before], abar[now], 1.0), posterior(clean, latent, abar[before], abar[now])
    assert torch.allclose(ancestral.mean, exact.mean, atol=1e-12) and torch.allclose(ancestral.variance, exact.variance, atol=1e-12)
    still = ddim(clean, latent, abar[before], abar[now], 0.0)
    assert float(still.variance) == 0
    noise = (latent - abar[now].sqrt() * clean) / (1 - abar[now]).sqrt()
    assert torch.allclose(still.mean, abar[before].sqrt() * clean + (1 - abar[before]).sqrt() * noise)
    assert ddim(clean, latent, abar[before], abar[now], 0.5).variance == pytest.approx(float(exact.variance) / 4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_eta_keeps_the_marginals(eta):
    """With the true x_0 known, a step from q(x_t | x_0) lands in q(x_s | x_0)."""
    abar, clean = sqrt_schedule(10), torch.tensor(1.5, dtype=F64)
    begun, before, now = noised(clean, abar[7]), abar[3], abar[7]
    at, further = (ddim(clean, begun.mean + shift, before, now, eta) for shift in (0.0, 1.0))
    slope = further.mean - at.mean  # the step is linear in x_t
    closed = noised(clean, before)
    assert float(at.mean) == pytest.approx(float(closed.mean))
    assert float(slope**2 * begun.variance + at.variance) == pytest.approx(float(closed.variance))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_of_a_known_gaussian_have_its_mean_and_variance(eta):
    """Of N(m, v) the exact denoiser is E[x_0 | x_t]; with it the whole chain is linear, and its moments can be followed."""
    m, v, abar = 1.5, 4.0, sqrt_schedule(2000)

    def denoised(latent, left):
        return m + v * left.sqrt() / (v * left + 1 - left) * (latent - left.sqrt() * m)

    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(20_000, generator=generator, dtype=F64)
    mean, variance = torch.tensor(0.0, dtype=F64), torch.tensor(1.0, dtype=F64)
    for now, then in pairwise(path(2000, 500)):
        step = ddim(denoised(draws, abar[now]), draws, abar[then], abar[now], eta)
        draws = step.sample(torch.randn(draws.shape, generator=generator, dtype=F64))
        here, there = (ddim(denoised(x, abar[now]), x, abar[then], abar[now], eta) for x in (mean, mean + 1))
        mean, variance = here.mean, (there.mean - here.mean) ** 2 * variance + here.variance
    assert float(mean) == pytest.approx(m, abs=0.02) and float(variance) == pytest.approx(v, rel=0.03)
    assert float(draws.mean()) == pytest.approx(float(mean), abs=4 * (v / 20_000) ** 0.5)
    assert float(draws.var()) == pytest.approx(float(variance), rel=4 * (2 / 20_000) ** 0.5)


def test_the_path_is_evenly_spaced_and_refuses_what_it_cannot_be():
    assert path(5, 5) == [5, 4, 3, 2, 1, 0] and path(2000, 3) == [2000, 1333, 667, 0] and path(7, 1) == [7, 0]
    for steps in (0, 6, -1):
        with pytest.raises(UserError, match=rf"steps must be from 1 to 5, those that the model was trained with, got {steps}"):
            path(5, steps)
    with pytest.raises(UserError, match="diffusion_steps must be at least 1, got 0"):
        sqrt_schedule(0)
