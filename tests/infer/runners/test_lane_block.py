"""Memory of lanes: there when it is written, gone when it is given back, never more than was promised."""

import random
import sys

import pytest
import torch

from seodang.infer.runners import lane_block as module
from seodang.infer.runners.cache import KVCache, Pool, StackedPool
from seodang.infer.runners.lane_block import PAGE, LaneBlock, Region, in_pages, lane_bytes

CPU = torch.device("cpu")
REGION = Region(2, 64, torch.float32, CPU)  # 16 positions of a head are 4,096 bytes
LIKE = torch.zeros(1, 2, 1, 64)
mapped_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes memory by the page and gives it back")


@pytest.fixture(params=["mapped", "tensor"])
def kind(request, monkeypatch):
    """Each kind of block, on a CPU."""
    if request.param == "tensor":
        monkeypatch.setattr(module, "is_mapped", lambda device: False)
    elif sys.platform != "linux":
        pytest.skip("only Linux takes memory by the page and gives it back")
    return request.param


def test_lanes_are_zeros_and_keep_what_is_copied_and_moved(kind):
    block = LaneBlock(3, REGION, 128, 4)
    assert block.tensor.shape[0] == 3 and block.lanes >= 4 and block.tensor.shape[2:] == (2, 128, 64)
    assert not block.tensor[:, :4].any()
    block.tensor[:, 1, :, :50] = 7.0
    other = LaneBlock(3, REGION, 256, 2)
    block.copy(1, block, 2, 50, 20)
    assert (block.tensor[:, 2, :, 20:50] == 7).all() and not block.tensor[:, 2, :, :20].any()
    block.move(1, other, 1, 40)
    assert (other.tensor[:, 1, :, :40] == 7).all() and not other.tensor[:, 1, :, 40:].any()
    if kind == "mapped":
        assert not block.tensor[:, 1].any()  # and a masked position of a new slot is no number of an old one's
        block.discard(2)
        assert not block.tensor[:, 2].any()


def test_more_lanes_than_were_reserved_keep_what_is_in_the_others(kind, monkeypatch):
    monkeypatch.setattr(module, "LANES", 4)
    block, lengths = LaneBlock(2, REGION, 128, 3), [5, 0, 77]
    for lane, length in enumerate(lengths):
        block.tensor[:, lane, :, :length] = lane + 1.0
    assert not block.fit(3, lengths)
    assert block.fit(block.lanes + 1, lengths)
    for lane, length in enumerate(lengths):
        assert (block.tensor[:, lane, :, :length] == lane + 1).all() and not block.tensor[:, lane, :, length:].any()


