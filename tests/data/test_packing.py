import random
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seodang.data.packing import best_fit_decreasing, collate, collate_padded, pack, pack_window


def row(ids, trained=1):
    """The last `trained` ids are trained."""
    return {"input_ids": ids, "labels": [-100] * (len(ids) - trained) + ids[len(ids) - trained :]}


def test_each_length_goes_to_the_fullest_bin_that_holds_it():
    # 7 opens A (3 left), 6 opens B (4 left), 4 fills B although A came first, 3 fills A, 2 opens C
    assert best_fit_decreasing([2, 3, 4, 6, 7], capacity=10) == [[4, 1], [3, 2], [0]]
    assert best_fit_decreasing([], capacity=10) == []


@given(st.lists(st.integers(1, 50), max_size=200))
def test_every_record_is_in_one_bin_and_no_bin_overflows(lengths):
    bins = best_fit_decreasing(lengths, capacity=50)
    assert sorted(index for chosen in bins for index in chosen) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in chosen) <= 50 for chosen in bins)
    # no two bins could have been one: the later one's first length would have gone into the earlier
    fills = [sum(lengths[index] for index in chosen) for chosen in bins]
    assert all(fills[a] + lengths[bins[b][0]] > 50 for b in range(len(bins)) for a in range(b))


def test_a_hundred_thousand_lengths_take_seconds():
    source = random.Random(0)
    lengths = [source.randint(1, 2048) for _ in range(100_000)]
    start = time.process_time()
    bins = best_fit_decreasing(lengths, capacity=2048)
    assert time.process_time() - start < 5
    assert sum(lengths) / (len(bins) * 2048) > 0.99  # next to nothing is wasted


def test_a_record_longer_than_the_capacity_is_refused():
    with pytest.raises(ValueError, match="11 tokens does not fit into rows of 10"):
        best_fit_decreasing([3, 11], capacity=10)


def test_packed_rows_keep_ids_labels_and_borders():
    packed = pack([row([1, 2, 3]), row([4, 5]), row([6, 7, 8, 9])], capacity=6)
    assert packed == [
        {"input_ids": [6, 7, 8, 9, 4, 5], "labels": [-100, -100, -100, 9, -100, 5], "lengths": [4, 2]},
        {"input_ids": [1, 2, 3], "labels": [-100, -100, 3], "lengths": [3]},
    ]


def test_a_stream_is_packed_window_by_window():
    rows = [row([number, number]) for number in range(5)]
    packed = list(pack_window(iter(rows), capacity=4, window=2))
    assert [r["input_ids"] for r in packed] == [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4]]
    with pytest.raises(ValueError, match="window"):
        list(pack_window(rows, 4, window=0))


def test_collate_lays_records_end_to_end_with_positions_that_restart():
    batch = collate([*pack([row([1, 2, 3]), row([4, 5])], capacity=5), row([6, 7])])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch["labels"].tolist() == [[-100, -100, 3, -100, 5, -100, 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 3, 5, 7]
    assert batch["max_length_q"] == batch["max_length_k"] == 3
    assert batch["cu_seq_lens_q"].dtype == torch.int32 and batch["input_ids"].dtype == batch["labels"].dtype == torch.int64


def test_padding_goes_by_length_so_a_pad_id_that_is_also_eos_stays_trained():
    batch = collate_padded([row([5, 6, 2], trained=2), row([7, 2])], pad_token_id=2)
    assert batch["input_ids"].tolist() == [[5, 6, 2], [7, 2, 2]]
    assert batch["labels"].tolist() == [[-100, 6, 2], [-100, 2, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_padded_batches_take_packed_rows_apart():
    batch = collate_padded(pack([row([1, 2, 3]), row([4, 5])], capacity=5), pad_token_id=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0]]
