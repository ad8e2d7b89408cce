"""Choosing a token: the exact distribution, from the row's own noise."""

import math

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer.requests.rng import choose, draw, key, refuse_nan, uniform

CRITICAL = {3: 16.27, 5: 20.52, 9: 27.88}  # chi-square at p = 0.001, by degrees of freedom


def chi_square(observed: list[float], expected: list[float]) -> float:
    return sum((o - e) ** 2 / e for o, e in zip(observed, expected))


def test_noise_is_uniform_and_belongs_to_seed_position_and_draw():
    numbers = [uniform(seed, position) for seed in range(50) for position in range(200)]
    bins = [sum(i / 10 <= u < (i + 1) / 10 for u in numbers) for i in range(10)]
    assert sum(bins) == 10_000 and chi_square(bins, [1000] * 10) < CRITICAL[9]
    assert uniform(7, 3) == uniform(7, 3)
    assert len({uniform(7, 3), uniform(7, 4), uniform(8, 3), uniform(7, 3, 1), uniform(-7, 3), uniform(73, 0)}) == 6


def test_tokens_come_as_often_as_their_probability_says():
    probs = [0.4, 0.05, 0.0, 0.25, 0.2, 0.1]
    n = 8000
    logits = torch.tensor(probs, dtype=torch.float64).log().repeat(n, 1)
    ids, logprobs = choose(logits, [key(seed, 5) for seed in range(n)])
    counts = torch.bincount(ids, minlength=6).tolist()
    assert counts[2] == 0  # impossible, not just rare
    drawn = [i for i in range(6) if i != 2]
    assert chi_square([counts[i] for i in drawn], [n * probs[i] for i in drawn]) < 18.47  # 4 degrees of freedom
    torch.testing.assert_close(logprobs.exp(), torch.tensor(probs, dtype=torch.float64)[ids])


def test_successive_positions_of_one_seed_are_independent():
    logits = torch.tensor([0.5, 0.5]).log().repeat(4000, 1)
    ids, _ = choose(logits, [key(11, position) for position in range(4000)])
    pairs = [2 * a + b for a, b in zip(ids.tolist(), ids.tolist()[1:])]
    assert chi_square([pairs.count(i) for i in range(4)], [len(pairs) / 4] * 4) < CRITICAL[3]


def test_what_rounds_at_one_token_never_moves_a_draw_between_two_others():
    generator = torch.Generator().manual_seed(0)
    probs = (3 * torch.randn(1, 300, generator=generator)).softmax(dim=-1).repeat(1000, 1)
    keys = torch.tensor([key(seed, 0) for seed in range(len(probs))])
    before, likely = draw(probs, keys), int(probs[0].argmax())
    probs[:, likely] *= 1.2
    after = draw(probs, keys)
    assert (after != before).any() and (after[after != before] == likely).all()


def test_a_key_belongs_to_seed_position_and_draw():
    assert key(7, 3) == key(7, 3) and -(2**63) <= min(keys := [key(n, 0) for n in range(99)]) < 0 < max(keys) < 2**63
    assert len({key(7, 3), key(7, 4), key(8, 3), key(7, 3, 1), key(-7, 3), key(73, 0)}) == 6


def test_rows_without_noise_take_the_likeliest_beside_rows_that_draw():
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, -torch.inf, -torch.inf], [0.0, 0.0, 5.0]])
    ids, logprobs = choose(logits, [None, key(0, 0), None])
    assert ids.tolist() == [1, 0, 2]
    assert logprobs[0].item() == pytest.approx(-math.log(1 + math.exp(-1) + math.exp(-2)), abs=1e-6)
    assert logprobs[1].item() == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("own", [None, key(1, 0)])
def test_scores_that_are_no_distribution_are_refused_by_name_and_their_neighbours_chosen_from(bad, own):
    logits = torch.zeros(2, 6)
    alone = choose(logits[:1], [key(0, 0)])
    logits[1, 3] = bad
    ids, logprobs = choose(logits, [key(0, 0), own])
    assert (ids[0], logprobs[0]) == (alone[0][0], alone[1][0]) and 0 <= ids[1] < 6
    assert refuse_nan(float(logprobs[0])) == pytest.approx(-math.log(6))
    with pytest.raises(UserError, match="the scores are not finite"):
        refuse_nan(float(logprobs[1]))


@pytest.mark.parametrize("vocab", [4096, 4099])
def test_a_race_of_the_few_that_have_a_chance_is_won_by_who_wins_that_of_all(vocab):
    generator = torch.Generator().manual_seed(3)
    keys = torch.tensor([key(7, position) for position in range(200)])
    few = torch.stack([torch.randperm(vocab, generator=generator)[:40] for _ in keys])
    few[:, :8] = torch.arange(vocab - 8, vocab)  # several of one block
    few[:, 8:] = few[:, 8:].clamp(max=vocab - 9)  # the same id may stand there twice
    weights = torch.rand(few.shape, generator=generator).masked_fill(torch.arange(40) % 5 == 0, 0)
    probs = torch.zeros(len(keys), vocab).scatter_(-1, few, weights)
    assert torch.equal(draw(probs, keys, few), draw(probs, keys))