def test_a_tensor_has_few_lanes_to_spare_and_shrinks(monkeypatch):
    monkeypatch.setattr(module, "is_mapped", lambda device: False)
    block = LaneBlock(1, REGION, 128, 1)
    block.tensor[:, 0] = 3.0
    for slots in [*range(2, 20), *range(19, 0, -1)]:
        before = block.lanes
        block.fit(slots, [128])
        assert slots <= block.lanes <= max(2 * slots - 1, slots + slots // 4)
        assert before == block.lanes or before + block.lanes <= module.SPARE * slots  # both are there for a moment
    assert block.lanes == 1 and (block.tensor == 3).all()


@mapped_only
def test_where_the_kernel_counts_or_refuses_reservations_fewer_lanes_are_reserved(monkeypatch):
    monkeypatch.setattr(module, "counts_reservations", lambda: True)
    assert LaneBlock(1, REGION, 128, 8).lanes == 10
    monkeypatch.undo()
    most = 24 * REGION.bytes_at(128)
    real = module.reserved
    monkeypatch.setattr(module, "reserved", lambda size: real(size) if size <= most else None)
    assert LaneBlock(1, REGION, 128, 8).lanes == 16  # of 256, 128, 64, 32, 16
    assert LaneBlock(1, REGION, 128, 20).lanes == 20
    assert LaneBlock(1, REGION, 128, 30).lanes == 37  # a tensor, where there is no address space at all


@mapped_only
@pytest.mark.parametrize("heads, width, dtype", [(2, 64, torch.float32), (3, 64, torch.bfloat16), (3, 5, torch.float16), (1, 80, torch.float64)], ids=str)
def test_what_positions_take_is_what_is_resident(heads, width, dtype, resident):
    region, before = Region(heads, width, dtype, CPU), resident()
    block = LaneBlock(2, region, 256, 3)
    assert resident() == before  # address space alone
    for lane, length in enumerate([1, 100, 256]):
        block.tensor[:, lane, :, :length] = 1.0
    taken = resident() - before
    assert 0 < taken <= block.memory([1, 100, 256])
    if 256 * width * dtype.itemsize % PAGE == 0:
        assert taken == block.memory([1, 100, 256]) == 2 * heads * sum(in_pages(n * width * dtype.itemsize) for n in (1, 100, 256))
    block.discard(1)
    assert resident() - before <= block.memory([1, 0, 256]) < taken
    for lane in (0, 2):
        block.discard(lane)
    assert resident() == before


def in_huge_pages() -> int:
    """Bytes of blocks of cache that lie in huge pages."""
    total = size = 0
    for line in open("/proc/self/smaps", encoding="utf-8"):
        if line.startswith("AnonHugePages:"):
            size = int(line.split()[1]) * 1024
        elif line.startswith("VmFlags:") and {"nr", "nh"} <= set(line.split()):
            total += size
    return total


@mapped_only
def test_a_long_lane_that_is_nearly_full_lies_in_huge_pages_and_the_next_slot_in_usual_ones(resident):
    block, before, mib = LaneBlock(2, REGION, 4096, 3), resident(), 1 << 20  # two heads of 1 MiB a region
    written = torch.randn(2, 2, 3072, 64)
    block.tensor[:, 1, :, :3072] = written
    assert resident() - before == block.memory([3071]) == 2 * 2 * 768 * 1024  # 3,071 positions end in the same page
    block.settle(1, 3071)
    assert in_huge_pages() == 0
    block.settle(1, 3072)
    assert torch.equal(block.tensor[:, 1, :, :3072], written) and not block.tensor[:, 1, :, 3072:].any()
    assert block.memory([3072]) == 4 * mib and resident() - before <= 4 * mib
    with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="utf-8") as said:
        if "[never]" not in said.read():
            assert in_huge_pages() == 4 * mib
    block.discard(1)
    assert resident() == before and not block.tensor[:, 1].any()
    block.tensor[:, 1, :, :10] = 1.0
    assert resident() - before == block.memory([10]) == 2 * 2 * PAGE and in_huge_pages() == 0


@mapped_only
def test_slots_settle_as_they_grow_keep_their_past_and_take_no_more_than_their_bound(resident):
    cache, before = KVCache(lambda capacity: StackedPool(capacity, 2, 2, 64)), resident()
    slots = [cache.add(), cache.add()]
    for slot, length in zip(slots, (3000, 4000)):
        write(cache, slot, length)
    first, _ = cache.locate(slots[0])
    for slot in slots:
        write(cache, slot, 1)
    assert [sorted(block._settled) for block in first.blocks.values()] == [[1]]
    regions = [REGION] * 4
    assert resident() - before <= cache.memory <= cache.bytes_for(3001, regions) + cache.bytes_for(4001, regions)
    cache.release(slots[:1])  # the settled slot goes to the lane that is free
    assert torch.equal(cache.locate(slots[1])[0].stack[:, :, 0, :, :4001], torch.ones(2, 2, 2, 4001, 64))
    assert [list(block._settled) for block in first.blocks.values()] == [[]]
    write(cache, slots[1], 1)
    assert [list(block._settled) for block in first.blocks.values()] == [[0]] and resident() - before <= cache.memory
    write(cache, slots[1], 200)  # to a longer lane
    assert resident() - before == cache.memory <= cache.bytes_for(4202, regions)
    cache.release(slots[1:])
    assert resident() == before


