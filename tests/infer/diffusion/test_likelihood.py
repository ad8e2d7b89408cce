"""The bound on an answer's likelihood: by enumeration of its masks, of a tabular model and of tiny ones, and its error."""

import itertools
import math

import pytest
import torch

from seodang.infer.diffusion import likelihood
from seodang.infer.diffusion.likelihood import error_of, likelihood_bounds
from seodang.infer.diffusion.masking import ESTIMATORS, Draws, standard_error
from seodang.infer.runners.open import open_runner

from . import test_oracle
from .conftest import MASK, canvas_logits
from .test_oracle import LENGTH, STATES, Oracle

joint = test_oracle.joint  # the fixture
MODELS = [("bidirectional", None), ("prompt_causal", None), ("block_causal", 2)]
PROMPT, ANSWER = [5, MASK, 9], [20, 21, 33, 20, 44]  # a prompt may hold the mask's id


def plain_bound(model, prompt, answer):
    """Each token's share of the bound by its definition: every mask of a block of l tokens of n with weight (l - 1)! (n - l)! / n!, one model pass each."""
    step = model.config.diffusion.get("block_length") or len(answer)
    shares = torch.zeros(len(answer), dtype=torch.double)
    for begin in range(0, len(answer), step):
        end = min(begin + step, len(answer))
        n = end - begin
        for hidden in itertools.product([False, True], repeat=n):
            count = sum(hidden)
            canvas = answer[:begin] + [MASK if each else id for each, id in zip(hidden, answer[begin:end])]
            logits = canvas_logits(model, prompt, canvas + answer[end:], end)
            logits[:, MASK] = -torch.inf
            for at in (begin + place for place in range(n) if hidden[place]):
                weight = math.factorial(count - 1) * math.factorial(n - count) / math.factorial(n)
                shares[at] += weight * logits[at].log_softmax(dim=-1)[answer[at]]
    return shares


@pytest.mark.parametrize("state", [0, 77, 255])
def test_a_model_that_knows_the_joint_has_the_likelihood_itself_as_its_bound(joint, state):
    """Whatever the order in which tokens are revealed, the product of their conditionals is the joint probability, so nothing is lost."""
    answer = list(STATES[state])
    [exact] = likelihood_bounds(Oracle(joint), [([0], answer)], Draws(2**LENGTH - 1), ["key"])
    assert exact.value == pytest.approx(joint.flatten()[state].log().item(), abs=1e-12)
    assert exact.draws is None and exact.error == 0


def mean_and_error(runner, pair, draws, runs):
    """The mean of so many estimates of a bound, each of its own noise, and its standard error by theirs."""
    found = likelihood_bounds(runner, [pair] * runs, draws, range(runs))
    return sum(each.value for each in found) / runs, math.sqrt(sum(each.error**2 for each in found)) / runs


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_estimate_of_a_tabular_model_lies_about_its_bound_within_its_error(joint, estimator):
    for state in (3, 90, 201):
        mean, error = mean_and_error(Oracle(joint), ([0], list(STATES[state])), Draws(8, estimator), 40)
        assert 0 < error < 1 and abs(mean - joint.flatten()[state].log().item()) < 3.5 * error


@pytest.mark.parametrize(("attention", "block_length"), MODELS)
@pytest.mark.parametrize("shift", [0, 1])
def test_the_bound_is_the_sum_over_all_masks_of_what_the_model_says_of_each(denoiser, attention, block_length, shift):
    model = denoiser(attention, shift, block_length)
    runner = open_runner(model)
    pairs = [(PROMPT, ANSWER), ([7, 8], [11]), (PROMPT, ANSWER[:3])]
    for (prompt, answer), bound in zip(pairs, likelihood_bounds(runner, pairs, Draws(31), "abc")):
        assert torch.allclose(bound.shares, plain_bound(model, prompt, answer), atol=1e-10) and bound.draws is None
    assert runner.live == 0


@pytest.mark.parametrize(("attention", "block_length"), MODELS)
def test_the_mean_of_many_estimates_is_what_all_masks_give(denoiser, attention, block_length):
    """Blocks of two tokens have three masks, which two draws are too few for; the last block's one is always taken."""
    model = denoiser(attention, 1, block_length)
    mean, error = mean_and_error(open_runner(model), (PROMPT, ANSWER), Draws(2 if block_length else 16), 120 if block_length else 40)
    exact = plain_bound(model, PROMPT, ANSWER).sum().item()
    assert 0 < error < 0.02 * abs(exact) and abs(mean - exact) < 3.5 * error


