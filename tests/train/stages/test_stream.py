"""Rows that are read while training: each once, whoever reads them."""

import pytest
from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import DataLoader

from seodang.train.stages.sft import StreamedRows


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_rows_come_once_and_in_order_with_any_number_of_workers(workers):
    rows = StreamedRows(lambda: range(14), batch=3)
    batches = list(DataLoader(rows, batch_size=3, num_workers=workers, collate_fn=list))
    assert batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13]]


def test_two_processes_with_two_workers_each_share_the_rows_as_without_workers():
    shares = []
    for process in range(2):
        of_process = IterableDatasetShard(StreamedRows(lambda: range(12), batch=4), batch_size=2, num_processes=2, process_index=process)
        shares.append(list(DataLoader(of_process, batch_size=2, num_workers=2, collate_fn=list)))
    assert shares == [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [10, 11]]]


def test_a_batch_that_is_not_the_loaders_changes_the_order_alone():
    batches = DataLoader(StreamedRows(lambda: range(14)), batch_size=3, num_workers=2, collate_fn=list)
    assert sorted(row for batch in batches for row in batch) == list(range(14))
