"""The race of ids: its noise, and that few numbers of it give the winner that all would."""

import pytest
import torch

from seodang.infer.requests.rng import BLOCK, exponential, first_in, hashes, key, race


def noise(keys: list[int], blocks: int) -> torch.Tensor:
    """Every E of the first blocks, [keys, ids]."""
    each = torch.arange(blocks).expand(len(keys), -1)
    return exponential(torch.tensor(keys), each, *first_in(torch.tensor(keys), each)).flatten(1)


def brute_force(weights: torch.Tensor, keys: list[int]) -> torch.Tensor:
    """How early every id is."""
    vocab = weights.shape[-1]
    return weights.double() / noise(keys, -(-vocab // BLOCK))[:, :vocab]


def chi_square_of_uniform(numbers: torch.Tensor, bins: int = 32) -> float:
    counts = torch.histc(numbers.float(), bins, 0, 1)
    return float(((counts - numbers.numel() / bins) ** 2).sum() / (numbers.numel() / bins))


def test_hashes_are_those_of_splitmix64_on_every_machine():
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [each % 2**64 for each in hashes(torch.tensor(1234567), torch.arange(1, 6)).tolist()] == known


@pytest.mark.parametrize("of", ["ids", "positions", "seeds"])
def test_numbers_are_exponential_and_neighbours_know_nothing_of_each_other(of):
    if of == "ids":
        numbers = noise([key(1, 0), key(2, 0)], 2000).reshape(-1)
    else:
        keys = [key(1, n) if of == "positions" else key(n, 1) for n in range(2000)]
        numbers = noise(keys, 2).T.reshape(-1)
    uniform = 1 - (-numbers).exp()
    assert chi_square_of_uniform(uniform) < 61.1  # at p = 0.001, 31 degrees of freedom
    for apart in (1, 2, 31, 32, 33, 64):
        assert abs(float(torch.corrcoef(torch.stack([uniform[:-apart], uniform[apart:]]))[0, 1])) < 4 / len(uniform) ** 0.5


def test_the_tail_of_small_numbers_is_exponential_too():
    # the smallest of 1000 ids, half of the last block among them, 1000 times
    least = noise([key(seed, 7) for seed in range(1000)], 32)[:, :1000].amin(dim=1)
    assert chi_square_of_uniform(1 - (-1000 * least).exp()) < 61.1


def test_first_in_a_block_is_its_smallest_number():
    blocks = torch.arange(50)[None]
    least, who = first_in(torch.tensor([key(3, 0)]), blocks)
    found = noise([key(3, 0)], 50).unflatten(1, (50, BLOCK)).min(dim=-1)
    assert torch.equal(found.values, least) and torch.equal(found.indices, who)
    assert torch.bincount(who[0], minlength=BLOCK).max() < 10  # 50 of 32 places


@pytest.mark.parametrize("sharp", [0.0, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("kept", [5000, 40, 1])
def test_the_first_are_those_of_a_race_of_all(sharp, kept):
    generator = torch.Generator().manual_seed(kept)
    logits = sharp * torch.randn(20, 5000, generator=generator)
    dropped = torch.rand(logits.shape, generator=generator).argsort(dim=-1) >= kept
    weights, keys = logits.masked_fill(dropped, -torch.inf).softmax(dim=-1), [key(seed, 0) for seed in range(20)]
    early = brute_force(weights, keys).topk(6, dim=-1)
    for count in (1, 6):
        ids, values = race(weights, torch.tensor(keys), count)
        assert torch.equal(values, early.values[:, :count])
        has_weight = values > 0
        assert torch.equal(ids[has_weight], early.indices[:, :count][has_weight])


def test_ids_keep_their_numbers_whatever_the_row_the_batch_and_the_vocabulary():
    weights = torch.randn(6, 700, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    keys = torch.tensor([key(seed, 0) for seed in range(6)])
    ids, early = race(weights, keys)
    alone = [race(weights[i : i + 1], keys[i : i + 1])[0].item() for i in range(6)]
    wider = torch.cat([weights, torch.zeros(6, 300)], dim=-1)
    last = race(wider.flip(0), keys.flip(0))[0].flip(0)
    assert ids.flatten().tolist() == alone == last.flatten().tolist()
    others = torch.ones_like(weights, dtype=torch.bool).scatter(1, ids, False)
    thinned = weights.masked_fill(others & (torch.arange(700) % 50 > 0), 0)  # of the others most are dropped
    assert torch.equal(race(thinned, keys)[1], early)


def test_ids_of_many_blocks_come_as_often_as_their_weight_says():
    weights = torch.arange(1, 101).double()
    drawn = race(weights.expand(8000, -1), torch.tensor([key(seed, 4) for seed in range(8000)]))[0].flatten()
    expected = 8000 * weights / weights.sum()
    chi = float(((torch.bincount(drawn, minlength=100) - expected) ** 2 / expected).sum())
    assert chi < 149  # at p = 0.001, 99 degrees of freedom
