"""Mirostat: its rule step by step, and what it is for."""

import math

import pytest
import torch

from seodang.infer.filters.mirostat import Mirostat, mirostat
from seodang.infer.requests.rng import choose, key


def test_mu_follows_the_rule_by_hand():
    state = Mirostat(tau=3.0, eta=0.1)
    assert state.mu == 6.0
    state.offer(torch.tensor([0.25, 0.75]).log())
    state.accept(0)  # a surprise of 2 bits, 1 below the target
    assert state.mu == pytest.approx(6.1)


def test_what_was_not_offered_teaches_nothing():
    state = Mirostat(3.0, 0.1)
    state.accept(4)
    state.offer(torch.tensor([0.0, -torch.inf]))
    state.accept(1)
    assert state.mu == 6.0


def test_a_fork_learns_by_itself():
    state = Mirostat(3.0, 0.5)
    state.offer(torch.tensor([0.25, 0.75]).log())
    fork = state.fork()
    state.accept(0)
    fork.accept(1)
    assert (state.mu, fork.mu) == (pytest.approx(6.5), pytest.approx(6.0 - 0.5 * (math.log2(4 / 3) - 3)))


@pytest.mark.parametrize("tau", [2.0, 4.0])
def test_the_mean_surprise_comes_to_the_target(tau):
    logits = -1.1 * torch.arange(1, 2001).log()[None]  # Zipf's law
    state, surprises = Mirostat(tau, 0.1), []
    for position in range(1500):
        kept = mirostat(logits, torch.tensor([[state.mu]]))
        state.offer(kept.log_softmax(dim=-1)[0])
        ids, logprobs = choose(kept, [key(0, position)])
        state.accept(int(ids[0]))
        surprises.append(-float(logprobs[0]) / math.log(2))
    assert sum(surprises[500:]) / 1000 == pytest.approx(tau, abs=0.1)
