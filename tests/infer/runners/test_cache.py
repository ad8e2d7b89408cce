"""The cache: rows keep their past wherever they move."""

import random

import pytest
import torch

from seodang.infer.runners.cache import SMALLEST, KVCache


def write(cache: KVCache, row: int, values: list[float]) -> None:
    """Append values to a row, in two layers, as the runner does."""
    past = cache.lengths[row]
    cache.reserve(row, past + len(values))
    pool, slot = cache.locate(row)
    like = torch.zeros(1, 2, 1, 3)
    for layer in range(2):
        keys, held = pool.tensors(layer, like, like)
        new = torch.tensor(values)[None, :, None] + 1000 * layer
        keys[slot, :, past : past + len(values)] = new
        held[slot, :, past : past + len(values)] = -new
    cache.lengths[row] = past + len(values)


def read(cache: KVCache, row: int) -> list[float]:
    pool, slot = cache.locate(row)
    n = cache.lengths[row]
    if not n:
        return []
    keys, held = pool.layers[1]
    assert torch.equal(keys[slot, :, :n], -held[slot, :, :n])
    return (keys[slot, 1, :n, 2] - 1000).tolist()


def next_positions(past: int, hidden: tuple[int, ...], count: int) -> list[int]:
    """The positions that are not hidden, counted out: those of the past first."""
    return [at for at in range(past + count + len(hidden)) if at not in hidden][past : past + count]


def test_rows_keep_their_past_through_growth_forks_copies_truncation_and_release():
    chance, cache, expected, hidden, number, copies = random.Random(0), KVCache(), {}, {}, 0.0, []
    for _ in range(1600):
        action = chance.choice(["add", "write", "write", "write", "fork", "copy", "truncate", "release", "shelve"])
        row = chance.choice(list(expected)) if expected else None
        if action == "add" or row is None:
            row = cache.add()
            expected[row] = []
            if chance.random() < 0.5:
                hidden[row] = cache.masked_positions[row] = tuple(sorted(chance.sample(range(12), chance.randint(1, 6))))
        elif action == "write":
            values = [number + i for i in range(chance.choice([1, 1, 5, 200]))]
            number += len(values)
            write(cache, row, values)
            expected[row] = expected[row] + values
        elif action == "shelve":
            cache.shelve([row])
        elif action == "fork" and len(expected) < 20:
            [fork] = cache.fork([row])
            expected[fork] = list(expected[row])
            if row in hidden:
                hidden[fork] = hidden[row]
        elif action == "copy":
            target = chance.choice([other for other in expected if other != row] or [cache.add()])
            past = expected.get(target, [])
            alike = next((i for i, (a, b) in enumerate(zip(expected[row], past)) if a != b), min(len(expected[row]), len(past)))
            length = chance.choice([None, None, None, chance.randint(0, len(expected[row]))])
            cache.copy(row, target, chance.randint(0, alike) if chance.random() < 0.7 else alike, length)
            expected[target] = expected[row][:length]
            copies.append((alike, len(past), len(expected[row])))
        elif action == "truncate":
            n = chance.randint(0, len(expected[row]))
            cache.truncate(row, n)
            expected[row] = expected[row][:n]
        elif action == "release":
            cache.release([row])
            del expected[row]
            hidden.pop(row, None)
        assert len(cache) == len(expected) and cache.masked_positions == hidden
    assert len(expected) > 5 and len(hidden) > 2
    assert any(0 < alike < min(lengths) for alike, *lengths in copies)  # a beam that had parted from another goes its way
    for row, values in expected.items():
        assert read(cache, row) == values
        assert list(cache.positions(row, 9)) == next_positions(len(values), hidden.get(row, ()), 9)


def test_live_rows_lie_together_whoever_leaves():
    cache = KVCache()
    rows = [cache.add() for _ in range(8)]
    cache.release([rows[0], rows[3], rows[7]])
    left = [row for row in rows if row in cache.lengths]
    assert sorted(cache.locate(row)[1] for row in left) == [0, 1, 2, 3, 4]


def test_rows_on_the_shelf_lie_apart_from_those_that_run():
    cache = KVCache()
    rows = [cache.add() for _ in range(6)]
    for row in rows:
        write(cache, row, [float(row)])
    cache.shelve(rows[1:5:2])
    assert [cache.locate(row)[1] for row in rows if row not in (rows[1], rows[3])] == [0, 2, 3, 1]  # no gap between them
    assert all(cache.locate(row)[0] is cache.shelf[SMALLEST] for row in (rows[1], rows[3]))
    assert [read(cache, row) for row in rows] == [[float(row)] for row in rows]
    cache.release(rows)
    assert not cache.pools and not cache.shelf and not cache.memory


def test_a_row_takes_the_next_power_of_two_and_leaves_the_others_where_they_are():
    cache = KVCache()
    short, long = cache.add(), cache.add()
    write(cache, short, [1.0] * 10)
    write(cache, long, [2.0] * (SMALLEST + 1))
    assert cache.locate(short)[0].capacity == SMALLEST
    assert cache.locate(long)[0].capacity == 2 * SMALLEST
    before = cache.locate(short)[0].layers[0][0].data_ptr()
    for _ in range(3):
        write(cache, long, [3.0] * SMALLEST)
    assert cache.locate(short)[0].layers[0][0].data_ptr() == before
    assert cache.locate(long)[0].capacity == 8 * SMALLEST


@pytest.mark.parametrize("hidden", [(), (0,), (5,), (0, 1, 2), (2, 3, 9), (1, 4, 5, 8)])
def test_tokens_keep_the_positions_that_they_have_without_the_hidden_ones(hidden):
    cache = KVCache()
    row = cache.add()
    if hidden:
        cache.masked_positions[row] = hidden
    visible = [place for place in range(30) if place not in hidden]
    for past in range(12):
        cache.lengths[row] = past
        for count in (1, 3, 9):
            assert list(cache.positions(row, count)) == visible[past : past + count]