@mapped_only
def test_the_bound_of_a_slot_by_hand():
    assert in_pages(1) == PAGE and in_pages(PAGE) == PAGE
    each = 2 * in_pages(100 * 64 * 4)  # two heads
    assert lane_bytes(100, 128, [REGION] * 6) == 7 * each  # one region is there twice while it moves
    elsewhere = REGION._replace(device=torch.device("meta"))
    assert lane_bytes(100, 128, [elsewhere] * 6) == int(4.25 * 6 * 2 * 128 * 64 * 4)


def write(cache: KVCache, slot: int, count: int) -> None:
    """Append positions to a slot as a runner does."""
    past = cache.lengths[slot]
    cache.reserve(slot, past + count)
    pool, lane = cache.locate(slot)
    for layer in range(2):
        for tensor in pool.tensors(layer, LIKE, LIKE):
            tensor[lane, :, past : past + count] = 1.0
    cache.lengths[slot] = past + count


@pytest.mark.parametrize("new_pool", [Pool, lambda capacity: StackedPool(capacity, 2, 2, 64)], ids=["by layer", "stacked"])
def test_slots_never_take_more_than_their_bounds_together(kind, new_pool, monkeypatch, resident):
    regions, chance, most = [REGION] * 4, random.Random(5), {}
    cache, before, watched = KVCache(new_pool), resident() if kind == "mapped" else 0, []

    def bound() -> int:
        return sum(cache.bytes_for(each, regions) for each in most.values())

    allocate = LaneBlock._allocate

    def allocate_beside(block, lanes):  # what grows or shrinks is there twice
        old = block.tensor.nbytes if hasattr(block, "tensor") else 0
        allocate(block, lanes)
        if kind == "tensor":
            watched.append(cache.memory + old <= bound())

    monkeypatch.setattr(LaneBlock, "_allocate", allocate_beside)
    for turn in range(400):
        action = chance.choice(["add", "write", "write", "write", "fork", "copy", "truncate", "release"])
        slot = chance.choice(list(cache.lengths)) if most else None
        if action == "add" or slot is None:
            most[cache._next] = 0
            cache.add()
        elif action == "write":
            count = chance.choice([1, 5, 40, 150])
            most[slot] = max(most[slot], cache.lengths[slot] + count)
            write(cache, slot, count)
        elif action == "fork" and len(most) < 12:
            most[cache._next] = max(cache.lengths[slot], 0)
            cache.fork([slot])
        elif action == "copy" and (target := chance.choice(list(most))) != slot:
            most[target] = max(most[target], cache.lengths[slot])
            cache.copy(slot, target, 0)
        elif action == "truncate":
            cache.truncate(slot, chance.randint(0, cache.lengths[slot]))
        elif action == "release" or len(most) > 12:
            cache.release([slot])
            del most[slot]
        assert cache.memory <= bound()
        if kind == "mapped" and turn % 40 == 0:
            assert resident() - before <= cache.memory
    assert all(watched) and (kind == "mapped" or len(watched) > 20)
    cache.release(list(cache.lengths))
    assert cache.memory == 0 and (kind == "tensor" or resident() == before)


@mapped_only
def test_a_slot_that_moves_is_never_there_twice(monkeypatch, resident):
    cache, before, seen = KVCache(lambda capacity: StackedPool(capacity, 2, 2, 64)), resident(), []
    slot = cache.add()
    write(cache, slot, 1_024)
    discard = LaneBlock._discard
    monkeypatch.setattr(LaneBlock, "_discard", lambda *args: (seen.append(resident() - before), discard(*args)))
    write(cache, slot, 1)
    assert len(seen) == 4 and max(seen) == 5 * 1_024 * 512  # four regions of 1,024 positions of 512 bytes, and one of them twice
    assert max(seen) <= cache.bytes_for(1_025, [REGION] * 4)