def spread(runner, pair, draws, runs=40):
    """The variance of the estimate itself."""
    return torch.tensor([each.value for each in likelihood_bounds(runner, [pair] * runs, draws, range(runs))]).var().item()


def test_exact_counts_vary_less_than_times(denoiser):
    """A time may leave all tokens, and weighs by its own share of masks, not theirs; near 0 its weight grows without bound. Here 40 times less."""
    model = denoiser(shift=1)
    runner, pair = open_runner(model), (PROMPT, [*ANSWER, 70, 71, 72])
    by_counts, by_times = (spread(runner, pair, Draws(8, estimator)) for estimator in ("counts", "times"))
    assert Draws().estimator == "counts" and by_counts < 0.1 * by_times


def test_an_answers_bound_hangs_on_its_key_and_not_on_its_neighbours(denoiser):
    runner = open_runner(denoiser("prompt_causal", 1))
    pairs, draws = [(PROMPT, ANSWER), ([7, 8], [11, 12, 13, 14]), ([70] * 30, [50] * 9)], Draws(4)
    together = likelihood_bounds(runner, pairs, draws, "abc")
    for pair, key, bound in zip(pairs, "abc", together):
        [alone] = likelihood_bounds(runner, [pair], draws, key)
        assert torch.allclose(alone.draws, bound.draws, atol=1e-10)
    [other] = likelihood_bounds(runner, pairs[:1], draws, "d")
    assert not torch.allclose(other.draws, together[0].draws, atol=1e-3)


@pytest.mark.parametrize("attention", ["bidirectional", "prompt_causal"])
def test_passes_are_of_bounded_size(denoiser, attention, monkeypatch):
    runner, pairs = open_runner(denoiser(attention, 1)), [(PROMPT, ANSWER), ([7, 8], ANSWER[::-1]), ([7] * 30, ANSWER)]
    whole, passes = likelihood_bounds(runner, pairs, Draws(31), "abc"), runner.passes
    monkeypatch.setattr(likelihood, "MAX_POSITIONS", 40)
    monkeypatch.setattr(likelihood, "MAX_LOGITS", 12)
    seen, forward = [], runner.forward
    monkeypatch.setattr(runner, "forward", lambda slots, ids, keep: (seen.append((sum(map(len, ids)), sum(keep))), forward(slots, ids, keep))[1])
    cut = likelihood_bounds(runner, pairs, Draws(31), "abc")
    assert all(torch.allclose(one.shares, other.shares, atol=1e-10) for one, other in zip(whole, cut))
    assert len(seen) > 10 * passes and all(positions <= 40 and logits <= 12 for positions, logits in seen)
    assert runner.live == 0


def test_answers_of_one_key_share_their_noise_and_the_error_of_their_difference_says_so(denoiser):
    """The same answer twice differs by nothing for sure; of two answers the error is that of the differences, draw by draw."""
    runner, draws = open_runner(denoiser(shift=1)), Draws(16)
    long = [*ANSWER, 70, 71, 72]
    first, same, apart, other = likelihood_bounds(runner, [(PROMPT, each) for each in (long, long, long, [*long[:-1], 73])], draws, ["key", "key", "another", "key"])
    assert error_of([(1.0, first), (-1.0, same)]) == 0 < error_of([(1.0, first), (-1.0, apart)])
    told = error_of([(1.0, first), (-1.0, other)])
    assert told == pytest.approx(standard_error((first.draws - other.draws).tolist())) and told < 0.8 * math.hypot(first.error, other.error)


def test_the_error_is_that_of_estimates_with_other_noise(denoiser):
    found = likelihood_bounds(open_runner(denoiser(shift=1)), [(PROMPT, [*ANSWER, 70])] * 60, Draws(6), range(60))
    told = math.sqrt(sum(each.error**2 for each in found) / 60)
    assert torch.tensor([each.value for each in found]).std().item() == pytest.approx(told, rel=0.25)


def test_one_draw_says_nothing_of_its_error(denoiser):
    runner = open_runner(denoiser())
    one, exact = likelihood_bounds(runner, [(PROMPT, ANSWER), (PROMPT, [7])], Draws(1), "ab")
    assert one.error is None and error_of([(1.0, one), (-1.0, exact)]) is None and exact.error == 0
    assert one.value == pytest.approx(one.draws.item())
